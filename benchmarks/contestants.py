"""Other ways to compute the same vectors, to measure beside ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]


def sentence_transformers(model_dir: Path) -> Encode:
    """The reference implementation, as users call it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_dir), device="cpu")
    return lambda texts: model.encode(texts, convert_to_numpy=True, show_progress_bar=False)


def graph_for_fastembed(model_dir: Path, folder: Path) -> None:
    """A folder that fastembed can open: the same weights, in the graph that torch exports."""
    import torch
    from transformers import AutoModel

    folder.mkdir(exist_ok=True)
    for path in model_dir.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    transformer = AutoModel.from_pretrained(str(model_dir), attn_implementation="eager").eval()

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer.requires_grad_(False)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.transformer(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones((2, 9), dtype=torch.int64)
    torch.onnx.export(
        LastHiddenState().eval(),
        (example, example, torch.zeros_like(example)),
        str(folder / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in [*names, "last_hidden_state"]},
        opset_version=17,
        dynamo=False,
    )


def fastembed(folder: Path, threads: int) -> Encode:
    """fastembed with its default settings, on a folder made by :func:`graph_for_fastembed`."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),
        dim=json.loads((folder / "config.json").read_text())["hidden_size"],
        model_file="model.onnx",
    )
    model = TextEmbedding("local/model", specific_model_path=str(folder), threads=threads)
    return lambda texts: np.stack(list(model.embed(texts)))
