"""What a sentence-transformers folder says is done to a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgembed.encoders.export.config import read_json
from pgembed.encoders.spec import SPEC_FILE
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
#: The names that a transformer's settings have had; the first one found counts.
SETTINGS_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
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
    path = folder / "modules.json"
    place = read_json(path)[0]["path"] if path.is_file() else ""
    structure = _optional(folder / place / ROUTER_FILE).get("structure", {})
    return "query" in structure and structure["query"] != structure.get("document")


def read(folder: Path, *, route: str = "document") -> Pipeline:
    """Read a model folder; one without ``modules.json`` is a bare transformer with mean pooling.

    :param route: which way through a model with two towers, ``"document"`` or ``"query"``.
    :raises EncoderFilesError: a file is missing or says what cannot be done.
    """
    if not folder.is_dir():
        raise EncoderFilesError(folder, "no folder", needed="a folder with config.json and model.safetensors")
    if (folder / SPEC_FILE).is_file():
        raise EncoderFilesError(folder, "an encoder, which has been exported already", needed="a model")
    (first, place), *later = _modules(folder, route)
    pooling: dict[str, Any] = {}
    steps = []
    for kind, path in later:
        config = _optional(folder / path / "config.json")
        if kind == "Pooling":
            pooling = config
        elif kind != "Dropout":  # which does nothing outside of training
            if config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
                found = f"a {kind} for {config['module_input_name']}"
                raise EncoderFilesError(folder / path, found, needed="one for sentence_embedding")
            steps.append(Step(kind, folder / path, config))
    settings = next(filter(None, (_optional(folder / place / name) for name in SETTINGS_FILES)), {})
    query_prompt, document_prompt = _prompts(folder)
    return Pipeline(
        first=first,
        folder=folder / place,
        pooling=_pooling_modes(pooling),
        steps=tuple(steps),
        include_prompt=bool(pooling.get("include_prompt", True)),
        max_tokens=_limit(first, folder / place, settings),
        lowercase=bool(settings.get("do_lower_case", False)),
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        dimensions=_optional(folder / "config_sentence_transformers.json").get("truncate_dim"),
    )


def _modules(folder: Path, route: str) -> list[tuple[str, str]]:
    """Class name and subfolder of each module, in order."""
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", "")]
    try:  # in the order of the list: the numbers in it are not what counts
        modules = [(module["type"].rpartition(".")[2], module["path"]) for module in read_json(path)]
    except (TypeError, KeyError, AttributeError) as error:
        raise EncoderFilesError(path, f"no list of modules ({error})", needed="type and path each") from error
    if modules and modules[0][0] == "Router":
        modules[:1] = _route(folder / modules[0][1], modules[0][1], route)
    if not modules or modules[0][0] not in FIRST_MODULES:
        found = modules[0][0] if modules else "no module"
        raise EncoderFilesError(path, f"{found} as the first module", needed=" or ".join(FIRST_MODULES))
    later = [kind for kind, _ in modules[1:]]
    for kind in later:
        if kind not in LATER_MODULES:
            raise EncoderFilesError(path, f"the module {kind}", needed=" or ".join(LATER_MODULES))
    if modules[0][0] != "StaticEmbedding" and [kind for kind in later if kind != "Dropout"][:1] != [
        "Pooling"
    ]:
        found = f"{' and '.join(later) or 'nothing'} behind the {modules[0][0]}"
        raise EncoderFilesError(path, found, needed="Pooling first: a model that gives one vector a text")
    return modules


def _route(folder: Path, place: str, route: str) -> list[tuple[str, str]]:
    """Class name and subfolder of each module of one way through a router."""
    path = folder / ROUTER_FILE
    router = read_json(path)
    start = f"{place}/" if place else ""
    try:
        structure, types = router["structure"], router["types"]
        names = structure.get(route)
        modules = [(types[name].rpartition(".")[2], start + name) for name in names or ()]
        routes = ", ".join(structure)
    except (TypeError, KeyError, AttributeError) as error:
        raise EncoderFilesError(path, f"no router ({error})", needed="structure and types") from error
    if not modules:
        raise EncoderFilesError(path, f"the routes {routes}", needed=f"a route {route!r}")
    return modules


def _pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    stated = config.get("pooling_mode")
    if stated:
        return tuple(stated) if isinstance(stated, list) else (str(stated),)
    return tuple(mode for flag, mode in _LEGACY_MODES.items() if config.get(flag)) or ("mean",)


def _prompts(folder: Path) -> tuple[str, str]:
    """The prompts of queries and of documents; what is stated, even as empty, goes before the default."""
    path = folder / "config_sentence_transformers.json"
    config = _optional(path)
    prompts: dict[str, str | None] = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise EncoderFilesError(path, f"prompts = {prompts!r}", needed="prompts by name")
    default = prompts.get(config.get("default_prompt_name") or "")

    def first(*names: str) -> str:
        return next((prompts[name] for name in names if name in prompts), default) or ""

    return first("query"), first("document", "passage", "corpus")


def _limit(first: str, folder: Path, settings: dict[str, Any]) -> int | None:
    """The limit that the folder states, by the file that the reference takes it from."""
    limit: Any
    if first == "StaticEmbedding":
        truncation = _optional(folder / TOKENIZER_FILE).get("truncation")
        limit = truncation.get("max_length") if isinstance(truncation, dict) else None
    elif first == "WordEmbeddings":
        limit = _optional(folder / "wordembedding_config.json").get("max_seq_length")
    else:
        limit = settings.get("max_seq_length")
        limit = limit or _optional(folder / "tokenizer_config.json").get("model_max_length")
    # A huge number means none.
    return int(limit) if isinstance(limit, int | float) and limit < 10**9 else None


def _optional(path: Path) -> dict[str, Any]:
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise EncoderFilesError(path, f"JSON of type {type(values).__name__}", needed="a JSON object")
    return values
