"""Run `waver train probe`: an engine's own answers to questions become probes for `diffadapt`.

The folder holds a probe for each rule of labels (`paper/`, `strict_easy/`, and `oracle/` where the strategies were
tried), `README.md` with plots, `questions.jsonl` (what the answers to each question were like) and `run.json`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from waver import job
from waver.engines import ModelConfig, UpstreamConfig, load_engine
from waver.engines.base import Engine
from waver.engines.probe import Probe, Record, reference_ids
from waver.progress import counted
from waver.training.options import Tuning
from waver.training.probe import report
from waver.training.probe.fit import PAPER, BestFit, best_fit, split, weights
from waver.training.probe.labels import CLASSES, RULES, Thresholds, Ways, median_beta, solved_beta
from waver.training.probe.sampling import Asking, Opening, ProbeRun, Way, ask_all, states
from waver.training.tasks.rewards import Reward

TEMPERATURE, TOP_P = 0.6, 0.95
"""DiffAdapt's sampling (arXiv 2510.19669) for the answers that labels are made from; beta depends on it."""
QUESTION = "Before I answer, let me judge how hard this is, to set a budget for it. This task is"
FEW = 200
"""With fewer questions a probe is mostly chance."""

console = Console()


@dataclass(frozen=True)
class Observations:
    """An engine's answers by way for each question; by probe words, hidden states `[questions, hidden]` and the
    reference prompt with its state."""

    asked: Sequence[Ways]
    states: dict[str, torch.Tensor]
    references: dict[str, tuple[tuple[int, ...], torch.Tensor]]


@dataclass(frozen=True)
class Source:
    """The engine that answers: name, configuration, how its strategies begin an answer, and answers at a time."""

    name: str
    config: ModelConfig
    openings: Mapping[str, Opening]
    at_once: int


def way(words: str, samples: int, max_tokens: int, temperature: float | None = None, top_p: float | None = None) -> Way:
    """Return a way to answer; at the paper's temperature and top_p where it has none of its own."""
    temperature = TEMPERATURE if temperature is None else temperature
    return Way(words, temperature, TOP_P if top_p is None else top_p, max_tokens, samples)


def model_name(model: str) -> str:
    """Return what a report calls a model: the end of a folder's path, or a hub's name as it is."""
    return "/".join(Path(model).resolve().parts[-2:]) if Path(model).is_dir() else model


def train(
    source: Source, rows: Sequence[Mapping[str, Any]], reward: Reward, run: ProbeRun, tuning: Tuning, out: Path
) -> None:
    """Ask, or go on asking; label, train and write everything into `out`.

    Raises:
        ValueError: this cannot be done, or `out` holds another run; the message is for the user.
        EngineError: the engine died.
    """
    if isinstance(source.config, UpstreamConfig):
        raise ValueError(f"engine {source.name!r} is a server elsewhere, which hands out no hidden states")
    if tuning.beta == "solved" and CLASSES[0] not in run.ways:
        raise ValueError("beta from what the easy strategy solves needs answers in it: add --strategy-samples 4")
    if len(rows) < FEW:
        console.print(f"{len(rows)} questions are few: below {FEW} a probe is mostly chance.", soft_wrap=True)
    digest = hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
    job.claim(out, asdict(run) | {"rows": len(rows), "sha256": digest})
    found = asyncio.run(_observe(source, rows, reward, run, tuning.words, out))
    thresholds, suggested = _thresholds(found.asked, tuning)
    labels = {rule: torch.tensor([RULES[rule](each, thresholds) for each in found.asked]) for rule in _rules(run)}
    kept = _fit_rules(found, labels, tuning.seeds)
    if not kept:
        raise ValueError("no rule tells these questions apart: bring easier and harder ones")
    for rule, best in kept.items():
        about = {
            "questions": len(rows),
            "asked": run.questions,
            "ways": {name: asdict(way) for name, way in run.ways.items()},
            "classes": _counts(labels[rule]),
            "macro_f1": round(best.fitted.macro_f1, 4),
            "seed": best.seed,
            "epoch": best.fitted.epoch,
        }
        used = {} if rule == "oracle" else asdict(thresholds)
        record = Record(model=run.model, words=best.words, labels=rule, thresholds=used, classes=CLASSES, about=about)
        Probe(weights(best.fitted.network), record, *found.references[best.words]).save(out / rule)
    report.write(out, run, rows, found.asked, thresholds, suggested, labels, kept)
    console.print(f"The probes are in {out}: {', '.join(kept)}. How they came about: {out / 'README.md'}")


def _fit_rules(found: Observations, labels: Mapping[str, torch.Tensor], seeds: int) -> dict[str, BestFit]:
    """Return the best probe for each rule whose labels differ; say which rules need none."""
    kept = {}
    for rule, classes in labels.items():
        if len(classes.unique()) < 2:
            only = CLASSES[int(classes[0])]
            console.print(f"{rule}: all questions are {only}, which needs no probe.", soft_wrap=True)
        else:
            kept[rule] = best_fit(found.states, classes, seeds)
    return kept


def _rules(run: ProbeRun) -> list[str]:
    return [rule for rule in RULES if rule != "oracle" or all(name in run.ways for name in CLASSES)]


def _counts(classes: torch.Tensor) -> dict[str, int]:
    return {name: int((classes == place).sum()) for place, name in enumerate(CLASSES)}


async def _observe(
    source: Source, rows: Sequence[Mapping[str, Any]], reward: Reward, run: ProbeRun, words: tuple[str, ...], out: Path
) -> Observations:
    engine = await asyncio.to_thread(load_engine, source.name, source.config)
    try:
        if "hidden_state" not in engine.exposes:
            raise ValueError(f"engine {source.name!r} hands out no hidden states, which a probe reads")
        with counted(console) as bar:
            task = bar.add_task("asking", total=len(rows))
            asking = Asking(engine, run.ways, source.openings, reward, source.at_once, run.seed)
            try:
                asked = await ask_all(asking, rows, out / "questions.jsonl", lambda: bar.advance(task))
            except asyncio.CancelledError:
                done = int(bar.tasks[task].completed)
                console.print(f"Stopped after {done} of {len(rows)} questions; the same command goes on from here.")
                raise
            tried = words or (default_words(engine),)
            task = bar.add_task("hidden states", total=len(tried))
            seen, references = {}, {}
            for each in tried:
                seen[each] = await states(engine, rows, each)
                ids = reference_ids(engine, each)
                references[each] = ids, await engine.hidden_state(ids)
                bar.advance(task)
        return Observations(asked, seen, references)
    finally:
        await engine.aclose()


def default_words(engine: Engine) -> str:
    """Return a sentence that is about to say how hard the question is, inside the thoughts of a model that has them."""
    return QUESTION if engine.tokens.think is None else f"<think>\n{QUESTION}"


def _thresholds(asked: Sequence[Ways], tuning: Tuning) -> tuple[Thresholds, dict[str, float]]:
    """Return the thresholds to use, and the betas that the questions to train on suggest."""
    taught = [asked[place] for place in split(len(asked), PAPER)[0].tolist()]
    suggested = {"median": median_beta(taught)}
    if CLASSES[0] in asked[0]:
        suggested["solved"] = solved_beta(taught, tuning.alpha)
    beta = suggested[tuning.beta] if isinstance(tuning.beta, str) else tuning.beta
    return Thresholds(tuning.alpha, beta, tuning.gamma), suggested
