"""Run `waver train tool-light`: SFT on traces, DPO on the pairs of guided sampling, and rounds of self-evolution.

The folder holds `sft/`, `round-0/`, `round-1/`, … with `chains.jsonl`, `pairs.jsonl` and `dpo/`; at the end `model/`,
to serve, and `report.json`. Each stage goes on where it stopped. The reference of every DPO is the model at its start.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from waver import job
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Engine, Sampling
from waver.engines.tokens import TokenText
from waver.progress import counted
from waver.training import checkpoints
from waver.training.preferences.dpo import dpo
from waver.training.preferences.options import DpoRun
from waver.training.preferences.pairs import as_row
from waver.training.tasks.rewards import SCORERS, custom, read_rows
from waver.training.tasks.tools import calculator
from waver.training.tool_light import rounds
from waver.training.tool_light.branching import PLACES, Branching
from waver.training.tool_light.chains import Tool, World
from waver.training.tool_light.entropies import Reading
from waver.training.tool_light.options import ToolLightRun
from waver.training.tool_light.rounds import Questions
from waver.training.tool_light.scores import necessity
from waver.training.tool_light.traces import Trace, fine_tune, prompt, read_traces

console = Console()


@dataclass(frozen=True)
class Data:
    """Questions, traces and held-out questions of a run."""

    asked: Questions
    traces: Sequence[Trace]
    held_out: Questions | None


def train(
    questions: Path,
    traces: Path | None,
    held_out: Path | None,
    search: Tool | None,
    run: ToolLightRun,
    out: Path,
    threads: int = 1,
) -> dict[str, Any]:
    """Train, or go on; returns the report.

    Args:
        search: looks up passages, if the model may.

    Raises:
        ValueError: it cannot be done like this, or `out` holds another run. OSError: a file cannot be read.
        EngineError: an engine died.
    """
    _check(run)
    torch.set_num_threads(threads)
    model, tokens = checkpoints.load(run.model)
    files = {"questions": questions, "traces": traces, "held_out": held_out}
    data = Data(
        read_questions(questions, run.scorer),
        [] if traces is None else read_traces(traces, tokens),
        None if held_out is None else read_questions(held_out, run.scorer),
    )
    rows = _rows(data.traces, tokens, search is not None, run.length)
    job.claim(out, asdict(run) | {name: file and checkpoints.sha256(file) for name, file in files.items()})
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the model is in {out / 'model'}")
        return done
    tools: dict[str, Tool] = {"python": calculator} | ({"search": search} if search is not None else {})
    make = _Worlds(tools, run)
    asked = _kept(make, data.asked, run, out)
    current = run.model
    if rows and not (out / "sft" / "model").exists():
        (out / "sft").mkdir(exist_ok=True)
        console.print(f"fine-tuning on {len(rows)} traces")
        fine_tune(model, tokens, rows, run, out / "sft", console)
    if rows:
        current = str(out / "sft" / "model")
    del model
    report = _evolve(make, current, asked, data, tokens, run, out)
    _copy(Path(report["model"]), out / "model")
    _write(out / "report.json", json.dumps(report, indent=1) + "\n")
    console.print(f"The model is in {out / 'model'}.", soft_wrap=True)
    return report


def read_questions(file: Path, scorer: str) -> Questions:
    """Read questions and find what judges their answers.

    Raises:
        ValueError: a line is not as it should be, or there is no such scorer. OSError: the file cannot be read.
    """
    if scorer == "f1":
        reward: Any = rounds.same_words
    elif scorer in SCORERS:
        reward = SCORERS[scorer]
    elif ":" in scorer:
        reward = custom(scorer)
    else:
        raise ValueError(f"there is no scorer {scorer!r}; there are f1, {', '.join(SCORERS)}, and module:function")
    rows = read_rows(file, reward)
    if not rows:
        raise ValueError(f"{file} holds no questions")
    if missing := next((i for i, row in enumerate(rows, 1) if "answer" not in row), None):
        raise ValueError(f"{file}: question {missing} has no `answer`")
    return Questions(rows, reward)


def _check(run: ToolLightRun) -> None:
    if run.branch_at not in PLACES:
        raise ValueError(f"there is no --branch-at {run.branch_at!r}; there are {', '.join(PLACES)}")


class _Worlds:
    """Loads the model of a stage as an engine with tools, and closes it behind the stage."""

    def __init__(self, tools: dict[str, Tool], run: ToolLightRun) -> None:
        self.tools, self.run = tools, run

    def use(self, model: str, words: str, total: int, work: Callable[[World, Callable[[], None]], Any]) -> Any:
        run = self.run
        sampling = Sampling(
            run.temperature, run.top_p, run.top_k, repetition_penalty=run.repetition, logprobs=bool(run.top)
        )

        async def all_of_it() -> Any:
            engine: Engine = await asyncio.to_thread(load_engine, "policy", TransformersConfig(model=model))
            try:
                world = World(engine, self.tools, sampling, run.calls, run.tokens, Reading(run.top))
                with counted(console) as bar:
                    task = bar.add_task(words, total=total)
                    return await work(world, lambda: bar.advance(task))
            finally:
                await engine.aclose()

        found = asyncio.run(all_of_it())
        gc.collect()
        return found


def _kept(make: _Worlds, asked: Questions, run: ToolLightRun, out: Path) -> Questions:
    """Leave out the questions that the model answers by itself."""
    if not run.filter:
        return asked
    places: list[int] = make.use(
        run.model,
        "asking without tools",
        len(asked.rows),
        lambda world, advance: rounds.unanswered(
            world, asked, run.filter, run.seed, run.at_once, out / "filter.jsonl", advance
        ),
    )
    if not places:
        raise ValueError("the model answers every question without tools: give harder ones, or --filter 0")
    console.print(f"{len(places)} of {len(asked.rows)} questions need more than the model alone")
    return Questions([asked.rows[place] for place in places], asked.reward)


def _rows(traces: Sequence[Trace], tokens: TokenText, search: bool, length: int) -> list[Any]:
    """Return the prompts and answers to fine-tune on.

    Raises:
        ValueError: one is too long.
    """
    found = [(prompt(tokens, each.question, search), each.answer) for each in traces]
    for number, (ids, answer) in enumerate(found, 1):
        if len(ids) + len(answer.ids) > length:
            raise ValueError(f"trace {number} has {len(ids) + len(answer.ids)} tokens with its prompt, over --length")
    return found


def _evolve(
    make: _Worlds, current: str, asked: Questions, data: Data, tokens: TokenText, run: ToolLightRun, out: Path
) -> dict[str, Any]:
    """Run the rounds; stop where held-out accuracy falls, and keep the best model."""
    prompts = [prompt(tokens, row["question"], "search" in make.tools) for row in asked.rows]
    by_question = {trace.question: trace for trace in data.traces}
    references = {i: by_question[row["question"]] for i, row in enumerate(asked.rows) if row["question"] in by_question}
    stages = [_judged(make, "start", current, data.held_out, run, out)]
    best = stages[0]
    for number in range(run.loops + 1):
        folder = out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        lines = _drawn(make, current, asked, replace(run, seed=run.seed + number), folder)
        pairs = rounds.choose(lines, number > 0, references, prompts, run.seed)
        console.print(f"round {number}: {len(pairs)} pairs of {len(lines)} questions")
        if not pairs:
            stages.append({"stage": f"round-{number}", "pairs": 0})
            continue
        _write(folder / "pairs.jsonl", "".join(json.dumps(as_row(pair)) + "\n" for pair in pairs))
        tuned = dpo(folder / "pairs.jsonl", _dpo_run(current, run), folder / "dpo", torch.get_num_threads())
        current = str(folder / "dpo" / "model")
        stages.append(
            _judged(make, f"round-{number}", current, data.held_out, run, out) | {"pairs": len(pairs), "dpo": tuned}
        )
        if data.held_out is not None and stages[-1]["accuracy"] < best["accuracy"]:
            console.print(f"held-out accuracy fell to {stages[-1]['accuracy']:.1%}: going on would hurt")
            break
        best = stages[-1]
    return {"model": best["model"], "kept": best["stage"], "stages": _compared(stages)}


def _drawn(make: _Worlds, current: str, asked: Questions, run: ToolLightRun, folder: Path) -> list[Any]:
    how = Branching(run.steps, run.branches, run.branch_at)  # type: ignore[arg-type]
    lines: list[Any] = make.use(
        current,
        "drawing chains",
        len(asked.rows),
        lambda world, advance: rounds.draw_round(
            world, asked, how, run.vanilla, run.seed, run.at_once, folder / "chains.jsonl", advance
        ),
    )
    return lines


def _judged(
    make: _Worlds, stage: str, current: str, held_out: Questions | None, run: ToolLightRun, out: Path
) -> dict[str, Any]:
    """Judge a model on held-out questions; what was judged before a stop is read."""
    about: dict[str, Any] = {"stage": stage, "model": current}
    if held_out is None:
        return about
    file = out / f"held-out-{stage}.json"
    if (found := job.read_record(file)) is None:
        found = make.use(
            current,
            "judging",
            len(held_out.rows),
            lambda world, advance: rounds.judge(world, held_out, run.seed, run.at_once, advance),
        )
        _write(file, json.dumps(found) + "\n")
    told = {key: value for key, value in found.items() if isinstance(value, float)}
    console.print(f"{stage}: " + ", ".join(f"{key} {value:.3f}" for key, value in told.items()))
    return about | found


def _compared(stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the necessity of the calls of each stage among all that were judged."""
    judged = [stage for stage in stages if "right" in stage]
    if len(judged) > 1:
        raw, scaled = necessity([stage["right"] for stage in judged], [stage["called"] for stage in judged])
        for stage, one, two in zip(judged, raw, scaled, strict=True):
            stage.update(necessity_raw=one, necessity=two)
    return [{key: value for key, value in stage.items() if key not in ("right", "called")} for stage in stages]


def _dpo_run(model: str, run: ToolLightRun) -> DpoRun:
    return DpoRun(
        model=model,
        beta=run.beta,
        rank=run.rank,
        epochs=run.epochs,
        batch=run.batch,
        accumulate=run.accumulate,
        length=run.length,
        learning_rate=run.dpo_rate,
        schedule="cosine",
        warmup=0.1,
        seed=run.seed,
    )


def _write(file: Path, text: str) -> None:
    job.replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


def _copy(model: Path, to: Path) -> None:
    """Put a copy of the best model at the top of the run's folder."""
    if not model.is_dir():
        raise ValueError(f"no stage trained {model}: there are neither traces nor pairs to learn from")

    def write(folder: Path) -> None:
        shutil.copytree(model.resolve(), folder, dirs_exist_ok=True)

    job.replace_folder(to, write)
