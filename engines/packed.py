"""Keep the weights of linear layers in the order in which the processor's matrix products read them.

On a CPU, a product with a bfloat16 matrix begins with putting the matrix into that order, anew each time, which for the
few rows of a decoding step takes about as long as the product itself. oneDNN, which PyTorch calls, can be given it in
order.
"""

from __future__ import annotations

import torch
from torch import nn

LEAST = 1 << 18
"""Numbers of a matrix from which on it is worth it."""
ROWS = 8
"""Rows for which the order is chosen; with others the product is the same."""


class PackedLinear(nn.Module):
    """Computes what an `nn.Linear` does, for inference only; its matrix cannot be read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows `[..., in]` to `[..., out]`."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product


def can_pack() -> bool:
    """Return whether this processor and this build of PyTorch know bfloat16 matrices in that order."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


@torch.inference_mode()
def pack(model: nn.Module) -> int:
    """Replace the large bfloat16 linear layers of a model on the CPU, in place, where that is possible.

    A matrix that is also the model's embeddings stays there as well. The others are kept once.

    Returns:
        How many layers were replaced.
    """
    if not can_pack():
        return 0
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _worth_it(child.weight):
                setattr(parent, name, PackedLinear(child))
                replaced += 1
    return replaced


def _worth_it(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.numel() >= LEAST
