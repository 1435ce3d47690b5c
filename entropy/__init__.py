"""Measures of a model's uncertainty: pure functions of `[..., vocab]` logits, and rolling means of their entropies.

Everything is in nats. Nothing here knows models, engines or HTTP.
"""

from waver.entropy.bounds import entropy_bounds, entropy_estimate
from waver.entropy.families import renyi_entropy, tsallis_entropy
from waver.entropy.fused import fastest_measure, measure
from waver.entropy.rolling import BatchedRollingEntropy, RollingEntropy
from waver.entropy.shannon import shannon_entropy, varentropy
from waver.entropy.units import bits_to_nats, nats_to_bits

__all__ = [
    "BatchedRollingEntropy",
    "RollingEntropy",
    "bits_to_nats",
    "entropy_bounds",
    "entropy_estimate",
    "fastest_measure",
    "measure",
    "nats_to_bits",
    "renyi_entropy",
    "shannon_entropy",
    "tsallis_entropy",
    "varentropy",
]
