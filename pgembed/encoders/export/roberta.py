"""RoBERTa and XLM-R: multilingual-e5, BGE-M3 (dense), paraphrase-multilingual, all-distilroberta.

BERT whose positions begin behind the padding index. Source: ``transformers.models.roberta`` and
``transformers.models.xlm_roberta``.
"""

from __future__ import annotations

from pgembed.encoders.export import bert
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph

PREFIXES: tuple[str, ...] = ("roberta.",)
ANCHORS = bert.ANCHORS


def token_limit(config: ModelConfig) -> int:
    """The longest text in tokens."""
    return config.size("max_position_embeddings") - _first_position(config)


def build(graph: Graph, config: ModelConfig) -> str:
    """The last hidden state, (tokens, width)."""
    return bert.transformer(graph, config, first_position=_first_position(config))


def _first_position(config: ModelConfig) -> int:
    return config.integer("pad_token_id", most=config.size("max_position_embeddings") - 2) + 1
