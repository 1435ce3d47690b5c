"""Build the prompt of a teacher that is told how the attempts went: what DistIL's self-distillation learns from.

Of the same question, the first other attempt that succeeded, else what the environment says of the attempt itself
(as in SDPO's released code, which the paper compares with). An attempt with neither teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

THINK_END = "</think>"
PEER = "Another attempt at this, which succeeded:"
TOLD = "What was found wrong with an earlier attempt:"
AGAIN = "Now answer the original question."


def hints(
    answers: Sequence[str],
    rewards: Sequence[float],
    group: Sequence[int],
    told: Sequence[str | None],
    threshold: float = 0.5,
    both: bool = False,
) -> list[str | None]:
    """Return for each attempt what its teacher is told; None for nothing.

    Args:
        answers: texts of the attempts. group: the same for attempts at one question. told: the environment's feedback
            on each. threshold: the least reward of a success. both: whether feedback is told beside a success, too.
    """
    found: list[str | None] = []
    for place, own in enumerate(group):
        peer = next(
            (
                answers[other]
                for other, theirs in enumerate(group)
                if theirs == own and other != place and rewards[other] >= threshold
            ),
            None,
        )
        parts = []
        if peer is not None:
            parts.append(f"{PEER}\n{peer.rpartition(THINK_END)[2].strip()}")
        if told[place] and (both or peer is None):
            parts.append(f"{TOLD}\n{told[place]}")
        found.append("\n\n".join(parts) or None)
    return found


def with_hint(prompt: Any, hint: str) -> Any:
    """Return a prompt, a text or messages, whose last user turn is followed by a hint."""
    if isinstance(prompt, str):
        return f"{prompt}\n\n{hint}\n\n{AGAIN}\n"
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    changed = {**prompt[last], "content": f"{prompt[last]['content']}\n\n{hint}\n\n{AGAIN}"}
    return [*prompt[:last], changed, *prompt[last + 1 :]]


def known_answer(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[str | None]:
    """Tell the known answer of each question, as TRL calls a reward function: for `--feedback`."""
    return [f"The right answer is {each}." for each in answer]
