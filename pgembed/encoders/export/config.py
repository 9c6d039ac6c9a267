"""``config.json`` of a model, read with errors that name the file and the key."""

from __future__ import annotations

from pgembed.encoders.export.graph import ACTIVATIONS
from pgembed.encoders.files import JsonObject

_LARGEST = 1_000_000  # of a width or a number of positions, far above that of any model
_DEEPEST = 1000


class ModelConfig(JsonObject):
    """The values of ``config.json``."""

    @property
    def model_type(self) -> str:
        """The architecture's name, such as ``"bert"``."""
        return self.text("model_type", "unknown")

    def size(self, key: str) -> int:
        """A width, or a number of positions."""
        return self.integer(key, least=1, most=_LARGEST)

    def layers(self, key: str) -> int:
        """The number of layers."""
        return self.integer(key, least=1, most=_DEEPEST)

    def heads(self, key: str, width: int) -> int:
        """The number of heads that share ``width``.

        :raises EncoderFilesError: they cannot share it evenly.
        """
        heads = self.integer(key, least=1)
        if width % heads:
            raise self.wrong(key, needed=f"a divisor of {width}, the width")
        return heads

    def activation(self, key: str) -> str:
        """The name of an activation.

        :raises EncoderFilesError: the graph does not have it.
        """
        value = self.get(key)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.wrong(key, needed=" or ".join(ACTIVATIONS))
        return value
