"""Declare the options of `waver train instructions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from waver.options import Option


@dataclass(frozen=True)
class InstructionRun:
    """Instructions, and an engine's answers to them; a stopped run goes on only as the same one."""

    engine: Annotated[str, Option("The engine that answers.")] = "large"
    n: Annotated[int, Option("Instructions.", least=1)] = 200
    rules: Annotated[tuple[int, int], Option("Fewest and most constraints of one.", least=1)] = (2, 5)
    think: Annotated[bool, Option("Answers need a thought, closed by </think>, to earn anything.")] = False
    samples: Annotated[int, Option("Answers to each.", least=1)] = 8
    temperature: Annotated[float, Option("Sampling temperature.", least=0.01)] = 1.0
    max_tokens: Annotated[int, Option("The most tokens of an answer.", least=1)] = 4096
    seed: Annotated[int, Option("Seed of instructions and answers.")] = 1


@dataclass(frozen=True)
class Sifting:
    """Choices about answers that are there. A run can be repeated with others without asking again."""

    hard_rate: Annotated[
        float, Option("An instruction is hard up to this share of right answers.", least=0, most=1)
    ] = 0.0
    pass_rate: Annotated[float, Option("It is passed, and no use for training, from this share.", least=0, most=1)] = (
        1.0
    )
    cold_start: Annotated[int, Option("The most answers to keep for tuning.", least=1)] = 2000
    deep: Annotated[
        float, Option("Of right answers, those are deep that are longer than this share of them.", least=0, most=1)
    ] = 0.5
    repeated: Annotated[
        float, Option("An answer is fluent up to this share of repeated runs of four words.", least=0, most=1)
    ] = 0.2
    at_once: Annotated[int, Option("Answers in the making at a time.", least=1)] = 64
