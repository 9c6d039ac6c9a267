"""The heads of sequence classifiers: from the last hidden state to a logit for each label.

The forms are those of ``transformers.models``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgembed.encoders.export import pooling
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph
from pgembed.encoders.export.weights import Weights
from pgembed.exc import UnsupportedArchitectureError


@dataclass(frozen=True)
class Form:
    """How a family makes logits of the pooled hidden state: a layer, its activation, the last layer.

    :ivar dense: the first layer's name.
    :ivar last: the last one's.
    :ivar activation: between them; empty where ``config.json`` says it.
    :ivar norm: a layer norm after the activation.
    """

    dense: str
    last: str = "classifier"
    activation: str = "tanh"
    norm: str = ""


_AS_ROBERTA = Form("classifier.dense", last="classifier.out_proj")
_FORMS = {
    "bert": Form("bert.pooler.dense"),
    "roberta": _AS_ROBERTA,
    "xlm-roberta": _AS_ROBERTA,
    "camembert": _AS_ROBERTA,
    "mpnet": _AS_ROBERTA,
    "distilbert": Form("pre_classifier", activation="relu"),
    "modernbert": Form("head.dense", activation="", norm="head.norm"),
}


class ClassifierHead:
    """The layers between the last hidden state and the logits.

    :ivar pooling: the pooling modes.
    :raises UnsupportedArchitectureError: no head is known for the family.
    """

    def __init__(self, config: ModelConfig, files: Sequence[Path], labels: int) -> None:
        form = _FORMS.get(config.model_type)
        if form is None:
            raise UnsupportedArchitectureError(config.model_type, tuple(_FORMS))
        self._form = form
        self._labels = labels
        self._weights = Weights(files)
        self._activation = form.activation or config.activation("classifier_activation")
        self._epsilon = config.number("norm_eps", 1e-5)
        stated = config.text("classifier_pooling", "cls") if form.norm else "cls"
        if stated not in ("cls", "mean"):
            raise config.wrong("classifier_pooling", needed="'cls' or 'mean'")
        self.pooling: tuple[str, ...] = (stated,)

    def add(self, graph: Graph, hidden: str, width: int) -> tuple[str, int]:
        """Add the head to the graph; returns the logits, (texts, labels), and the number of labels."""
        weights, form, label = self._weights, self._form, "head."
        pooled = pooling.pool(graph, hidden, self.pooling)
        dense = graph.linear(pooled, form.dense, width, width, weights=weights, label=label)
        inner = graph.activation(dense, self._activation)
        if form.norm:
            inner = graph.layer_norm(
                inner, form.norm, width, epsilon=self._epsilon, weights=weights, label=label
            )
        logits = graph.linear(inner, form.last, width, self._labels, weights=weights, label=label)
        return logits, self._labels
