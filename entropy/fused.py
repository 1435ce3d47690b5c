"""Measure entropy, log-partition and peak of every row in one pass over the logits, for use in a decoding loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from waver.devices import Array, array_namespace

Measures = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

ONE_CORE = 2**19
"""Most logits on a CPU that one core measures faster than several."""


def measure(logits: torch.Tensor) -> Measures:
    """Compute entropy (nats), log-partition and peak of `[rows, vocab]` float32 logits; each `[rows]`.

    The peak is the largest logit, and the log-partition that of logits with the peak at 0, where float32 is finest: a
    token's log-probability is `(logit - peak) - log_partition`, and the likeliest one's `-log_partition`.

    `-inf` marks a token that cannot occur; a NaN makes its row's entropy NaN. Written without any in-place step, so
    that a compiler makes two passes over memory of it; the value is `shannon_entropy`'s.
    """
    peak = logits.amax(-1, keepdim=True)
    centred = logits - peak.clamp(min=torch.finfo(logits.dtype).min)  # a row may have no token at all
    weights = centred.exp()
    partition = weights.sum(-1)
    weighted = torch.where(weights == 0, 0.0, weights * centred).sum(-1)
    log_partition = partition.log()
    entropy = torch.where(partition == 0, 0.0, log_partition - weighted / partition)
    return entropy, log_partition, peak[:, 0]


def fastest_measure(vocabulary: int, device: torch.device, most: int) -> Callable[[Any], tuple[Any, ...]]:
    """Choose the fastest form of `measure` for each number of rows, of which there are at most `most`. It takes and
    returns arrays of `waver.devices.array_namespace`."""
    if array_namespace(device) is torch:
        return _compiled(vocabulary, device)
    from waver.entropy import cpu_kernels  # compiled by Numba, the first time in three seconds

    def on_one_core(logits: Array) -> tuple[Array, ...]:
        found = np.empty((3, len(logits)), np.float32)
        cpu_kernels.measure(np.ascontiguousarray(logits), found)
        return tuple(found)

    if vocabulary * most <= ONE_CORE or torch.get_num_threads() == 1:
        return on_one_core
    compiled = _compiled(vocabulary, device)

    def on_all_cores(logits: Array) -> tuple[Array, ...]:
        return tuple(each.numpy() for each in compiled(torch.from_numpy(logits)))

    return lambda logits: (on_one_core if logits.size <= ONE_CORE else on_all_cores)(logits)


@cache
def _compiled(vocabulary: int, device: torch.device) -> Callable[[torch.Tensor], Measures]:
    """Compile `measure` for all of a device's cores; without a compiler, `measure` as it is."""
    compiled = torch.compile(measure, dynamic=True)
    try:
        with torch.inference_mode():  # as it will be called: another mode would compile it anew
            for rows in (1, 2, 3):  # a batch of one is specialised; two sizes show that the rest is not
                compiled(torch.zeros(rows, vocabulary, device=device))
    except Exception:  # no C++ compiler, or no Triton: each raises its own kind
        return measure
    return compiled
