"""Reward answers that agree with those to other wordings of the question, as TRL calls a reward function."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from waver.training.tasks.consistency.measures import exact_rewards, relaxed_rewards
from waver.training.tasks.consistency.similarity import Similarity, bleu2, token_f1

Reward = Callable[..., list[float | None]]
RIGHT = 0.5
"""F1 from which an answer counts as right in what is logged."""


def group_reward(similarity: Similarity = bleu2, wordings: int | None = 3, samples: int = 1) -> Reward:
    """Make a reward function of a similarity, for a module of yours that `--reward` names.

    It needs the columns `set` (which question) and `question` (which wording), and compares the answers of all
    processes. An answer whose question comes in no other wording is not scored.

    Args:
        wordings, samples: of the relaxed reward; `wordings=None` is the exact one.
    """

    def agrees(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        said = [_text(each) for each in completions]
        own = list(zip(columns["set"], columns["question"], said, strict=True))
        rows = gather_object(own) if PartialState().num_processes > 1 else own
        step = getattr(columns.get("trainer_state"), "global_step", 0)
        scores = _scores(rows, similarity, wordings, samples, step)
        first = PartialState().process_index * len(own)
        mine = scores[first : first + len(own)]
        _log(mine, said, columns)
        return mine

    return agrees


def _scores(
    rows: Sequence[tuple[Any, str, str]], similarity: Similarity, wordings: int | None, samples: int, step: int
) -> list[float | None]:
    """Return the reward of each (question, wording, answer)."""
    places: dict[Any, dict[str, list[int]]] = {}
    for place, (name, wording, _) in enumerate(rows):
        places.setdefault(name, {}).setdefault(wording, []).append(place)
    found: list[float | None] = [None] * len(rows)
    for name, groups in places.items():
        if len(groups) < 2:
            continue
        answers = [[rows[place][2] for place in group] for group in groups.values()]
        if wordings is None:
            rewards = exact_rewards(answers, similarity)
        else:
            rng = random.Random(f"consistency:{name}:{step}")
            rewards = relaxed_rewards(answers, similarity, rng, wordings, samples)
        for group, values in zip(groups.values(), rewards, strict=True):
            for place, value in zip(group, values, strict=True):
                found[place] = value
    return found


def _log(scores: Sequence[float | None], said: Sequence[str], columns: dict[str, Any]) -> None:
    """Log agreement of right and of wrong answers apart, where answers are known."""
    log, known = columns.get("log_metric"), columns.get("answer")
    if log is None or known is None:
        return
    for name, wanted in (("consistency/right", True), ("consistency/wrong", False)):
        some = [
            score
            for score, text, answer in zip(scores, said, known, strict=True)
            if score is not None and answer is not None and (best_f1(text, answer) >= RIGHT) is wanted
        ]
        if some:
            log(name, math.fsum(some) / len(some))


def best_f1(said: str, known: Any) -> float:
    """Return the F1 of an answer against a known one, or the best of several."""
    return max(token_f1(said, str(each)) for each in (known if isinstance(known, list) else [known]))


def f1(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """Return the F1 of each answer against the known one, or the best of several known ones; None without any."""
    pairs = zip(map(_text, completions), answer, strict=True)
    return [None if known is None else best_f1(said, known) for said, known in pairs]


def _text(completion: Any) -> str:
    said = completion if isinstance(completion, str) else str(completion[-1]["content"])
    return said.rpartition("</think>")[2].strip()


relaxed = group_reward()
"""The reward that Con-RAG trains with: BLEU-2, three other wordings, one answer to each."""
every = group_reward(wordings=None)
"""The same over all answers to all other wordings."""
