"""Linear layers of a CPU: weights laid out once as oneDNN wants them, and GELU computed where its input is made.

These are the operators to which `torch.compile` lowers linear layers on a CPU (torch._inductor.mkldnn_lowerings),
without a compiler on the machine. DECISIONS.md has what they gain.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation


class LaidOutLinear(nn.Module):
    """A linear layer whose weights are in oneDNN's own layout; with `gelu` also its activation, exact (erf)."""

    def __init__(self, linear: nn.Linear, gelu: bool, rows: int) -> None:
        """`rows`: tokens of a batch, about; they decide the layout."""
        super().__init__()
        bias = cast(Tensor | None, linear.bias)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), rows)
        self.bias = None if bias is None else bias.detach()
        self._after = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, *self._after)


def lay_out_linears(model: nn.Module, rows: int) -> None:
    """Replace every linear layer of a model on a CPU, and the GELU right behind one where the module says so by name.

    Does nothing where torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        # BERT and its kin name the two so.
        if isinstance(getattr(module, "intermediate_act_fn", None), GELUActivation):
            module.dense = LaidOutLinear(module.dense, gelu=True, rows=rows)  # pyright: ignore[reportArgumentType]
            module.intermediate_act_fn = nn.Identity()
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, LaidOutLinear(child, gelu=False, rows=rows))
