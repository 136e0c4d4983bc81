"""How a vector's numbers are stored: float32, float16, int8 of one scale a version, or a bit each."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
OUTPUTS = ("float32", "float16", "int8", "binary")

_BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}
_INT8_MAX = 127
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class VectorForm:
    """One of `OUTPUTS`, and for int8 what one step is worth: number = scale x stored, 127 steps to either side.

    The scale is the version's, never a batch's or a vector's own: so stored numbers of one version may be compared as
    they are, and a vector does not depend on its neighbours. binary: a 1 for each number above 0, eight to a byte, the
    first in the highest bit, as numpy.packbits and sentence-transformers' ubinary have it.
    """

    output: str = "float32"
    scale: float = 0.0

    @property
    def bits(self) -> int:
        """Of one number."""
        return _BITS[self.output]

    def pack(self, vectors: Matrix) -> npt.NDArray[np.generic]:
        """Numbers (n, dims), finite, as they are stored: n rows of bytes, C-contiguous and little-endian.

        What is beyond the range of the type becomes the nearest that is in it.
        """
        if self.output == "float16":
            return np.clip(vectors, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2")
        if self.output == "int8":
            return np.clip(np.rint(vectors / self.scale), -_INT8_MAX, _INT8_MAX).astype(np.int8)
        if self.output == "binary":
            return np.packbits(vectors > 0, axis=1)
        return np.ascontiguousarray(vectors, dtype="<f4")

    def unpack(self, stored: bytes, count: int) -> Matrix:
        """The numbers of `count` vectors, one after another, as float32 (count, dims); binary gives -1 and 1."""
        if self.output == "binary":
            bits = np.unpackbits(np.frombuffer(stored, np.uint8))
            return (bits.astype(np.float32) * 2 - 1).reshape(count, -1)
        kind = {"float32": "<f4", "float16": "<f2", "int8": "i1"}[self.output]
        numbers = np.frombuffer(stored, kind).reshape(count, -1)
        return numbers * np.float32(self.scale) if self.output == "int8" else numbers.astype(np.float32, copy=False)

    def dims_of(self, stored_bytes: int) -> int:
        """How many numbers a vector of so many bytes has."""
        return stored_bytes * 8 // self.bits


def suited_scale(vectors: Matrix) -> float:
    """The scale at which int8 holds these vectors (n, dims), and nearly all others of their kind, without clipping.

    The largest number among them is the last step but an eighth, which is left for others.
    """
    return float(np.abs(vectors).max()) / (_INT8_MAX * 7 / 8)
