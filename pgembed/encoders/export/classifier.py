"""What the files of a sequence classifier say: its labels, and how scores are made of its logits.

The reference is ``CrossEncoder`` of sentence-transformers, with ``transformers`` below it. A folder is one of
a classifier if its list of modules says so or, without a list, the class that ``config.json`` names.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgembed.encoders.files import Folder, JsonObject

TASK = "sequence-classification"
_CLASS = "ForSequenceClassification"
_MOST_LABELS = 10_000
# Tokenizers that give them by themselves, and their models.
_SEGMENTING = {"BertTokenizer": "bert", "ElectraTokenizer": "electra", "DebertaV2Tokenizer": "deberta-v2"}
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "identity"}


@dataclass(frozen=True)
class Classifier:
    """What the files of a classifier say.

    :ivar labels: names of the labels, in the order of the logits.
    :ivar activation: what makes scores of logits, as of :class:`EncoderSpec`.
    :ivar segments: whether the tokenizer says which text of a pair each token is of.
    """

    labels: tuple[str, ...]
    activation: str
    segments: bool


def names_classifier(config: JsonObject) -> bool:
    """Whether ``config.json`` names the class of a classifier."""
    stated = config.texts("architectures", [])
    return bool(stated) and stated[0].endswith(_CLASS)


def read(folder: Folder, saved: JsonObject) -> Classifier:
    """
    :param folder: that of the transformer.
    :param saved: what sentence-transformers has saved of the model beside it.
    :raises EncoderFilesError: a file states something that cannot be done.
    """
    config = JsonObject.read(folder.file("config.json"))
    labels = _labels(config)
    if saved.get("default_prompt_name"):
        raise saved.wrong("default_prompt_name", needed="no prompt: texts of a pair have none")
    return Classifier(labels, _activation(config, saved, len(labels)), _segments(folder, config))


def _labels(config: JsonObject) -> tuple[str, ...]:
    """Names by ``id2label``; transformers leaves it out where there are two labels without names."""
    count = config.integer("num_labels", 2, least=1, most=_MOST_LABELS)
    named = config.table("id2label")
    if not named:
        return tuple(f"LABEL_{index}" for index in range(count))
    if set(named) != {str(index) for index in range(len(named))} or len(named) > _MOST_LABELS:
        raise config.wrong("id2label", needed="the name of each label, numbered from 0")
    labels = tuple(named.text(str(index)) for index in range(len(named)))
    if len(set(labels)) < len(labels) or not all(label.isprintable() for label in labels):
        raise config.wrong("id2label", needed="different names, without control characters")
    return labels


def _activation(config: JsonObject, saved: JsonObject, labels: int) -> str:
    """Where the reference looks for it, in its order; a class that is not torch's counts as none there.

    :raises EncoderFilesError: it is another one of torch's.
    """
    older = config.table("sentence_transformers")
    for settings, key in (
        (saved, "activation_fn"),
        (older, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    ):
        stated = settings.text(key, "")
        if stated.startswith("torch."):
            name = stated.rpartition(".")[2]
            if name not in _ACTIVATIONS:
                raise settings.wrong(key, needed=" or ".join(_ACTIVATIONS))
            return _ACTIVATIONS[name]
        if stated:
            break
    return "sigmoid" if labels == 1 else "identity"


def _segments(folder: Folder, config: JsonObject) -> bool:
    """Whether the tokenizer gives ``token_type_ids``, as its settings say or else its class does."""
    settings = JsonObject.optional(folder.file("tokenizer_config.json"))
    named = settings.text("tokenizer_class", "").removesuffix("Fast")
    does = named in _SEGMENTING if named else config.get("model_type") in _SEGMENTING.values()
    return "token_type_ids" in settings.texts("model_input_names", ["token_type_ids"] if does else [])
