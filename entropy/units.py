"""Convert between nats (natural logarithm), the unit used everywhere here, and bits (base 2), that of many papers. 1
bit = 0.693147 nats."""

import math
from typing import TypeVar

import torch

Quantity = TypeVar("Quantity", float, torch.Tensor)


def bits_to_nats(bits: Quantity) -> Quantity:
    """Convert an entropy or a threshold from bits to nats."""
    return bits * math.log(2.0)


def nats_to_bits(nats: Quantity) -> Quantity:
    """Convert an entropy or a threshold from nats to bits."""
    return nats / math.log(2.0)
