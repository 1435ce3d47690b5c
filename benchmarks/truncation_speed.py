"""Time every transform against `top_p`, in the function that the engines call."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.stats import middle
from waver.engines.base import Sampling
from waver.engines.sampling import Row, draw
from waver.engines.transforms import from_data, truncate
from waver.entropy.geometry import whiten

VOCABULARIES = {"32k": 32_000, "152k": 151_936}
BATCHES = (1, 32, 256)
STEPS = {1: 16}
"""Steps that make one run, else one: what a step costs depends on its rows, and a single one is none to judge by."""
SHAPES = {"text": 1.5, "flat": 0.7}
"""Exponents of the power law that a row's probabilities follow by rank: with 1.5 a few hundred tokens have 0.9 of the
mass, as in text; with 0.7 it takes most of the vocabulary, as at a high temperature."""
TOP_P = "top_p 0.9"
FAST, ACTING, NEIGHBOURS = "top_w", "top_w, warm_mass 0.05", "top_w, k-NN"
METHODS: dict[str, Mapping[str, Any]] = {
    TOP_P: {"name": "top_p", "p": 0.9},
    FAST: {"name": "top_w"},
    ACTING: {"name": "top_w", "warm_mass": 0.05},
    NEIGHBOURS: {"name": "top_w", "potential": "knn"},
    "min_p 0.1": {"name": "min_p", "p": 0.1},
    "typical 0.95": {"name": "typical", "p": 0.95},
    "eta 0.0002": {"name": "eta", "epsilon": 2e-4},
    "epsilon 0.0003": {"name": "epsilon", "epsilon": 3e-4},
    "top_n_sigma 1": {"name": "top_n_sigma", "n": 1.0},
    "top_h 0.4, running": {"name": "top_h", "alpha": 0.4},
    "top_h 0.4, renormalised": {"name": "top_h", "alpha": 0.4, "form": "renormalised"},
}
VLLM = "top_p 0.9 of vLLM"
BARS = {FAST: 1.05, ACTING: 2.0, NEIGHBOURS: 2.0}
"""At most so many times the time of `top_p`."""

app = report.command()


def rows(shape: str, count: int, vocab: int, seed: int, device: str) -> torch.Tensor:
    """Return `[count, vocab]` logits whose probabilities fall by a power of their rank, jittered, each row in an order
    of its own."""
    generator = torch.Generator().manual_seed(seed)
    fall = -SHAPES[shape] * torch.arange(1, vocab + 1).float().log()
    logits = fall + 0.5 * torch.randn(count, vocab, generator=generator)
    for row in logits:
        row.copy_(row[torch.randperm(vocab, generator=generator)])
    return logits.to(device)


Way = Callable[[torch.Tensor], object]
"""A timed function: one step, on its logits."""


def seconds(way: Way, steps: Sequence[torch.Tensor], device: str) -> float:
    """Return the mean seconds of one step."""
    begun = time.perf_counter()
    for logits in steps:
        way(logits)
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / len(steps)


def ways(batch: int, geometry: torch.Tensor, device: str) -> dict[str, dict[str, Way]]:
    """Return each truncation by itself, and the whole draw with it."""

    def pair(data: Mapping[str, Any]) -> dict[str, Way]:
        own = from_data(dict(data))
        native = own.sampling_fields if own.name == "top_p" else {}
        samplings = [Sampling(**native) if native else Sampling(transforms=(own,))] * batch  # type: ignore[arg-type]
        asked = [Row(sampling, (), 0, ()) for sampling in samplings]
        return {
            "alone": lambda logits: truncate(logits, [(own,)] * batch, geometry),
            "draw": lambda logits: draw(logits, asked, geometry),
        }

    found = {name: pair(data) for name, data in METHODS.items()}
    if importlib.util.find_spec("vllm"):
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        p = torch.full((batch,), 0.9, device=device)
        found[VLLM] = {"alone": lambda logits: apply_top_k_top_p(logits.clone(), None, p)}  # it works in place
    return found


@torch.inference_mode()
def cell(
    steps: Sequence[torch.Tensor], geometry: torch.Tensor, runs: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Return ratios to `top_p` of the same run, with the methods in another order each time; milliseconds as they
    came."""
    device = steps[0].device.type
    found = ways(len(steps[0]), geometry, device)
    ratios: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name, kinds in found.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    names = list(found)
    for run in range(-1, runs):  # run -1 warms up
        turned = names[run % len(names) :] + names[: run % len(names)]
        for kind in ("alone", "draw"):
            took = {name: seconds(found[name][kind], steps, device) for name in turned if kind in found[name]}
            if run < 0:
                continue
            for name, value in took.items():
                ratios[name][kind].append(value / took[TOP_P])
            if kind == "alone":
                for name, value in took.items():
                    times[name].append(1000 * value)
        advance()
    return {
        name: {kind: middle(values) for kind, values in kinds.items()} | {"milliseconds": middle(times[name])}
        for name, kinds in ratios.items()
    }


def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    device, dim = settings["device"], settings["dim"]
    found: dict[str, Any] = {"cells": {}, "whitening": {}}
    for label, vocab in VOCABULARIES.items():
        embedding = torch.randn(vocab, dim, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
        begun = time.perf_counter()
        geometry = whiten(embedding)
        took = time.perf_counter() - begun
        size = geometry.numel() * geometry.element_size() / 2**20
        found["whitening"][label] = {"mebibytes": size, "seconds": took, "dim": dim}
        for shape in SHAPES:
            for batch in BATCHES:
                task = bar.add_task(f"{label}, {shape}, batch {batch}", total=1 + settings["runs"])
                logits = rows(shape, batch * STEPS.get(batch, 1), vocab, settings["seed"], device)
                found["cells"][f"{label}, {shape}, batch {batch}"] = cell(
                    logits.split(batch),
                    geometry,
                    settings["runs"],
                    lambda t=task: bar.advance(t),  # type: ignore[misc]
                )
    return found


def bars(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each bar the worst cell, and whether it holds in all."""
    out = {}
    for name, limit in BARS.items():
        medians = {key: cell[name]["alone"]["median"] for key, cell in cells.items()}
        worst = max(medians, key=lambda key: medians[key])
        out[name] = {"limit": limit, "met": medians[worst] <= limit, "worst": medians[worst], "at": worst}
    return out


def page(found: Mapping[str, Any]) -> list[str]:
    settings, cells = found["settings"], found["cells"]
    parts = [
        "# What truncating costs",
        f"Time of one truncation of a batch of logits, against `top_p` (p = 0.9) in the same run: the median of "
        f"{settings['runs']} runs whose order changes, with the lowest and the highest. In the last column the same "
        "for the whole draw (temperature, truncation, softmax, draw). *Text*: probabilities fall as rank^-1.5, so that "
        "few tokens matter; *flat*: as rank^-0.7, so that most do. All rows of a batch ask for the same. What a row "
        f"costs depends on it, so at batch 1 a run is {STEPS[1]} steps, each with another row; times are of one.",
    ]
    for name, one in found["bars"].items():
        parts.append(
            f"**`{name}` at most {one['limit']:g} times a `top_p` step**: {report.verdict(one['met'])}; the highest "
            f"median is {one['worst']:.2f} ({one['at']})."
        )
    for key, measured in cells.items():
        head = (key, "milliseconds", "against top_p", "whole draw")
        parts.append(report.table(head, [_line(name, value) for name, value in measured.items()]))
    white = found["whitening"]
    parts.append(
        "The whitened embeddings that geometry needs are made once for an engine and held in float32: "
        + "; ".join(
            f"{label}: {w['mebibytes']:.0f} MiB at {w['dim']} dimensions, in {w['seconds']:.1f} s"
            for label, w in white.items()
        )
        + ". Nothing else of that size is held meanwhile."
    )
    return parts


def _line(name: str, value: Mapping[str, Any]) -> Sequence[str]:
    def spread(key: str) -> str:
        if key not in value:
            return "–"
        return f"{value[key]['median']:.2f} ({value[key]['lowest']:.2f}–{value[key]['highest']:.2f})"

    return name, f"{value['milliseconds']['median']:.2f}", spread("alone"), spread("draw")


@app.command()
def main(
    context: typer.Context,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each cell, after one to warm up.")] = 7,
    dim: Annotated[int, typer.Option(min=1, help="Dimensions of the embeddings.")] = 896,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the logits.")] = 50260,
    out: report.Out = report.RESULTS,
) -> None:
    """Time every transform against `top_p`, at vocabularies of 32k and 152k and batches of 1, 32 and 256.

    Writes truncation_speed.json and .md. About 18 minutes on two cores.
    """
    settings = dict(context.params)
    conditions = report.conditions("truncation-speed", settings)
    with report.progress() as bar:
        found = conditions | measure(settings, bar)
    found["bars"] = bars(found["cells"])
    report.write(out, "truncation_speed", found, page(found))


if __name__ == "__main__":
    app()
