"""Dense layers on pooled vectors, as sentence-transformers' Dense."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from encoders.model_folder import Dense
from schemas.errors import Fatal

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda rows: rows,
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One layer, in float32 whatever the model computes in: it costs nothing beside it."""

    weight: Tensor
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor]
    residual: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, in) to (n, out)."""
        out = self.activation(functional.linear(rows, self.weight, self.bias))
        if self.residual is None:
            return out
        return out + (functional.linear(rows, self.residual) if self.residual.numel() else rows)


def load_dense(dense: Dense, width: int, device: torch.device) -> DenseLayer:
    """Load a layer that takes vectors of `width` numbers. Fatal: its weights are broken, or of another shape."""
    try:
        weights = {
            name: weight.float().to(device) for name, weight in load_file(dense.folder / "model.safetensors").items()
        }
    except (SafetensorError, OSError) as error:
        raise Fatal(f"model={dense.folder}: its weights cannot be read: {error}") from error
    weight, bias, residual = (weights.get(name) for name in ("linear.weight", "linear.bias", "residual.weight"))
    if weight is None or weight.shape != (dense.dims, width):
        raise Fatal(f"model={dense.folder}: its weights do not take {width} numbers to {dense.dims}: fetch it again")
    if dense.is_residual and residual is None:
        residual = torch.empty(0, device=device)  # what comes in is added as it is
    return DenseLayer(weight, bias, _ACTIVATIONS[dense.activation], residual if dense.is_residual else None)
