"""Batches of texts of similar length, as the inputs of a graph: padded on the right, or packed end to end.

Padding is wasted work, and so is every further batch: it reads all weights again and wakes all threads. With
the overhead of a batch stated in tokens, texts, sorted by length, are divided where the sum is least. The
budget bounds the memory of a batch, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pgembed.encoders.text.tokenizer import Tokens

Feed = dict[str, npt.NDArray[Any]]
Batch = npt.NDArray[np.intp]  # indices of texts
Lengths = npt.NDArray[np.int64]
Number = TypeVar("Number", bound=np.integer[Any])


class Allocate(Protocol):
    """Where the arrays of a feed come from."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array to be filled."""
        ...


Feeder = Callable[[Tokens, Batch, Allocate], Feed]


def batches(lengths: Lengths, *, budget: int, overhead: int) -> Iterator[Batch]:
    """Indices into ``lengths``, batch by batch, the longest texts first.

    Longest first, so that memory is allocated once and reused for all others.

    :param budget: tokens of a batch, padding included; a single longer text makes a batch.
    :param overhead: what a batch costs beyond its tokens, as a number of tokens.
    """
    if len(lengths) == 1:  # a query, whose time counts
        yield np.zeros(1, dtype=np.intp)
        return
    order = np.argsort(-lengths, kind="stable")
    falling = np.maximum(lengths[order], 1)
    for start, end in _groups(falling, budget, overhead):
        rows = max(budget // int(falling[start]), 1)
        for first in range(start, end, rows):
            yield order[first : min(first + rows, end)]


def _groups(falling: Lengths, budget: int, overhead: int) -> list[tuple[int, int]]:
    """Where to divide: the cheapest way to pad the texts of each group to its first.

    The cheapest way for all texts is the cheapest way for the longer ones, and one group more.
    """
    borders = np.flatnonzero(np.diff(falling, prepend=0, append=0))
    longest = falling[borders[:-1]]
    least = np.zeros(len(borders))
    last = np.zeros(len(borders), dtype=np.intp)
    for end in range(1, len(borders)):
        tokens = longest[:end] * (borders[end] - borders[:end])
        cost = least[:end] + tokens + overhead * -(-tokens // budget)
        last[end] = cost.argmin()
        least[end] = cost[last[end]]
    groups = []
    end = len(borders) - 1
    while end > 0:
        groups.append((int(borders[last[end]]), int(borders[end])))
        end = int(last[end])
    return groups[::-1]


def fresh(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:  # noqa: ARG001
    """A new array."""
    return np.empty(shape, dtype=dtype)


def padded(tokens: Tokens, batch: Batch, new: Allocate = fresh) -> Feed:
    """Inputs of shape (texts, longest) for :class:`~pgembed.encoders.export.graph.Graph`."""
    inside = _inside(tokens, batch)
    ids = new("input_ids", inside.shape, np.int64)
    ids.fill(0)
    ids[inside] = _joined(tokens, batch, tokens.ids)
    mask = new("attention_mask", inside.shape, np.int64)
    np.copyto(mask, inside)
    feed = {"input_ids": ids, "attention_mask": mask}
    if tokens.segments is not None:
        segments = feed["token_type_ids"] = new("token_type_ids", inside.shape, np.int64)
        segments.fill(0)
        segments[inside] = _joined(tokens, batch, tokens.segments)
    return feed


def packed(tokens: Tokens, batch: Batch, new: Allocate = fresh) -> Feed:
    """Inputs without padding, for :class:`~pgembed.encoders.export.graph_variants.PackedGraph`."""
    inside = _inside(tokens, batch)
    joined = _joined(tokens, batch, tokens.ids)
    feed = {
        "input_ids": new("input_ids", joined.shape, np.int64),
        "position_ids": new("position_ids", joined.shape, np.int64),
        "token_offset": new("token_offset", inside.shape, np.int32),
        "cumulative_sequence_length": new("cumulative_sequence_length", (len(batch) + 1,), np.int32),
        "attention_mask": new("attention_mask", inside.shape, np.int64),
    }
    places = np.arange(inside.size, dtype=np.int32).reshape(inside.shape)
    offset = feed["token_offset"].reshape(-1)
    offset[: len(joined)], offset[len(joined) :] = places[inside], places[~inside]
    np.copyto(feed["input_ids"], joined)
    np.copyto(feed["position_ids"], np.broadcast_to(np.arange(inside.shape[1]), inside.shape)[inside])
    feed["cumulative_sequence_length"][0] = 0
    np.cumsum(tokens.lengths[batch], out=feed["cumulative_sequence_length"][1:], dtype=np.int32)
    np.copyto(feed["attention_mask"], inside)
    if tokens.segments is not None:
        segments = feed["token_type_ids"] = new("token_type_ids", joined.shape, np.int64)
        np.copyto(segments, _joined(tokens, batch, tokens.segments))
    return feed


def without_prompt(feed: Feed, skipped: int, new: Allocate = fresh) -> None:
    """Add the mask of what is pooled to a feed: all but the first ``skipped`` tokens of each text."""
    mask = feed["pooling_mask"] = new("pooling_mask", feed["attention_mask"].shape, np.int64)
    np.copyto(mask, feed["attention_mask"])
    mask[:, :skipped] = 0


def _inside(tokens: Tokens, batch: Batch) -> npt.NDArray[np.bool_]:
    """Where a padded batch holds tokens."""
    lengths = tokens.lengths[batch]
    return np.less(np.arange(max(int(lengths.max()), 1)), lengths[:, None])


def _joined(tokens: Tokens, batch: Batch, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """What ``values`` has for each token, of the batch's texts end to end."""
    lengths = tokens.lengths[batch]
    ends = np.cumsum(lengths)
    # From the place of each token in the batch to its place among all.
    shifts = np.repeat(tokens.offsets[batch] - (ends - lengths), lengths)
    joined: npt.NDArray[Number] = values[np.arange(len(shifts)) + shifts]
    return joined
