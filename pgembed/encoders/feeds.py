"""Batches of token ids as the inputs of a graph: padded on the right, or packed end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.tokens import Tokens

Feed = dict[str, npt.NDArray[Any]]
Batch = npt.NDArray[np.intp]
Feeder = Callable[[Tokens, Batch], Feed]


def padded(tokens: Tokens, batch: Batch) -> Feed:
    """Inputs of shape (texts, longest) for :class:`~pgembed.encoders.export.graph.Graph`."""
    inside = _inside(tokens, batch)
    ids = np.zeros(inside.shape, dtype=np.int64)
    ids[inside] = _joined(tokens, batch)
    return {"input_ids": ids, "attention_mask": inside.astype(np.int64)}


def packed(tokens: Tokens, batch: Batch) -> Feed:
    """Inputs for :class:`~pgembed.encoders.export.packed.PackedGraph`, in which no token is padding."""
    inside = _inside(tokens, batch)
    places = np.arange(inside.size, dtype=np.int32).reshape(inside.shape)
    ends = np.cumsum(tokens.lengths[batch])
    return {
        "input_ids": _joined(tokens, batch).astype(np.int64),
        "position_ids": np.broadcast_to(np.arange(inside.shape[1]), inside.shape)[inside].astype(np.int64),
        "token_offset": np.concatenate([places[inside], places[~inside]]).reshape(inside.shape),
        "cumulative_sequence_length": np.concatenate([[0], ends]).astype(np.int32),
        "attention_mask": inside.astype(np.int64),
    }


def _inside(tokens: Tokens, batch: Batch) -> npt.NDArray[np.bool_]:
    """Where a padded batch holds tokens."""
    lengths = tokens.lengths[batch]
    return np.less(np.arange(max(int(lengths.max()), 1)), lengths[:, None])


def _joined(tokens: Tokens, batch: Batch) -> npt.NDArray[np.int32]:
    """The ids of the batch's texts, end to end."""
    lengths = tokens.lengths[batch]
    ends = np.cumsum(lengths)
    # From where each token stands in the batch to where it stands among all.
    shifts = np.repeat(tokens.offsets[batch] - (ends - lengths), lengths)
    joined: npt.NDArray[np.int32] = tokens.ids[np.arange(len(shifts)) + shifts]
    return joined
