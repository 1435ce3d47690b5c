"""Predict a task's hypotheses by a model: the letters of the options (C-IP, arXiv 2507.03279)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from waver.concurrency import together
from waver.engines.base import Sampling, Unsupported
from waver.policies.ask.history import Asked
from waver.policies.ask.table import Array
from waver.policies.ask.task import LETTERS, AskTask
from waver.policies.base import Proceed
from waver.policies.budget import Budget, Ledger, OutOfTokens, metered
from waver.policies.job import Job

ALTERNATIVES = 20
"""Likeliest tokens among which the letters of the options are looked for."""
PROMPT = (
    "Find out which {subject} it is. The options are:\n{options}\n\nWhat is known:\n{known}\n\n"
    "Which option is it? Answer with its letter only."
)
PREFIX = "The letter is"


def prompt(job: Job, task: AskTask, asked: Sequence[Asked]) -> tuple[int, ...]:
    """Make the prompt at whose end the letter of the hypothesis comes."""
    options = "\n".join(f"{letter}. {name}" for letter, name in zip(LETTERS, task.hypotheses, strict=False))
    answers = {True: "yes", False: "no", None: "not known"}
    known = "\n".join(f"- {task.questions[each.question]} {answers[each.answer]}" for each in asked) or "- nothing yet"
    words = PROMPT.format(subject=task.subject, options=options, known=known)
    tokens = job.writer.tokens
    try:
        front = tokens.chat([{"role": "user", "content": words}])
    except ValueError:  # no chat template
        front = tokens.encode(f"{words}\n")
    return (*front, *tokens.encode_plain(PREFIX))


async def by_model(
    job: Job, task: AskTask, histories: Sequence[Sequence[Asked]], ledger: Ledger, budget: Budget
) -> Array:
    """Ask the job's engine for `f_y` of several histories, `[histories, hypotheses]`: one token each, of whose
    alternatives the letters count, by the model's own distribution. A letter that is not among them gets half of the
    least that was listed.

    Raises:
        OutOfTokens: the budget is spent. Unsupported: the context has no room.
    """

    async def one(asked: Sequence[Asked]) -> Array:
        ids = prompt(job, task, asked)
        if len(ids) >= job.writer.context_length:
            raise Unsupported(f"the task's {len(ids)} tokens leave no room in the engine's context", "task")
        sampling = Sampling(temperature=0.0, max_tokens=1, top_logprobs=ALTERNATIVES)
        steps, _ = await metered(replace(job, prompt_ids=ids, sampling=sampling), Proceed(), ledger, budget)
        return of_alternatives(job, steps[0].top_logprobs, len(task.hypotheses))

    if budget.left < len(histories):  # one token each, all at the same time
        raise OutOfTokens
    return np.stack(await together(*(one(asked) for asked in histories)))


def of_alternatives(job: Job, listed: Sequence[tuple[int, float]], classes: int) -> Array:
    """Compute `f_y` `[classes]` from the likeliest tokens and their log-probabilities."""
    mass = np.zeros(classes)
    places = {letter: i for i, letter in enumerate(LETTERS[:classes])}
    for token, logprob in listed:
        if (place := places.get(job.writer.tokens.token_str(token).strip())) is not None:
            mass[place] += math.exp(logprob)
    least = 0.5 * math.exp(min((p for _, p in listed), default=0.0))
    mass = np.where(mass > 0, mass, max(least, 1e-12))
    return np.asarray(mass / mass.sum(), np.float64)
