"""Declare the training runs of the command line: what can be set, the defaults, and a line of help for each.

Nothing heavy is imported here, so that `waver train --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from waver.options import Option
from waver.resources import MODELS
from waver.training.probe.labels import Thresholds

Beta = float | Literal["median", "solved"]


@dataclass(frozen=True)
class PairRun:
    """Training of the bundled pair from scratch."""

    only: Annotated[str | None, Option("`small` or `large`.", shown="both")] = None
    seed: Annotated[int, Option("Seed of weights and data.")] = 1
    threads: Annotated[int, Option("CPU threads.", least=1)] = 1
    steps: Annotated[int | None, Option("Fewer steps than the recipe's, for a trial.", least=1)] = None


@dataclass(frozen=True)
class VisionRun:
    """Training of the bundled model that reads pictures, from scratch."""

    seed: Annotated[int, Option("Seed of weights and pictures.", least=0)] = 1
    threads: Annotated[int, Option("CPU threads.", least=1)] = 1
    see: Annotated[int, Option("Optimiser steps in which the vision transformer learns alone.", least=1)] = 150
    answer: Annotated[int, Option("Optimiser steps in which the whole model learns to answer.", least=1)] = 600


@dataclass(frozen=True)
class RlRun:
    """Reinforcement learning of one model, down to the seed; a stopped run goes on only as the same one."""

    model: Annotated[str, Option("A causal language model: a folder, or a name.", shown="the bundled small")] = str(
        MODELS / "small"
    )
    recipe: dict[str, Any] = field(default_factory=dict)
    """Arguments of `make_recipe`."""
    task: Annotated[
        str,
        Option(
            "`arithmetic`, `knights`, `instructions`; with --data `gsm8k`, `python`, `verilog`, `paraphrases`; with "
            "--reward too `custom`."
        ),
    ] = "arithmetic"
    data: Annotated[
        str | None,
        Option("JSONL: in each line `question`, and `answer`, `tests`, `testbench` or `constraints`; or `questions`."),
    ] = None
    reward: Annotated[
        tuple[str, ...],
        Option("MODULE:FUNCTION, called as TRL calls a reward function, or a task's own by its name; repeatable."),
    ] = ()
    reward_weight: Annotated[
        tuple[float, ...], Option("Weight of each --reward, in their order; repeatable.", shown="1 each")
    ] = ()
    correct: Annotated[
        float | None, Option("With --reward: the least reward of a right answer, by the first of them.")
    ] = None
    tool: Annotated[
        tuple[str, ...],
        Option("`calculator`, or MODULE:FUNCTION, that the model may call before it answers; repeatable."),
    ] = ()
    chain: Annotated[tuple[int, int], Option("Shortest and longest sums, in operations.", least=1)] = (4, 8)
    people: Annotated[tuple[int, int], Option("Fewest and most people of a puzzle of knights.", least=2)] = (2, 4)
    rollouts: Annotated[
        str, Option("`plain`, or `search`: by recombining partial answers (BES) where a group is all wrong.")
    ] = "plain"
    delimiter: Annotated[str, Option("End of a step of an answer, for --rollouts search.")] = "."
    steps: Annotated[int, Option("Generations.", least=1)] = 100
    prompts: Annotated[int, Option("Questions a step.", least=1)] = 16
    group: Annotated[int, Option("Answers to each.", least=2)] = 8
    updates: Annotated[int, Option("Optimizer steps on the rows of a step.", least=1)] = 2
    micro_batches: Annotated[int, Option("Passes an update; more take less memory.", least=1)] = 1
    length: Annotated[int, Option("The longest answer, in tokens.", least=1)] = 128
    temperature: Annotated[float, Option("Sampling temperature.", least=0.01)] = 1.0
    refill: Annotated[
        int, Option("Under dynamic_sampling: tries a step to replace groups that are left out.", least=0)
    ] = 0
    learning_rate: Annotated[
        float | None,
        Option("Learning rate of AdamW, constant.", least=0.0, shown="1e-4 for a bundled model, else 1e-6"),
    ] = None
    schedule: Annotated[
        str, Option("Of the learning rate: `constant`, `linear`, `cosine`, or another of transformers.")
    ] = "constant"
    warmup: Annotated[float, Option("Share of the updates over which it rises.", least=0.0, most=1.0)] = 0.0
    weights: Annotated[str, Option("`float32`, or `bfloat16` for half the memory.")] = "float32"
    gradient_checkpointing: Annotated[bool, Option("Compute activations twice instead of keeping them.")] = False
    peft: Annotated[
        str | None, Option("`lora`: train adapters only. They end in OUT/adapter, and merged in OUT/model.")
    ] = None
    lora_rank: Annotated[int, Option("Rank of the adapters.", least=1)] = 16
    lora_alpha: Annotated[int, Option("Their scale, times the rank.", least=1)] = 32
    lora_dropout: Annotated[float, Option("Dropout before them.", least=0.0, most=0.99)] = 0.0
    lora_target: Annotated[
        tuple[str, ...], Option("A layer that gets one; repeatable.", shown="all linear layers but the head")
    ] = ()
    held_out: Annotated[int, Option("Questions to judge by; 0 for none.", least=0)] = 128
    every: Annotated[int, Option("Steps between checkpoints, and between judgements.", least=1)] = 20
    keep: Annotated[int, Option("Checkpoints to keep, the last ones.", least=1)] = 2
    report_to: Annotated[str, Option("`tensorboard`, `wandb` or `none`; metrics.jsonl is always written.")] = (
        "tensorboard"
    )
    vllm: Annotated[bool, Option("Draw the rows with vLLM, in this process.")] = False
    seed: Annotated[int, Option("Seed of questions and draws.")] = 1


@dataclass(frozen=True)
class ProbeAnswers:
    """The answers that a probe's labels are made from: by which engine, to what, how many."""

    engine: Annotated[str, Option("The engine whose model is asked and read.")] = "large"
    scorer: Annotated[
        str, Option("When an answer is right: number (its last one is), contains, or MODULE:FUNCTION.")
    ] = "number"
    n: Annotated[int, Option("Sums, where no file is given.", least=2)] = 600
    chain: Annotated[tuple[int, int], Option("Shortest and longest of them, in operations.", least=1)] = (1, 8)
    samples: Annotated[int, Option("Answers to each question, for labels.", least=1)] = 10
    strategy_samples: Annotated[
        int, Option("Answers in each strategy besides, for oracle labels; 0 for none.", least=0)
    ] = 0
    max_tokens: Annotated[int, Option("The most tokens of an answer.", least=1)] = 4096
    opening: Annotated[str, Option("Words that the answers for labels begin with.")] = ""
    seed: Annotated[int, Option("Seed of the answers, and of the sums.")] = 1
    at_once: Annotated[int, Option("Answers in the making at a time.", least=1)] = 64


@dataclass(frozen=True)
class JudgeAnswers:
    """The runs that a judge learns from: of which model, how many, and how they are scored."""

    model: Annotated[str, Option("The engine, or waver/PRESET, that is asked.")] = "large"
    scorer: Annotated[
        str, Option("When an answer is right: number (its last one is), contains, or MODULE:FUNCTION.")
    ] = "number"
    samples: Annotated[int, Option("Runs of each question.", least=1, most=64)] = 5
    max_tokens: Annotated[int, Option("The most tokens of a text.", least=1)] = 1024
    seed: Annotated[int, Option("Seed of the runs.")] = 1
    at_once: Annotated[int, Option("Questions in the air at a time.", least=1)] = 8


def read_beta(given: str) -> Beta:
    """Read a number of nats, or the name of a way to find one.

    Raises:
        ValueError: it is neither.
    """
    if given == "median":
        return "median"
    if given == "solved":
        return "solved"
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"--beta is a number of nats, `median` or `solved`, not {given!r}") from None


@dataclass(frozen=True)
class Tuning:
    """Choices for training probes on the answers. A run can be repeated with others without asking again.

    `words` open the answer in a probe prompt: of several, those are kept whose probes score best.
    """

    words: Annotated[
        tuple[str, ...],
        Option(
            "Words behind which the probe reads; repeat it to try several.",
            shown="a sentence that is about to say how hard the question is",
        ),
    ] = ()
    alpha: Annotated[float, Option("Above this rate of right answers none is hard.", least=0, most=1)] = (
        Thresholds.alpha
    )
    beta: Annotated[
        Beta,
        Option("Entropy from which a question is easy: nats, `median`, or `solved` (see below).", read=read_beta),
    ] = "median"
    gamma: Annotated[float, Option("Below this rate of right answers all are hard.", least=0, most=1)] = (
        Thresholds.gamma
    )
    seeds: Annotated[int, Option("Trainings of each probe; the best is kept.", least=1)] = 3
