"""What a sentence-transformers folder says about turning a text into a vector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgembed.encoders.export import classifier
from pgembed.encoders.export.classifier import Classifier
from pgembed.encoders.export.modules import (
    MODULES_FILE,
    Module,
    inside,
    listed,
    modules_of,
)
from pgembed.encoders.files import Folder, JsonObject, is_name, shown
from pgembed.encoders.spec import SPEC_FILE
from pgembed.encoders.text.tokenizer import TOKENIZER_FILE, WORDS_FILE
from pgembed.exc import EncoderFilesError

# In the order in which several flags of the older format are concatenated.
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
LIMIT_UNSTATED = 512  # tokens, of a transformer for which nothing states how many it takes
PROMPTS_FILE = "config_sentence_transformers.json"
#: The names that a transformer's settings have had; the first one found counts.
SETTINGS_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_CONFIGURED = ("Pooling", "Dense", "LayerNorm")  # they need settings
_OF_QUERIES = ("query",)
_OF_DOCUMENTS = ("document", "passage", "corpus")
_TEXT_VECTOR = "sentence_embedding"
# Settings of a transformer that replace those of config.json and tokenizer_config.json, with the keys that
# change no vector.
_HARMLESS = frozenset({"trust_remote_code"})
_MODEL_OVERRIDES = _HARMLESS | {
    "add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "use_safetensors",
}  # fmt: skip
_TOKENIZER_OVERRIDES = _HARMLESS | {"padding_side", "use_fast"}
_OVERRIDES = {
    "model_args": _MODEL_OVERRIDES,
    "model_kwargs": _MODEL_OVERRIDES,
    "tokenizer_args": _TOKENIZER_OVERRIDES,
    "processor_kwargs": _TOKENIZER_OVERRIDES,
    "config_args": _HARMLESS,
    "config_kwargs": _HARMLESS,
    "processing_kwargs": frozenset[str](),
}


@dataclass(frozen=True)
class Step:
    """A module after the pooling.

    :ivar kind: ``"Dense"``, ``"LayerNorm"`` or ``"Normalize"``.
    :ivar folder: where its weights are.
    :ivar config: its ``config.json``.
    """

    kind: str
    folder: Folder
    config: JsonObject

    @property
    def activation(self) -> str:
        """The activation of a dense layer, such as ``"tanh"``."""
        return self.config.text("activation_function", "Tanh").rpartition(".")[2].lower()

    def __str__(self) -> str:
        return f"dense:{self.activation}" if self.kind == "Dense" else self.kind.lower()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What ``modules.json`` and the files beside it say.

    :ivar first: the first module, one of ``FIRST_MODULES``.
    :ivar folder: the folder of the first module: configuration, tokenizer, weights.
    :ivar pooling: pooling modes, concatenated in this order; empty if nothing states how to pool.
    :ivar steps: the modules after the pooling.
    :ivar max_tokens: the limit that the folder states, ``None`` if it states none.
    :ivar dimensions: dimensions to keep, ``None`` for all.
    :ivar classifier: what else the folder says, if the model classifies pairs of texts.
    """

    first: str
    folder: Folder
    pooling: tuple[str, ...]
    steps: tuple[Step, ...]
    include_prompt: bool
    max_tokens: int | None
    lowercase: bool
    query_prompt: str
    document_prompt: str
    dimensions: int | None
    classifier: Classifier | None = None

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder.file(WORDS_FILE if self.first == "WordEmbeddings" else TOKENIZER_FILE)

    @property
    def normalize(self) -> bool:
        """Whether the vectors have length 1."""
        return bool(self.steps) and self.steps[-1].kind == "Normalize"


def read(folder: Folder, *, route: str = "document") -> Pipeline:
    """Read a model folder; one without ``modules.json`` is a bare transformer.

    :param route: which route of a model with two towers, ``"document"`` or ``"query"``.
    :raises EncoderFilesError: a file is missing or states something that cannot be done.
    """
    if not os.path.isdir(folder.path):  # which returns False for invalid paths
        needed = "a folder with config.json and model.safetensors"
        raise EncoderFilesError(folder.path, "no folder", needed=needed)
    if folder.has(SPEC_FILE):
        raise EncoderFilesError(folder.path, "an encoder, which has been exported already", needed="a model")
    if _is_classifier(folder):
        return _classifier(folder)
    first, *later = modules_of(folder, route)
    listed = folder.file(MODULES_FILE)
    pooling: JsonObject | None = None
    steps = []
    for module in later:
        path = folder.file(inside(module.place, "config.json"))
        config = JsonObject.read(path) if module.kind in _CONFIGURED else JsonObject.optional(path)
        _check_features(module.kind, config)
        if module.kind == "Pooling":
            pooling = config
        elif module.kind != "Dropout":  # it does nothing outside training
            steps.append(Step(module.kind, folder.subfolder(module.place, stated_in=listed), config))
    place = folder.subfolder(first.place, stated_in=listed)
    settings = _transformer_settings(place)
    prompts = _settings(folder, PROMPTS_FILE)
    query_prompt, document_prompt = _prompts(prompts)
    return Pipeline(
        first=first.kind,
        folder=place,
        pooling=() if pooling is None else _pooling_modes(pooling),
        steps=tuple(steps),
        include_prompt=pooling is None or pooling.flag("include_prompt", True),
        max_tokens=_limit(first.kind, place, settings),
        lowercase=settings.flag("do_lower_case", False),
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        dimensions=prompts.integer("truncate_dim", 0, least=1) or None,
    )


def _is_classifier(folder: Folder) -> bool:
    """By the first module's task, where there is a list of modules, else by the class of the model."""
    modules = listed(folder)
    if modules is None:
        return classifier.names_classifier(_settings(folder, "config.json"))
    if [module.kind for module in modules[:1]] != ["Transformer"]:
        return False
    place = folder.subfolder(modules[0].place, stated_in=folder.file(MODULES_FILE))
    return _first_settings(place).get("transformer_task") == classifier.TASK


def _classifier(folder: Folder) -> Pipeline:
    """A classifier of pairs of texts: a transformer with its head, and nothing else."""
    modules = listed(folder) or [Module("Transformer", "")]
    if len(modules) > 1:
        found = f"{modules[1].kind} after a Transformer that classifies"
        raise EncoderFilesError(folder.file(MODULES_FILE), found, needed="nothing after it")
    place = folder.subfolder(modules[0].place, stated_in=folder.file(MODULES_FILE))
    settings = _transformer_settings(place, task=classifier.TASK, output="scores", method_output="logits")
    return Pipeline(
        first="Transformer",
        folder=place,
        pooling=(),
        steps=(),
        include_prompt=True,
        max_tokens=_limit("Transformer", place, settings),
        lowercase=settings.flag("do_lower_case", False),
        query_prompt="",
        document_prompt="",
        dimensions=None,
        classifier=classifier.read(place, _settings(folder, PROMPTS_FILE)),
    )


def _check_features(kind: str, config: JsonObject) -> None:
    """Refuse a module that works on something other than the text's vector."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _TEXT_VECTOR):
            feature = config[key] if is_name(config[key]) else shown(config[key])
            found = f"a {kind} for {feature} as {key}"
            raise EncoderFilesError(config.path, found, needed=f"one for {_TEXT_VECTOR}")


def _settings(folder: Folder, name: str) -> JsonObject:
    """The settings in a file that may be missing."""
    return JsonObject.optional(folder.file(name))


def _first_settings(place: Folder) -> JsonObject:
    """The settings of a transformer besides ``config.json``; the first file with content counts."""
    found = (_settings(place, name) for name in SETTINGS_FILES)
    return next(filter(len, found), JsonObject(place.file(SETTINGS_FILES[0]), {}))


def _transformer_settings(
    place: Folder,
    *,
    task: str = "feature-extraction",
    output: str = "token_embeddings",
    method_output: str = "last_hidden_state",
) -> JsonObject:
    """
    :raises EncoderFilesError: the output is another one of a text, or the model is to be opened with other
        settings than its files state.
    """
    settings = _first_settings(place)
    settings.expect("transformer_task", task)
    settings.expect("module_output_name", output)
    modalities = settings.table("modality_config")
    if modalities and "text" not in modalities:
        raise settings.wrong("modality_config", needed="one for text")
    text = modalities.table("text")
    text.expect("method", "forward")
    text.expect("method_output_name", method_output)
    for key, harmless in _OVERRIDES.items():
        table = settings.table(key)
        for name in table:
            if name not in harmless:
                raise table.wrong(name, needed="a model that is opened with what its own files state")
    for key in ("query_length", "document_length", "query_expansion"):
        if settings.get(key) is not None:
            raise settings.wrong(key, needed="one limit for all texts (max_seq_length)")
    return settings


def _pooling_modes(config: JsonObject) -> tuple[str, ...]:
    stated = config.get("pooling_mode")
    if stated:
        return tuple(config.texts("pooling_mode")) if isinstance(stated, list) else (str(stated)[:80],)
    return tuple(mode for flag, mode in _LEGACY_MODES.items() if config.flag(flag, False)) or ("mean",)


def _prompts(config: JsonObject) -> tuple[str, str]:
    """The prompts of queries and of documents; a stated one, even an empty one, replaces the default.

    A default that is named after one of the two is not used for the other.
    """
    prompts = config.table("prompts")
    default = config.text("default_prompt_name", "")
    if default and default not in prompts:
        raise config.wrong("default_prompt_name", needed=" or ".join(map(shown, prompts)) or "prompts")

    def first(names: Sequence[str], others: Sequence[str]) -> str:
        fallback = "" if default in others else default
        return prompts.text(next((name for name in names if name in prompts), fallback), "")

    return first(_OF_QUERIES, _OF_DOCUMENTS), first(_OF_DOCUMENTS, _OF_QUERIES)


def _limit(first: str, folder: Folder, settings: JsonObject) -> int | None:
    """The limit that the folder states, in the file where the reference looks for it."""
    if first == "StaticEmbedding":
        stated, key = _settings(folder, TOKENIZER_FILE).table("truncation"), "max_length"
    elif first == "WordEmbeddings":
        stated, key = _settings(folder, "wordembedding_config.json"), "max_seq_length"
    else:
        stated, key = settings, "max_seq_length"
        if not stated.get(key):
            stated, key = _settings(folder, "tokenizer_config.json"), "model_max_length"
    limit = stated.get(key)
    if isinstance(limit, int | float) and limit >= 10**9:  # no limit
        return None
    if isinstance(limit, float) and limit >= 1:
        return int(limit)
    return stated.integer(key, 0, least=1) or None
