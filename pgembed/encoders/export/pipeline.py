"""What a sentence-transformers folder says is done to a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgembed.encoders.export.config import read_json
from pgembed.encoders.tokens import TOKENIZER_FILE
from pgembed.exc import EncoderFilesError

# The order in which several flags of the older format are concatenated.
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What ``modules.json`` and the files beside it say.

    :ivar transformer: folder with ``config.json`` and the weights.
    :ivar max_tokens: the limit that the folder states, ``None`` where it states none.
    """

    transformer: Path
    pooling: tuple[str, ...]
    normalize: bool
    include_prompt: bool
    max_tokens: int | None
    lowercase: bool
    query_prompt: str
    document_prompt: str
    dimensions: int | None

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.transformer / TOKENIZER_FILE


def read(folder: Path) -> Pipeline:
    """Read a model folder; one without ``modules.json`` is a bare transformer with mean pooling.

    :raises EncoderFilesError: a file is missing or says what cannot be done.
    """
    if not folder.is_dir():
        raise EncoderFilesError(folder, "no folder", needed="a folder with config.json and model.safetensors")
    modules = _modules(folder)
    transformer = folder / modules.pop(0)[1]
    pooling: dict[str, Any] = {}
    normalized = False
    for kind, path in modules:
        if kind == "Pooling":
            pooling = read_json(folder / path / "config.json")
        elif kind == "Normalize":
            normalized = True
        else:
            raise EncoderFilesError(
                folder / "modules.json", f"the module {kind}", needed="Pooling or Normalize"
            )
    settings = _optional(transformer / "sentence_bert_config.json")
    prompts, default = _prompts(folder)
    return Pipeline(
        transformer=transformer,
        pooling=_pooling_modes(pooling),
        normalize=normalized,
        include_prompt=bool(pooling.get("include_prompt", True)),
        max_tokens=settings.get("max_seq_length") or _tokenizer_limit(transformer),
        lowercase=bool(settings.get("do_lower_case", False)),
        query_prompt=prompts.get("query", default),
        document_prompt=next((prompts[name] for name in ("document", "passage") if name in prompts), default),
        dimensions=_optional(folder / "config_sentence_transformers.json").get("truncate_dim"),
    )


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Class name and subfolder of each module, in order."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", "")]
    listed = sorted(read_json(path), key=lambda module: module["idx"])
    modules = [(module["type"].rpartition(".")[2], module["path"]) for module in listed]
    if not modules or modules[0][0] != "Transformer":
        found = modules[0][0] if modules else "no module"
        raise EncoderFilesError(path, f"{found} as the first module", needed="Transformer")
    return modules


def _pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        return (stated,)
    if stated:
        return tuple(stated)
    return tuple(mode for flag, mode in _LEGACY_MODES.items() if config.get(flag)) or ("mean",)


def _prompts(folder: Path) -> tuple[dict[str, str], str]:
    """The prompts by name, and the one that is used when none is named."""
    config = _optional(folder / "config_sentence_transformers.json")
    prompts: dict[str, str] = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    return prompts, prompts.get(config.get("default_prompt_name") or "", "")


def _tokenizer_limit(folder: Path) -> int | None:
    """``model_max_length``, unless it is the huge number that means none."""
    limit = _optional(folder / "tokenizer_config.json").get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and limit < 10**9 else None


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}
