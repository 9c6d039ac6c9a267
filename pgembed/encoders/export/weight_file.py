"""The file beside the graphs that holds their weights.

All but the smallest weights are written to it, and ONNX Runtime maps them into memory from there; graphs for
other devices share the file.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

_INLINE_BYTES = 1024


_ALIGNMENT = 4096  # a page, so that a tensor can be mapped


class WeightFile:
    """The file that holds the weights of all graphs of an encoder; each name is written once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._written: dict[str, TensorProto] = {}

    def add(self, name: str, array: npt.NDArray[Any]) -> TensorProto:
        """An initializer called ``name``, kept in the file unless it is small."""
        if array.nbytes <= _INLINE_BYTES:
            return numpy_helper.from_array(np.asarray(array, order="C"), name)
        if name not in self._written:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            tensor = TensorProto(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                dims=array.shape,
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": self._name, "offset": self._file.tell(), "length": array.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._file.write(np.ascontiguousarray(array).data)
            self._written[name] = tensor
        return self._written[name]
