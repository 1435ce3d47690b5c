"""Reward agreement instead of truth: the majority vote of test-time reinforcement learning, as TRL takes a reward."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from waver.answers import last_number
from waver.training.rl.methods.spine import boxed_answer, majority_reward
from waver.training.tasks.rewards import text


def answer_of(said: str) -> str | None:
    """Return what the last box of an answer holds, else its last number; None without either. A number is written in
    one way: 1,200.50 and 1200.5 are the same."""
    found = boxed_answer(said) or last_number(said)
    try:
        return None if found is None else f"{Decimal(found.replace(',', '')).normalize():f}"
    except InvalidOperation:
        return found


def majority(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Reward 1 where the answer of a completion is the one that most completions of its prompt give (TTRL, arXiv
    2504.16084).

    Completions of one prompt are those with equal prompts, of all processes. A completion that is the only one of its
    prompt, as in an evaluation, is judged by the column `answer`, and by nothing where there is none: an agreement
    with oneself says nothing.
    """
    own = [(repr(prompt), answer_of(text(said))) for prompt, said in zip(prompts, completions, strict=True)]
    rows = gather_object(own) if PartialState().num_processes > 1 else own
    place = {asked: i for i, asked in enumerate(dict.fromkeys(asked for asked, _ in rows))}
    group = torch.tensor([place[asked] for asked, _ in rows])
    rewards = majority_reward([answer for _, answer in rows], group).tolist()
    first = PartialState().process_index * len(own)
    sizes = group.bincount()
    known: Sequence[Any] = columns.get("answer") or [None] * len(own)
    found: list[float | None] = []
    for i, (_, answer) in enumerate(own):
        if int(sizes[group[first + i]]) > 1:
            found.append(rewards[first + i])
        else:
            found.append(_judged(answer, known[i]))
    return found


def _judged(answer: str | None, known: Any) -> float | None:
    return None if known is None else float(answer is not None and answer == answer_of(str(known)))
