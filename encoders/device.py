"""Where to compute: the setting `device`, and what a device makes of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from schemas.errors import Fatal

if TYPE_CHECKING:
    import torch

BATCH_TOKENS_MIN = 64
BATCH_TOKENS_CPU = 2_048
"""Measured, for packed texts in float32; of a type of half the size twice as many."""
BATCH_TOKENS_PADDED = 512
"""Measured, on a CPU: in larger batches more of it is padding than their products gain."""
BATCH_TOKENS_CUDA = 65_536
"""Not measured: about 2 GB of activations for a large model."""


def resolve_device(device: str, backend: str = "torch") -> "torch.device":
    """Turn auto, cpu, cuda or cuda:<n> into a device that is there. auto: the first GPU, else the CPU.

    Fatal: the device is unknown, not there, or not for this backend.
    """
    import torch  # noqa: PLC0415 - 2 s, which the hash encoder does without

    if backend != "torch":
        if device not in ("auto", "cpu"):
            raise Fatal(f"device={device}, and backend={backend} runs on a CPU: set device to cpu, or backend to torch")
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{index}" for index in range(count))]
    name = {"auto": there[min(1, count)], "cuda": "cuda:0"}.get(device, device)
    if name not in there:
        raise Fatal(f"device={device} is not here: set it to auto or one of {', '.join(there)}")
    return torch.device(name)


def lacks_bfloat16() -> bool:
    """Whether this processor is known to have no instructions for products of bfloat16: torch then takes a slow way."""
    import torch  # noqa: PLC0415 - as above

    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch that will do
    return known.get("architecture") == "x86_64" and not (known.get("avx512_bf16") or known.get("amx_bf16"))


def suited_batch_tokens(device: "torch.device", dtype: "torch.dtype", *, is_packed: bool) -> int:
    """Tokens of one batch, padding included, that suit a device for texts that are packed, or padded.

    A CPU's core is fastest while a layer's activations stay in its cache. A GPU wants enough work to hide the cost
    of starting it.
    """
    if device.type == "cuda":
        return BATCH_TOKENS_CUDA
    return BATCH_TOKENS_CPU * 4 // dtype.itemsize if is_packed else BATCH_TOKENS_PADDED
