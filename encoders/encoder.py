"""The seam between the pipeline and a model: what an encoder takes and gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from encoders.version import VersionSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Tokens:
    """Many texts' tokens, unpadded, one text after another: text i owns the next `lengths[i]` entries of `ids`.

    lengths: int32, (n,). ids: integers, (sum of lengths,). A value between threads: nobody writes to it.
    """

    lengths: npt.NDArray[np.int32]
    ids: npt.NDArray[Any]

    def take(self, texts: Sequence[int] | npt.NDArray[np.intp]) -> "Tokens":
        """The tokens of some texts, by index; one at least."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        starts = ends - self.lengths
        return Tokens(self.lengths[texts], np.concatenate([self.ids[starts[one] : ends[one]] for one in texts]))


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """The vectors of many texts, in the order of the texts, and what they cost.

    vectors: float32, (n, dims), C-contiguous. tokens: real ones; padded_tokens: those computed, padding
    included. flops: of the real ones, 0 where no layers are computed. The rest is filled by
    `encoders.engine.Engine`; an encoder leaves it as it is. encode_s: of computing, without the time in which a
    window that was done before was computed beside it: so they add up.
    failed: texts that cannot be embedded, by index, and why: `rescue.OUT_OF_MEMORY` or `rescue.NOT_FINITE`;
    their rows mean nothing. splits: how often a batch was halved for want of memory.
    """

    vectors: npt.NDArray[np.float32]
    tokens: int
    padded_tokens: int
    flops: float = 0.0
    encode_s: float = 0.0
    failed: Mapping[int, str] = field(default_factory=dict[int, str])
    splits: int = 0


class Encoder(Protocol):
    """One exact version of a model: a text's vector depends on that text and `spec`, not on its neighbours.

    Any number of threads may `tokenise` and `encode` at the same time.
    """

    spec: VersionSpec
    dims: int
    batch_tokens: int
    """Tokens of a batch, padding included, that suit the device."""
    workers: int
    """Batches that are computed side by side."""

    @property
    def window_batches(self) -> int:
        """Batches of a window, a worker: where texts are padded, many, so that those of a length meet in one."""
        ...

    @property
    def device(self) -> "torch.device | None":
        """Where layers are computed; None where there are none."""
        ...

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Turn n texts, each of any length and maybe empty, into tokens, cut to the version's most."""
        ...

    def encode(
        self, tokens: Tokens, batch_tokens: int, on_batch: Callable[[], object] = lambda: None, is_urgent: bool = True
    ) -> EncodedBatch:
        """Compute the vectors, in batches of at most `batch_tokens` tokens, padding included.

        `on_batch` is called after each batch: a window may take minutes, and so is seen to move. Batches that are not
        urgent are computed as well as those that are leave room for.

        MemoryError: the device has not the memory for such a batch; what was taken of it is free again.
        """
        ...

    def peak_flops_per_s(self) -> float:
        """Measure what the device's matrix products reach in the type that the model computes in; 0 without layers.

        RuntimeError: it cannot be measured now.
        """
        ...
