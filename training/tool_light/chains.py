"""Let a model reason with tools: it writes calls as tagged text, and the environment puts the results behind them.

`<python>…</python>` and `<search>…</search>` are calls, `<result>…</result>` holds what they gave, and
`<answer>…</answer>` ends a chain. A step is what the model writes up to the end of a call or of the answer; the result
that follows belongs to the context of the next one (arXiv 2509.23285). Tokens of results are marked, so that nothing is
learned from them and their entropies do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import anyio.to_thread

from waver.engines.base import NO_TOKEN, Engine, Sampling
from waver.engines.tokens import TokenText
from waver.training.tool_light.entropies import FULL, Reading

Tool = Callable[[str], str]
"""Takes the text of a call and returns the text of its result."""
ANSWER = "</answer>"
FORCED = "\n<result>\nNo calls are left.\n</result>\n<answer>"


@dataclass(frozen=True)
class Step:
    """Tokens that the model wrote in one go, with their entropies in nats; the tool that they call, "" where none; and
    the result put behind them, encoded."""

    ids: tuple[int, ...]
    entropies: tuple[float, ...]
    tool: str = ""
    result: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chain:
    """The course of one answer. `calls` counts the calls of tools; `text` holds the results too; `answer` is what
    stands between the tags of the answer, None where there is none."""

    steps: tuple[Step, ...]
    calls: int
    text: str
    answer: str | None

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(each for step in self.steps for each in (*step.ids, *step.result))

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for the tokens that the model wrote."""
        return tuple(bit for step in self.steps for bit in (*[1] * len(step.ids), *[0] * len(step.result)))

    @property
    def length(self) -> int:
        """Count the tokens that the model wrote."""
        return sum(len(step.ids) for step in self.steps)

    @property
    def entropy(self) -> float:
        """Compute the mean entropy of the tokens that the model wrote, in nats."""
        return sum(sum(step.entropies) for step in self.steps) / max(1, self.length)


@dataclass(frozen=True)
class World:
    """An engine with tools by the name of their tag, sampling, and limits: of calls to each tool, and of the tokens
    that a chain may have."""

    engine: Engine
    tools: Mapping[str, Tool]
    sampling: Sampling
    calls: int = 4
    tokens: int = 1024
    reading: Reading = FULL

    @property
    def ends(self) -> dict[str, str]:
        """Map the tags that end a step to the tool that is called, "" for the answer."""
        return {ANSWER: ""} | {f"</{name}>": name for name in self.tools}


async def finish(
    world: World, prompt: Sequence[int], begun: Sequence[Step], seed: int, kept: Step | None = None
) -> Chain:
    """Go on with a chain until it has its answer, or as many tokens as it may have.

    Args:
        begun: its whole steps. kept: the first tokens of the next one, which stay.
        seed: what is drawn is a function of it and of what stands there.
    """
    steps = list(begun)
    used = Counter(step.tool for step in steps)
    opening = ""
    while sum(len(step.ids) + len(step.result) for step in steps) < world.tokens:
        step, ended = await _write(world, prompt, steps, kept, opening, seed)
        kept, opening = None, ""
        name = world.ends.get(ended or "", "")
        if not name:
            steps.append(step)
            break
        if used[name] < world.calls:
            used[name] += 1
            said = await anyio.to_thread.run_sync(world.tools[name], inside(_text(world, step), name) or "")
            result = as_result(said)
        else:
            name, result, opening = "", FORCED, "<answer>"
        steps.append(replace(step, tool=name, result=tuple(world.engine.tokens.encode_plain(result))))
    return chain(world, steps)


def chain(world: World, steps: Sequence[Step]) -> Chain:
    """Put a chain together, and find its answer."""
    text = world.engine.tokens.decode([each for step in steps for each in (*step.ids, *step.result)])
    return Chain(tuple(steps), sum(bool(step.tool) for step in steps), text, inside(text, "answer"))


def _text(world: World, step: Step) -> str:
    return world.engine.tokens.decode(step.ids)


def as_result(said: str) -> str:
    """Wrap the output of a tool; tags in it are broken, so that no document can call a tool or answer."""
    return "\n<result>\n" + said.replace("<", "‹") + "\n</result>\n"


def inside(text: str, tag: str) -> str | None:
    """Return what stands in the last pair of tags of a name; None where there is none."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len(tag) + 2 : end].strip()


async def _write(
    world: World, prompt: Sequence[int], steps: Sequence[Step], kept: Step | None, opening: str, seed: int
) -> tuple[Step, str | None]:
    """Draw a step until one of its tags is closed; returns it and that tag, None where another end came first."""
    ids = [] if kept is None else list(kept.ids)
    entropies = [] if kept is None else list(kept.entropies)
    before = [each for step in steps for each in (*step.ids, *step.result)]
    how = replace(
        world.sampling,
        max_tokens=world.tokens,
        answer_start=len(prompt),
        seed=seed,
        top_logprobs=world.reading.top,
    )
    tokens: TokenText = world.engine.tokens
    text = opening + tokens.decode(ids)
    async with aclosing(world.engine.generate([*prompt, *before, *ids], how)) as stream:
        async for drawn in stream:
            if drawn.token == NO_TOKEN:
                continue
            ids.append(drawn.token)
            entropies.append(world.reading.of(drawn))
            text = opening + tokens.decode(ids)
            tail = text[-40:]
            ended = next((tag for tag in world.ends if tag in tail), None)
            if ended is not None:
                return Step(tuple(ids), tuple(entropies)), ended
    return Step(tuple(ids), tuple(entropies)), None
