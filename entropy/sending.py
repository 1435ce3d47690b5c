"""Numbers on their way to a device, without waiting for what it is at; and which library does arithmetic on a few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def send(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Lists or arrays as a tensor on the device. For CUDA it goes through pinned memory, from which a copy joins the
    device's queue; any other copy would wait for the model's pass."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def library(device: torch.device) -> Any:
    """What does the arithmetic on a few numbers of each row, in functions that both libraries have under one name:
    NumPy beside a CPU's logits, where a model's pass has emptied the caches and torch's calls take five times as long;
    else torch, on the device."""
    return np if device.type == "cpu" else torch


def small(values: Any, device: torch.device, dtype: str = "int64") -> Any:
    """Lists as an array of `library(device)`."""
    lib = library(device)
    return np.array(values, dtype) if lib is np else send(values, device, getattr(torch, dtype))


def shared(tensor: torch.Tensor) -> Any:
    """A tensor as an array of `library(tensor.device)`, in the same memory."""
    return tensor.numpy() if library(tensor.device) is np else tensor
