"""Numbers on their way to a device, without waiting for what it is at."""

from __future__ import annotations

from typing import Any

import torch


def send(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Lists or arrays as a tensor on the device. For CUDA it goes through pinned memory, from which a copy joins the
    device's queue; any other copy would wait for the model's pass."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
