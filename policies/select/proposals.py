"""Goals that a model proposes: it splits a question into sub-questions that an answer has to settle (BES, arXiv
2605.28814, as for MuSiQue).

A sub-question is covered where a sentence of the text is like it: a cosine of at least 0.6 between their embeddings,
or, where there is no embedder, 0.6 of its words in the sentence. Sub-questions count in order, up to the first that is
not covered, and weigh 0.3 beside 0.7 for the answer itself; beside goals of another kind they are one goal more. They
say where a search should go, and not that an answer is right: no code of a model is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from waver.engines.base import NO_TOKEN, Sampling
from waver.goals import MET, Goal, Task, Verdict
from waver.policies.base import Proceed
from waver.policies.budget import Budget, Ledger, OutOfTokens, metered
from waver.policies.job import Job
from waver.policies.services import Services
from waver.policies.uncertainty.similarity import SENTENCE, between
from waver.policies.uncertainty.variants import listed

COVERED = 0.6
TEMPERATURE, TOP_P, TOKENS = 0.3, 0.9, 200
"""Sampling of the sub-questions."""
SENTENCES = 64
"""Sentences of a text that are looked at, the last ones."""
REFERENCE = re.compile(r"#\d{1,3}\b")
WORD = re.compile(r"\w+")
PROMPT = (
    "Split the task below into at most {count} short sub-questions that lead to its answer, in the order in which they "
    "have to be settled. Do not answer them. One to a line, and nothing else.\n\n{question}"
)


async def propose(job: Job, engine: str, count: int, seed: int, ledger: Ledger, budgets: Sequence[Budget]) -> list[str]:
    """Ask an engine for sub-questions; none where the tokens for it are spent, or its context has no room."""
    assert job.question is not None
    writer = job.services.engines[engine]
    words = PROMPT.format(count=count, question=job.question.text)
    try:
        ids = tuple(writer.tokens.chat([{"role": "user", "content": words}]))
    except ValueError:  # no chat template
        ids = tuple(writer.tokens.encode(f"{words}\n"))
    room = min(TOKENS, writer.context_length - len(ids))
    if room < 1:
        return []
    how = Sampling(temperature=TEMPERATURE, top_p=TOP_P, max_tokens=room, seed=seed)
    own = Ledger()
    try:
        steps, _ = await metered(replace(job, prompt_ids=ids, engine=engine, sampling=how), Proceed(), own, budgets[0])
        for budget in budgets[1:]:
            budget.take(own.total)
    except OutOfTokens:
        return []
    finally:
        for name, tokens in own.tokens.items():
            ledger.add(name, tokens)
    text = writer.tokens.decode([step.token for step in steps if step.token != NO_TOKEN])
    return [REFERENCE.sub("[X]", each) for each in listed(text)][:count]


def with_proposals(task: Task | None, proposed: Sequence[str], services: Services) -> Task:
    """Make the task whose goals are sub-questions as well; of them alone where there is no other task."""
    covering = Covering(proposed, services)
    at = 0 if task is None else len(task.names)
    first = at + 1
    leaves = tuple(Goal(first + i) for i in range(len(proposed)))
    names = (*(task.names if task is not None else ()), "all sub-questions", *proposed)
    if task is None:
        root = Goal(0, leaves, ordered=True)
    else:
        root = replace(task.root, children=(*task.root.children, Goal(at, leaves)))

    async def judge(text: str) -> Verdict:
        met = await covering.met(text)
        covered = (float(all(met)), *map(float, met))
        if task is None:
            return Verdict(covered)
        own = await task.judge(text)
        return replace(own, values=(*own.values, *covered))

    return Task(root, names, judge)


class Covering:
    """Tells which sub-questions a text covers; what was seen of a sentence is kept for other texts with it."""

    def __init__(self, questions: Sequence[str], services: Services) -> None:
        self._questions, self._services = tuple(questions), services
        self._seen: dict[str, tuple[bool, ...]] = {}

    async def met(self, text: str) -> list[bool]:
        """Return for each sub-question whether some sentence covers it."""
        sentences = list(dict.fromkeys(each.strip() for each in SENTENCE.findall(text) if WORD.search(each)))
        sentences = sentences[-SENTENCES:]
        if new := [each for each in sentences if each not in self._seen]:
            table = await self._alike(new)
            self._seen |= {
                each: tuple(map(bool, row >= COVERED - (1 - MET))) for each, row in zip(new, table, strict=True)
            }
        rows = [self._seen[each] for each in sentences]
        return [any(row[i] for row in rows) for i in range(len(self._questions))]

    async def _alike(self, sentences: Sequence[str]) -> np.ndarray:
        """Compare sentences with all sub-questions, `[sentences, questions]`."""
        if self._services.embedder is not None:
            return 2 * await between(sentences, self._questions, "embedding", self._services) - 1
        questions = [_words(each) for each in self._questions]
        return np.array([[len(q & _words(s)) / max(len(q), 1) for q in questions] for s in sentences])


def _words(text: str) -> frozenset[str]:
    return frozenset(WORD.findall(text.lower()))
