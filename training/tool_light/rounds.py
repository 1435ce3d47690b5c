"""Draw the chains of a round through an engine, judge them, and choose its pairs; each question is a line of a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waver import job
from waver.concurrency import together
from waver.training.preferences.pairs import Answer, Pair
from waver.training.tasks.rewards import Reward
from waver.training.tool_light import criteria
from waver.training.tool_light.branching import Branching, guided, seed_of, vanilla
from waver.training.tool_light.chains import Chain, World, finish
from waver.training.tool_light.criteria import Candidate, Choice
from waver.training.tool_light.scores import efficiency, f1
from waver.training.tool_light.traces import Trace, prompt

Line = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """Rows with `question` and `answer`, and what judges an answer."""

    rows: Sequence[Mapping[str, Any]]
    reward: Reward

    def right(self, place: int, said: Sequence[str | None]) -> list[bool]:
        """Tell which answers are right; none is where a chain did not answer."""
        row = self.rows[place]
        columns = {name: [value] * len(said) for name, value in row.items()}
        marks = self.reward(prompts=[row["question"]] * len(said), completions=[each or "" for each in said], **columns)
        return [each is not None and mark >= 1 for each, mark in zip(said, marks, strict=True)]


def same_words(completions: Sequence[str], answer: Sequence[Any], **_: Any) -> list[float]:
    """Reward an answer by the F1 of its words, against the best of several known ones; right is 1."""

    def one(said: str, known: Any) -> float:
        return max(f1(said, str(each)) for each in (known if isinstance(known, list) else [known]))

    return [one(said, known) for said, known in zip(completions, answer, strict=True)]


async def draw_round(
    world: World,
    asked: Questions,
    how: Branching,
    share: float,
    seed: int,
    at_once: int,
    file: Path,
    advance: Callable[[], None],
) -> list[Line]:
    """Draw the chains of all questions, or go on drawing; `advance` is called for each question."""
    done = {line["place"]: line for line in job.read_lines(file)}
    kinds = criteria.kinds(len(asked.rows), share, seed)
    free = asyncio.Semaphore(at_once)

    async def one(place: int) -> None:
        async with free:
            ids = prompt(world.engine.tokens, asked.rows[place]["question"], "search" in world.tools)
            own = seed_of(seed, place)
            if kinds[place] == "vanilla":
                chains = await vanilla(world, ids, how.branches + 1, own)
            else:
                chains = await guided(world, ids, how, own)
            right = await asyncio.to_thread(asked.right, place, [each.answer for each in chains])
            line = {
                "place": place,
                "kind": kinds[place],
                "chains": [as_line(each, ok) for each, ok in zip(chains, right, strict=True)],
            }
            job.append_line(file, line)
            done[place] = line
            advance()

    for _ in done:
        advance()
    await together(*(one(place) for place in range(len(asked.rows)) if place not in done))
    return [done[place] for place in range(len(asked.rows))]


def as_line(chain: Chain, right: bool) -> Line:
    """Return what is kept of a chain."""
    return {
        "right": right,
        "calls": chain.calls,
        "entropy": chain.entropy,
        "length": chain.length,
        "answer": chain.answer,
        "ids": list(chain.ids),
        "mask": list(chain.mask),
    }


def candidate(line: Line) -> Candidate:
    return Candidate(line["right"], line["calls"], line["entropy"], line["length"])


def choose(
    lines: Sequence[Line], evolved: bool, references: Mapping[int, Trace], prompts: Sequence[Sequence[int]], seed: int
) -> list[Pair]:
    """Choose the pairs of a round, at most one a question; in the first one two hard ones to an easy one.

    Args:
        references: traces of the training data by the place of their question.
        prompts: of every question, in tokens.
    """
    found: dict[str, list[Pair]] = {"hard": [], "easy": []}
    for line in lines:
        chains = [candidate(each) for each in line["chains"]]
        trace = references.get(line["place"])
        choice: Choice | None
        if evolved:
            choice = criteria.evolved_round(chains)
        else:
            known = None if trace is None else Candidate(True, trace.calls, 0.0, sum(trace.answer.mask))
            choice = criteria.first_round(chains, line["kind"], known)
        if choice is None:
            continue
        if choice.chosen is not None:
            chosen = _answer(line["chains"][choice.chosen])
        elif trace is not None:
            chosen = trace.answer
        else:
            continue
        prompt_ids = tuple(prompts[line["place"]])
        found[choice.bucket].append(Pair(prompt_ids, chosen, _answer(line["chains"][choice.rejected])))
    return [*found["hard"], *found["easy"]] if evolved else criteria.balanced(found["hard"], found["easy"], seed)


def _answer(line: Line) -> Answer:
    return Answer(tuple(line["ids"]), tuple(line["mask"]))


async def unanswered(
    world: World, asked: Questions, tries: int, seed: int, at_once: int, file: Path, advance: Callable[[], None]
) -> list[int]:
    """Return the places of questions that a model without tools gets wrong in every try (top-p .95, top-k 40)."""
    done = {line["place"]: line["right"] for line in job.read_lines(file)}
    plain = replace(world, tools={}, sampling=replace(world.sampling, top_p=0.95, top_k=40))
    free = asyncio.Semaphore(at_once)

    async def one(place: int) -> None:
        async with free:
            ids = world.engine.tokens.chat([{"role": "user", "content": asked.rows[place]["question"]}])
            chains = await vanilla(plain, ids, tries, seed_of(seed, "filter", place))
            said = [each.answer or each.text for each in chains]
            right = any(await asyncio.to_thread(asked.right, place, said))
            job.append_line(file, {"place": place, "right": right})
            done[place] = right
            advance()

    for _ in done:
        advance()
    await together(*(one(place) for place in range(len(asked.rows)) if place not in done))
    return [place for place in range(len(asked.rows)) if not done[place]]


async def judge(world: World, asked: Questions, seed: int, at_once: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Answer held-out questions once each, greedily, and sum up."""
    greedy = replace(world, sampling=replace(world.sampling, temperature=0.0))
    free = asyncio.Semaphore(at_once)

    async def one(place: int) -> Line:
        async with free:
            ids = prompt(world.engine.tokens, asked.rows[place]["question"], "search" in world.tools)
            chain = await finish(greedy, ids, (), seed_of(seed, "held out", place))
            (right,) = await asyncio.to_thread(asked.right, place, [chain.answer])
            advance()
            return as_line(chain, right)

    lines = await together(*(one(place) for place in range(len(asked.rows))))
    marks, calls = [float(each["right"]) for each in lines], [each["calls"] for each in lines]
    return {
        "accuracy": sum(marks) / len(lines),
        "calls": sum(calls) / len(lines),
        "length": sum(each["length"] for each in lines) / len(lines),
        "efficiency": efficiency(marks, calls),
        "right": marks,
        "called": calls,
    }
