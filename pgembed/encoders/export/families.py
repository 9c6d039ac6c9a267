"""The architectures that are built directly, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from typing import Protocol

from pgembed.encoders.export import bert, distilbert, modernbert, mpnet, roberta
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph
from pgembed.exc import UnsupportedArchitectureError


class Family(Protocol):
    """What a module such as ``bert`` provides.

    ``PREFIXES`` may stand before the names of its weights; ``ANCHORS`` are names of its embedding table.
    """

    PREFIXES: tuple[str, ...]
    ANCHORS: tuple[str, ...]

    def token_limit(self, config: ModelConfig) -> int:
        """The longest text in tokens."""
        ...

    def build(self, graph: Graph, config: ModelConfig) -> str:
        """Add the model to the graph; returns the last hidden state, (tokens, width)."""
        ...


FAMILIES: dict[str, Family] = {
    "bert": bert,
    "roberta": roberta,
    "xlm-roberta": roberta,
    "camembert": roberta,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "modernbert": modernbert,
}


def family(config: ModelConfig) -> Family:
    """The family of a model.

    :raises UnsupportedArchitectureError: none builds it.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UnsupportedArchitectureError(config.model_type, tuple(FAMILIES)) from None
