"""The graph for 8 bit integers on the CPU: weights quantised per column, activations while it runs.

Weights use 7 of their 8 bits. Processors without VNNI add pairs of products in 16 bits, which saturate with
the full range; with 7 bits all processors compute the same vectors, so that one fingerprint means one vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.export.graph import MICROSOFT, Graph

_HIGHEST = 63


class Int8Graph(Graph):
    """As :class:`Graph`, with the linear layers of the transformer in 8 bit."""

    def product(
        self, hidden: str, name: str, matrix: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
    ) -> str:
        """``hidden @ matrix + bias``."""
        if self.pooled:  # dense layers behind the pooling are small and stay exact
            return super().product(hidden, name, matrix, bias)
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12).astype(np.float32) / np.float32(_HIGHEST)
        quantised = np.rint(matrix / scale).astype(np.int8)
        inputs = [
            hidden,
            self.initializer(f"{name}.weight.int8", quantised),
            self.initializer(f"{name}.scale", scale),
            self.initializer(f"{name}.zero", np.zeros(len(scale), dtype=np.int8)),
        ]
        if bias is not None:
            inputs.append(self.initializer(f"{name}.bias", bias))
        return self.op("DynamicQuantizeMatMul", *inputs, domain=MICROSOFT)
