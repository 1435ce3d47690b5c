"""Groups of rows by search, where plain ones are all wrong: a `rollout_func` for TRL (BES, arXiv 2605.28814).

A prompt's group is drawn plainly first. Where none of its rows is right, a search grows and recombines partial answers
(`waver.evolution`), scored by the goals of the question; of what it finds, the group becomes at most
one right row and wrong ones, the best first, padded with plain rows. Where it finds nothing right, the plain group
stays. The trainer computes the log-probabilities of all rows under the policy as it is, and treats them as if it had
drawn them, as the paper does: recombined text is not what the policy would draw, so that the gradient is biased. With
one right row in a group advantages are large: clip gradients (`maxrl` has them G / K times as large).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import StoppingCriteria
from trl.models import unwrap_model_for_generation

from waver.evolution import SOLVED, Plan, Search
from waver.goals import Goal, Task, Verdict

Ids = tuple[int, ...]
Goals = Callable[[str], Task]
"""From a question to its goals; ValueError where it has none."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search. `most` is in tokens, of all that is drawn for one prompt."""

    iterations: int = 60
    delimiter: str = "\n\n"
    temperature: float = 0.6
    top_p: float = 0.95
    expand: int = 5
    longest: int = 24
    hot: float = 2.0
    cold: float = 1.0
    most: int = 8192


class SearchRollouts:
    """Draws the groups of a step: give it to a trainer as `rollout_func`.

    Args:
        goals: of a question, which is the last message of a prompt.
    """

    def __init__(self, goals: Goals, how: SearchSettings = SearchSettings()) -> None:
        self._goals, self._how = goals, how

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Return `prompt_ids`, `completion_ids` and `logprobs` (None: the trainer computes them) of every row."""
        size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        prompt_ids, images, others = trainer._tokenize_prompts(prompts)
        rows, _ = trainer._generate_single_turn(prompt_ids, images, others, size)
        if trainer.model.training:
            self._search(prompts, prompt_ids, rows, trainer)
        return {"prompt_ids": prompt_ids, "completion_ids": rows, "logprobs": None}

    def _search(self, prompts: list[Any], prompt_ids: Any, rows: list[list[int]], trainer: Any) -> None:
        """Search for the groups of which no row is right, and put what was found into `rows`."""
        # A process of several may have a part of a group only.
        places = groupby(range(len(prompts)), key=lambda i: (i // trainer.num_generations, question(prompts[i])))
        groups = [list(own) for _, own in places]
        model, eos = trainer.model_wrapped, tuple(trainer.eos_token_ids)
        decode = trainer.processing_class.decode
        with unwrap_model_for_generation(model, trainer.accelerator) as inner, torch.no_grad():
            drawer = Drawer(inner, trainer.processing_class, eos, self._how)

            async def one(own: list[int]) -> Found | None:
                task = self._goals(question(prompts[own[0]]))
                for i in own:
                    if rows[i][-1:] and rows[i][-1] in eos and (await task.judge(text(decode, rows[i]))).solved:
                        return None
                seed = f"search:{trainer.args.seed}:{trainer.state.global_step}:{own[0]}"
                problem = Problem(tuple(prompt_ids[own[0]]), task, drawer, trainer.max_completion_length, self._how)
                return await problem.solve(len(own), random.Random(seed))

            async def every() -> list[Found | None]:
                return await drawer.together([one(own) for own in groups])

            found = asyncio.run(every())
        for own, each in zip(groups, found, strict=True):
            if each is not None and each.right:
                kept = list(map(list, each.rows(len(own))))
                for place, row in zip(own, kept, strict=False):
                    rows[place] = row
        searched = [each for each in found if each is not None]
        log = trainer._metrics["train"]
        log["search/groups"].append(len(searched) / len(groups))
        log["search/solved"].append(sum(bool(each.right) for each in searched) / max(len(searched), 1))
        log["search/tokens"].append(sum(each.tokens for each in searched) / max(len(searched), 1))


def question(prompt: Any) -> str:
    """Return the question of a prompt: a text, or the last message of a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def text(decode: Callable[..., str], ids: Sequence[int]) -> str:
    return decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True)
class Found:
    """Whole answers of a search, the best first: right ones and wrong ones; and how many tokens were drawn."""

    right: tuple[Ids, ...]
    wrong: tuple[Ids, ...]
    tokens: int

    def rows(self, size: int) -> list[Ids]:
        """Return at most `size` rows: all, or where there are more, one right row and wrong ones."""
        if len(self.right) + len(self.wrong) <= size:
            return [*self.right, *self.wrong]
        return [*self.right[: max(1, size - len(self.wrong))], *self.wrong[: size - 1]]


class OutOfTokens(Exception):
    """The tokens that may be drawn for a prompt are spent."""


@dataclass
class Problem:
    """A prompt whose steps the policy in training draws."""

    prompt: Ids
    task: Task
    drawer: Drawer
    length: int
    how: SearchSettings
    tokens: int = 0

    @property
    def root(self) -> Goal:
        return self.task.root

    async def solve(self, size: int, rng: random.Random) -> Found:
        """Search until there is a right answer and a group of whole ones, or the budget ends."""
        how = self.how
        plan = Plan("bes", how.iterations, how.hot, how.cold, how.expand, how.longest, collect=size)
        search: Search[Ids] = Search(self, plan, rng)
        with suppress(OutOfTokens):
            await search.run()
        whole = [(tuple(token for part in each.steps for token in part), each.score) for each in search.whole]
        right = tuple(ids for ids, score in whole if score >= SOLVED)
        return Found(right, tuple(ids for ids, score in whole if score < SOLVED), self.tokens)

    async def judge(self, steps: tuple[Ids, ...]) -> Verdict:
        return await self.task.judge(self.drawer.text([token for part in steps for token in part]))

    def fits(self, steps: tuple[Ids, ...]) -> bool:
        return sum(map(len, steps)) <= self.length

    def ended(self, steps: tuple[Ids, ...]) -> bool:
        return sum(map(len, steps)) >= self.length

    async def expand(self, steps: tuple[Ids, ...], count: int) -> tuple[tuple[Ids, ...], bool]:
        return await self._drawn(steps, count)

    async def finish(self, steps: tuple[Ids, ...]) -> tuple[tuple[Ids, ...], bool]:
        return await self._drawn(steps, None)

    async def _drawn(self, before: tuple[Ids, ...], count: int | None) -> tuple[tuple[Ids, ...], bool]:
        """Draw so many steps more, or, greedily, all to the end."""
        if self.tokens >= self.how.most:
            raise OutOfTokens
        written = [token for part in before for token in part]
        room = self.length - len(written)
        if room <= 0:
            return before, False
        made = await self.drawer.draw((*self.prompt, *written), count, room)
        self.tokens += len(made)
        return (*before, *self.drawer.steps(made)), bool(made) and made[-1] in self.drawer.eos


@dataclass
class _Wanted:
    ids: Ids
    count: int | None
    room: int
    made: asyncio.Future[list[int]]


@dataclass
class Drawer:
    """Draws for several searches at a time: once all of those that run wait for something, in one batch."""

    model: Any
    tokenizer: Any
    eos: tuple[int, ...]
    how: SearchSettings
    running: int = 0
    waiting: list[_Wanted] = field(default_factory=list)

    async def together(self, searches: Sequence[Any]) -> list[Any]:
        self.running = len(searches)

        async def one(search: Any) -> Any:
            try:
                return await search
            finally:
                self.running -= 1
                self._draw_if_all_wait()

        return list(await asyncio.gather(*map(one, searches)))

    async def draw(self, ids: Ids, count: int | None, room: int) -> list[int]:
        """Return the tokens behind `ids`: so many steps, or, greedily, all to the end."""
        wanted = _Wanted(ids, count, room, asyncio.get_running_loop().create_future())
        self.waiting.append(wanted)
        self._draw_if_all_wait()
        return await wanted.made

    def text(self, ids: Sequence[int]) -> str:
        return text(self.tokenizer.decode, ids)

    def steps(self, ids: Sequence[int]) -> list[Ids]:
        """Cut tokens into steps, each up to the end of its delimiter."""
        out: list[Ids] = []
        current: list[int] = []
        for token in ids:
            current.append(token)
            if self.how.delimiter in self.tokenizer.decode(current):
                out.append(tuple(current))
                current = []
        return [*out, tuple(current)] if current else out

    def _draw_if_all_wait(self) -> None:
        if not self.waiting or len(self.waiting) < self.running:
            return
        batch, self.waiting = self.waiting, []
        for part in (
            [each for each in batch if each.count is None],
            [each for each in batch if each.count is not None],
        ):
            if part:
                for each, made in zip(part, self._generate(part), strict=True):
                    each.made.set_result(made)

    def _generate(self, part: list[_Wanted]) -> list[list[int]]:
        """Draw one batch, padded on the left."""
        width, device = max(len(each.ids) for each in part), self.model.device
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos[0]
        ids = torch.tensor([[pad] * (width - len(each.ids)) + list(each.ids) for each in part], device=device)
        mask = torch.tensor([[0] * (width - len(each.ids)) + [1] * len(each.ids) for each in part], device=device)
        greedy = part[0].count is None
        drawn = {} if greedy else {"temperature": self.how.temperature, "top_p": self.how.top_p, "top_k": 0}
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=not greedy,
            max_new_tokens=max(each.room for each in part),
            pad_token_id=pad,
            eos_token_id=list(self.eos),
            stopping_criteria=[_Enough(part, width, self)],
            **drawn,
        )
        return [self._cut(each, row) for each, row in zip(part, out[:, width:].tolist(), strict=True)]

    def _cut(self, wanted: _Wanted, row: list[int]) -> list[int]:
        """Cut a row behind its end of text, and behind so many steps and tokens as were asked for."""
        end = next((i for i, token in enumerate(row) if token in self.eos), len(row) - 1) + 1
        steps = self.steps(row[: min(end, wanted.room)])
        return [token for part in steps[: wanted.count] for token in part]


class _Enough(StoppingCriteria):
    """Stops a row once it has its steps or tokens."""

    def __init__(self, wanted: list[_Wanted], width: int, drawer: Drawer) -> None:
        self._wanted, self._width, self._drawer = wanted, width, drawer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows = input_ids[:, self._width :].tolist()
        done = [
            len(row) >= each.room
            or (
                each.count is not None
                and self._drawer.tokenizer.decode(row).count(self._drawer.how.delimiter) >= each.count
            )
            for each, row in zip(self._wanted, rows, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)
