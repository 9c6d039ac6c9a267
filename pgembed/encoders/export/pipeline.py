"""What a sentence-transformers folder says is done to a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgembed.encoders.export.config import read_json
from pgembed.encoders.tokens import TOKENIZER_FILE
from pgembed.encoders.words import WORDS_FILE
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
ROUTER_FILE = "router_config.json"
FIRST_MODULES = ("Transformer", "StaticEmbedding", "WordEmbeddings")
LATER_MODULES = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")


@dataclass(frozen=True)
class Step:
    """A module behind the pooling.

    :ivar kind: ``"Dense"``, ``"LayerNorm"`` or ``"Normalize"``.
    :ivar folder: where its weights are.
    :ivar config: its ``config.json``.
    """

    kind: str
    folder: Path
    config: dict[str, Any]

    @property
    def activation(self) -> str:
        """The activation of a dense layer, such as ``"tanh"``."""
        return str(self.config.get("activation_function", "Tanh")).rpartition(".")[2].lower()

    def __str__(self) -> str:
        return f"dense:{self.activation}" if self.kind == "Dense" else self.kind.lower()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What ``modules.json`` and the files beside it say.

    :ivar first: the first module, one of ``FIRST_MODULES``.
    :ivar folder: the folder of the first module: configuration, tokenizer, weights.
    :ivar pooling: pooling modes, concatenated in this order.
    :ivar steps: the modules behind the pooling.
    :ivar max_tokens: the limit that the folder states, ``None`` where it states none.
    :ivar dimensions: dimensions to keep, ``None`` for all.
    """

    first: str
    folder: Path
    pooling: tuple[str, ...]
    steps: tuple[Step, ...]
    include_prompt: bool
    max_tokens: int | None
    lowercase: bool
    query_prompt: str
    document_prompt: str
    dimensions: int | None

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / (WORDS_FILE if self.first == "WordEmbeddings" else TOKENIZER_FILE)

    @property
    def normalize(self) -> bool:
        """Whether the vectors have length 1."""
        return bool(self.steps) and self.steps[-1].kind == "Normalize"


def has_towers(folder: Path) -> bool:
    """Whether the model has a route of its own for queries."""
    structure = _optional(folder / ROUTER_FILE).get("structure", {})
    return "query" in structure and structure["query"] != structure.get("document")


def read(folder: Path, *, route: str = "document") -> Pipeline:
    """Read a model folder; one without ``modules.json`` is a bare transformer with mean pooling.

    :param route: which way through a model with two towers, ``"document"`` or ``"query"``.
    :raises EncoderFilesError: a file is missing or says what cannot be done.
    """
    if not folder.is_dir():
        raise EncoderFilesError(folder, "no folder", needed="a folder with config.json and model.safetensors")
    (first, place), *later = _modules(folder, route)
    pooling: dict[str, Any] = {}
    steps = []
    for kind, path in later:
        config = _optional(folder / path / "config.json")
        if kind == "Pooling":
            pooling = config
        elif kind != "Dropout":  # which does nothing outside of training
            steps.append(Step(kind, folder / path, config))
    settings = _optional(folder / place / "sentence_bert_config.json")
    words = _optional(folder / place / "wordembedding_config.json")
    prompts, default = _prompts(folder)
    limit = settings.get("max_seq_length") or words.get("max_seq_length") or _tokenizer_limit(folder / place)
    return Pipeline(
        first=first,
        folder=folder / place,
        pooling=_pooling_modes(pooling),
        steps=tuple(steps),
        include_prompt=bool(pooling.get("include_prompt", True)),
        max_tokens=limit,
        lowercase=bool(settings.get("do_lower_case", False)),
        query_prompt=prompts.get("query") or default,
        document_prompt=prompts.get("document") or prompts.get("passage") or default,
        dimensions=_optional(folder / "config_sentence_transformers.json").get("truncate_dim"),
    )


def _modules(folder: Path, route: str) -> list[tuple[str, str]]:
    """Class name and subfolder of each module, in order."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", "")]
    listed = sorted(read_json(path), key=lambda module: module["idx"])
    modules = [(module["type"].rpartition(".")[2], module["path"]) for module in listed]
    if modules and modules[0][0] == "Router":
        router = read_json(folder / modules[0][1] / ROUTER_FILE)
        names = router["structure"].get(route)
        if not names:
            routes = ", ".join(router["structure"])
            raise EncoderFilesError(folder / ROUTER_FILE, f"the routes {routes}", needed=f"a route {route!r}")
        start = f"{modules[0][1]}/" if modules[0][1] else ""
        modules[:1] = [(router["types"][name].rpartition(".")[2], start + name) for name in names]
    if not modules or modules[0][0] not in FIRST_MODULES:
        found = modules[0][0] if modules else "no module"
        raise EncoderFilesError(path, f"{found} as the first module", needed=" or ".join(FIRST_MODULES))
    for kind, _ in modules[1:]:
        if kind not in LATER_MODULES:
            raise EncoderFilesError(path, f"the module {kind}", needed=" or ".join(LATER_MODULES))
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
