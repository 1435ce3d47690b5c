"""Copy small arrays to a device asynchronously, and choose between NumPy and torch for small arithmetic.

Every package may import it. `array_namespace` gives NumPy beside a CPU's logits and torch elsewhere; the other
functions make and view arrays of that library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Copy lists or arrays to a tensor on the device. For CUDA the copy goes through pinned memory, so that it is
    queued and does not wait for the forward pass."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def array_namespace(device: torch.device) -> Any:
    """Choose the library for arithmetic on a few numbers of each row, used by functions that both libraries have under
    one name: NumPy for a CPU's logits, where torch's calls take five times as long; torch elsewhere, on the device."""
    return np if device.type == "cpu" else torch


def make_array(values: Any, device: torch.device, dtype: str = "int64") -> Any:
    """Copy lists to an array of `array_namespace(device)`."""
    namespace = array_namespace(device)
    return np.array(values, dtype) if namespace is np else to_device(values, device, getattr(torch, dtype))


def as_array(tensor: torch.Tensor) -> Any:
    """View a tensor as an array of `array_namespace(tensor.device)`, in the same memory."""
    return tensor.numpy() if array_namespace(tensor.device) is np else tensor
