"""Share out rows of different lengths among forward passes.

A pass is as wide as its longest row: the others are padded, and padding is computed like tokens. Each further pass
reads all weights once more.
"""

from __future__ import annotations

from collections.abc import Sequence

RATE = 1.2e11
"""Parameters times tokens that two cores compute in a second, in bfloat16: 80 tokens of a model of 1.5 billion."""
OWN_COST = {"cpu": (12.0, 5e7)}
"""Tokens whose computation takes as long as a pass does before its first one, by kind of device: to read the weights,
and for each layer, divided by the model's parameters, to start its operations. On two cores a model of 0.5 billion
parameters takes 61 ms and then 5 ms a token, one of 1.5 billion 142 ms and 12 ms a token."""
OWN_COST_ELSEWHERE = (128.0, 9e10)
PASS_TOKENS, LEAST = 2048, 64
"""Most prompt tokens of a pass; and on a CPU, where a large model would take long for these, at least so many."""
PASS_SECONDS = 2.0
"""Time that a pass over prompts may take on a CPU: it holds up the answers that are being written."""


def own_cost(device: str, parameters: int, layers: int) -> float:
    """Return how many tokens' time a pass takes before its first token, estimated: the same on each start, as the rows
    of a pass affect the rounding of its results."""
    weights, layer = OWN_COST.get(device, OWN_COST_ELSEWHERE)
    return weights + layer * layers / parameters


def most_tokens(device: str, parameters: int) -> int:
    """Return the most prompt tokens of a pass, so that a long prompt does not hold up the others for long."""
    if device != "cpu":
        return PASS_TOKENS
    return min(max(int(PASS_SECONDS * RATE / parameters), LEAST), PASS_TOKENS)


def share_out(lengths: Sequence[int], own: float) -> list[list[int]]:
    """Return the rows of each pass, so that all passes together cost the least.

    Args:
        lengths: new tokens of each row.
        own: what a pass costs before its first token, in tokens.
    """
    distinct = sorted(set(lengths))
    if len(distinct) < 2:
        return [list(range(len(lengths)))] if lengths else []
    rows = [lengths.count(length) for length in distinct]
    # The cheapest passes of the shortest rows, for more and more of these: what they cost, and where the last begins.
    best: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(distinct) + 1):
        begins = range(end)
        best.append(min((best[b][0] + own + sum(rows[b:end]) * distinct[end - 1], b) for b in begins))
    out, end = [], len(distinct)
    while end:
        begin = best[end][1]
        held = set(distinct[begin:end])
        out.append([i for i, length in enumerate(lengths) if length in held])
        end = begin
    return out[::-1]
