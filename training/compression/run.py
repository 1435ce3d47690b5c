"""Run `waver compress`: search for what each layer bears, and write the compressed model.

The folder holds `model/` (to serve), `levels.json` (the level of every unit), `report.json`, `search.json` (the state
to go on from), `run.json`, and while it runs `levels/` (every layer at every level).
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from waver import job
from waver.progress import counted
from waver.training import checkpoints
from waver.training.compression.database import Database, compress_all, rounded, sparse_at
from waver.training.compression.depth import Blocks, block_layers
from waver.training.compression.fitness import Calibration
from waver.training.compression.layers import all_layers
from waver.training.compression.options import KINDS, CompressRun
from waver.training.compression.search import (
    Depth,
    Levels,
    Progress,
    Round,
    Space,
    State,
    evolve,
    first_bits,
    sparsity_levels,
)
from waver.training.texts import read_texts

console = Console()
ROUNDS = {
    "depth": (Round(2, 2048), Round(1, 32768)),
    "sparsity": (Round(8, 2048), Round(2, 16384), Round(1, 65536)),
    "bits": (Round(16, 2048), Round(4, 16384), Round(1, 131072)),
}
FAST = (Round(1, 512), Round(1, 8192))
"""The paper's super-fast variant."""
OFFSPRING = {"depth": 32, "sparsity": 64, "bits": 128}
GENERATIONS = {"sparsity": 400, "bits": 150}
TARGETS = {"depth": 0.25, "sparsity": 0.5, "bits": 4.0}
STARTS, START_TOKENS = 64, 2048
"""Random states of which the best is the first parent, and the tokens they are scored on."""
BITS = (2, 6)
BASE_BITS = 3
"""Width of the layers before one when its inputs are measured."""


@dataclass
class Task:
    """A search: its space, how a state is put into the model, first parents, and what to compare with."""

    space: Space
    set: Callable[[State], None]
    starts: list[State]
    rival: tuple[str, State]
    generations: int
    finish: Callable[[State], dict[str, Any]]


def compress(
    model: str, data: Path, run: CompressRun, out: Path, judge: Callable[[PreTrainedModel], Any] | None = None
) -> dict[str, Any]:
    """Compress, or go on; returns the report.

    Args:
        judge: called with the model compressed as was found, and as its rival is; the report has what it returns.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. OSError: a file cannot be read.
    """
    target = _target(run)
    loaded, tokens = checkpoints.load(model)
    loaded.eval()
    sequences: list[tuple[int, ...]] = []
    for text in read_texts(data, tokens, run.length, chunks=True):
        if sum(map(len, sequences)) + len(text.ids) > run.tokens:
            break
        sequences.append(text.ids)
    job.claim(out, asdict(run) | {"model": model, "data": checkpoints.sha256(data)})
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the model is in {out / 'model'}")
        return done
    with counted(console) as bar:
        calibration = Calibration(loaded, sequences, run.top)
        if run.kind == "depth":
            task = _depth(loaded, calibration, target, run)
        else:
            task = _levels(loaded, calibration, target, run, out, bar)
        found = _search(task, calibration, run, out, bar)
    task.set(found.parent)
    report: dict[str, Any] = {"kind": run.kind, "target": target, "divergence": calibration.whole()}
    name, rival = task.rival
    judged = {} if judge is None else {"found": judge(loaded)}
    task.set(rival)
    if judge is not None:
        report["judged"] = judged | {name: judge(loaded)}
    report |= {name: calibration.whole(), "generations": found.generation, "search_tokens": found.tokens}
    before = sum(weight.numel() for weight in loaded.parameters())
    report |= {"parameters_before": before, "levels": task.finish(found.parent)}
    report["parameters"] = sum(weight.numel() for weight in loaded.parameters())
    checkpoints.save(out / "model", loaded, tokens, checkpoints.stored_dtype(model))
    for file in ("levels.json", "report.json"):
        _write(out / file, report["levels"] if file == "levels.json" else report)
    shutil.rmtree(out / "levels", ignore_errors=True)
    console.print(f"KL to the dense model: {report['divergence']:.4f} nats a token; {name}: {report[name]:.4f}")
    console.print(f"The model is in {out / 'model'}.")
    return report


def _target(run: CompressRun) -> float:
    """Return what to aim at.

    Raises:
        ValueError: the options make no run.
    """
    if run.kind not in KINDS:
        raise ValueError(f"--kind is one of {', '.join(KINDS)}, not {run.kind!r}")
    target = TARGETS[run.kind] if run.target is None else run.target
    low, high = BITS if run.kind == "bits" else (0, 1)
    if not (low <= target <= high if run.kind == "bits" else low < target < high):
        raise ValueError(f"--target {target} is not between {low} and {high}, as --kind {run.kind} needs it")
    return target


def _depth(model: PreTrainedModel, calibration: Calibration, target: float, run: CompressRun) -> Task:
    blocks = Blocks(model)
    space = Depth(len(blocks), int(target * len(blocks) + 1e-9), run.whole_blocks)
    if not 0 < space.removed < space.blocks:
        raise ValueError(f"a share of {target} of {space.blocks} blocks removes {space.removed}, which makes no model")
    rng = random.Random(f"starts:{run.seed}")
    alike = blocks.similarities(calibration.ids[0][None].to(model.device))
    redundant = sorted(range(len(blocks)), key=lambda i: -alike[i])[: space.removed]
    half = tuple(int(i in redundant) for i in range(len(blocks)))
    starts = list(dict.fromkeys(space.random(rng) for _ in range(STARTS)))
    return Task(space, blocks.set, starts, ("by_cosine", half + half), max(space.generations, 1), blocks.remove)


def _levels(
    model: PreTrainedModel, calibration: Calibration, target: float, run: CompressRun, out: Path, bar: Any
) -> Task:
    layers = all_layers(model, block_layers(model))
    sizes = [layer.weight.numel() for _, layer in layers]
    names = [name for name, _ in layers]
    count = len(layers)
    if run.kind == "sparsity":
        step = run.step or max(1, min(1_000_000, min(sizes) // 32))
        ranges = [sparsity_levels(target, size, step, run.levels) for size in sizes]
        space = Levels(tuple(r[0] for r in ranges), tuple(r[-1] for r in ranges), (0,) * count)
        base, make = (0,) * count, sparse_at(target, step)
        starts, uniform = [base], base
    else:
        ranges = [range(-BITS[1], -BITS[0] + 1)] * count
        space = Levels((-BITS[1],) * count, (-BITS[0],) * count, tuple(sizes))
        base, make = (-BASE_BITS,) * count, rounded
        rng = random.Random(f"starts:{run.seed}")
        widths = {first_bits(target, sizes, *BITS, rng) for _ in range(1 if target == int(target) else STARTS)}
        starts = [tuple(-bits for bits in own) for own in sorted(widths)]
        uniform = (-int(target),) * count
    task = bar.add_task("layers", total=count)
    everything = [(place, len(ids)) for place, ids in enumerate(calibration.ids)]
    compress_all(
        list(block_layers(model)),
        lambda: calibration.run(everything),
        dict(zip(names, ranges, strict=True)),
        make,
        dict(zip(names, base, strict=True)),
        out / "levels",
        lambda: bar.advance(task),
    )
    database = Database(layers, out / "levels", base)

    def finish(state: State) -> dict[str, Any]:
        database.set(state)
        if run.kind == "bits":
            return {name: -level for name, level in zip(names, state, strict=True)}
        return {name: float((layer.weight == 0).float().mean()) for (name, layer), _ in zip(layers, state, strict=True)}

    generations = GENERATIONS[run.kind]
    return Task(space, database.set, starts, ("uniform", uniform), generations, finish)


def _search(task: Task, calibration: Calibration, run: CompressRun, out: Path, bar: Any) -> Progress:
    most = calibration.tokens
    rounds = [Round(each.survivors, min(each.tokens, most)) for each in (FAST if run.fast else ROUNDS[run.kind])]
    generations = run.generations or task.generations
    count = run.offspring or (16 if run.fast else OFFSPRING[run.kind])

    def score(states: Sequence[State], tokens: int, rng: random.Random) -> list[float]:
        batch = calibration.minibatch(tokens, rng)
        found = []
        for state in states:
            task.set(state)
            found.append(calibration.score(batch))
        return found

    progress = _begun(out / "search.json")
    if progress is None:
        rng = random.Random(f"search:{run.seed}")
        tokens = min(START_TOKENS, most)
        scores = score(task.starts, tokens, rng) if len(task.starts) > 1 else [0.0]
        best = task.starts[scores.index(min(scores))]
        progress = Progress(best, tokens=len(task.starts) * tokens * (len(task.starts) > 1), rng=rng)
    shown = bar.add_task("generations", total=generations, completed=progress.generation)
    for each in evolve(task.space, progress, score, rounds, generations, count):
        state = {"parent": each.parent, "generation": each.generation, "tokens": each.tokens}
        _write(out / "search.json", state | {"rng": each.rng.getstate()})
        bar.advance(shown)
    return progress


def _begun(file: Path) -> Progress | None:
    """Return the state of a stopped search."""
    past = job.read_record(file)
    if past is None:
        return None
    rng = random.Random()
    version, internal, gauss = past["rng"]
    rng.setstate((version, tuple(internal), gauss))
    return Progress(tuple(past["parent"]), past["generation"], past["tokens"], rng)


def _write(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=1 if file.name != "search.json" else None) + "\n"
    job.replace_file(file, partial(Path.write_text, data=text, encoding="utf-8"))
