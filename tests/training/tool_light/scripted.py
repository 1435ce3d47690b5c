"""An engine with a script: it calls the calculator or answers, rightly or not, as its seed says."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from tests.conftest import ROOT
from waver.engines.base import Sampling, Step
from waver.engines.tokens import TokenText

SMALL = ROOT / "models" / "small"
ASKED = re.compile(r"What is ([0-9]+) \+ ([0-9]+)")


class Scripted:
    """Writes what a model with tools might: without tools it adds up even numbers only."""

    def __init__(self, *_: Any) -> None:
        self.name, self.tokens, self.closed = "scripted", TokenText.load(str(SMALL)), False

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        start = len(prompt_ids) if sampling.answer_start is None else sampling.answer_start
        asked = self.tokens.decode(prompt_ids[:start])
        said = self.tokens.decode(prompt_ids[start:])
        rng = random.Random(f"{sampling.seed}:{len(said)}" if sampling.temperature else "greedy")
        text = self.next(asked, said, rng, sampling.temperature == 0)
        ids = [*self.tokens.encode_plain(text), self.tokens.eos_ids[0]][
            : sampling.max_tokens - (len(prompt_ids) - start)
        ]
        for place, token in enumerate(ids):
            entropy = rng.random() if place < 10 else 0.01
            yield Step(token, -entropy, entropy, self.name, finish="stop" if place == len(ids) - 1 else None)

    def next(self, asked: str, said: str, rng: random.Random, greedy: bool) -> str:
        """Return what is written next."""
        found = ASKED.search(asked)
        assert found is not None
        a, b = map(int, found.groups())
        right, wrong = f"<answer>{a + b}</answer> and more", f"<answer>{a + b + 1}</answer>"
        if "<python>" not in asked:
            return f"It is {a + b if a % 2 == 0 else b}"
        calls = said.count("<result>")
        if said.endswith("<answer>"):
            return f"{a + b}</answer>"
        if calls == 0 and (greedy or rng.random() < 0.7):
            return f"<python>{a} + {b}</python> and more"
        if calls < 3 and not greedy and rng.random() < 0.4:
            return f"<python>{a} + {b} + {calls}</python>"
        return right if greedy or rng.random() < 0.5 else wrong

    async def aclose(self) -> None:
        self.closed = True
