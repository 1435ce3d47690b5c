"""Compare the entropies that answers report with those of a float64 softmax.

The reference shares nothing with the engine but the weights: one plain pass of the model over each whole answer,
without a cache and without a batch, once in the model's own precision and once in float64; its softmax is float64 in
both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.answers import AT_ONCE, LARGE, SMALL, load_pair
from waver.engines.base import Engine, Sampling, Step
from waver.engines.transformers import TransformersEngine
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.registry import parse
from waver.policies.report import Report
from waver.policies.services import Services
from waver.training.pair.world import TASKS, draw

LIMIT = 1e-4
"""Nats between a mean entropy and its reference."""
WAYS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "small": (SMALL, []),
    "large": (LARGE, []),
    "ead": (SMALL, [{"name": "ead", "window": 1, "min_tokens": 1, "threshold": 0.1}]),
}

app = report.command()


async def _answer(
    engines: Mapping[str, Engine], way: str, prompt: Sequence[int], max_tokens: int, seed: int
) -> tuple[Report, list[Step]]:
    engine, policy = WAYS[way]
    job = Job(
        tuple(prompt), Sampling(temperature=1.0, max_tokens=max_tokens, seed=seed), engine, Services(engines), Report()
    )
    steps = []
    async with aclosing(Proceed(parse(policy, engines))(job)) as produced:
        async for step in produced:
            job.report.observe(step)
            steps.append(step)
    return job.report, steps


@torch.inference_mode()
def reference(engine: Engine, prompt: Sequence[int], answer: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return entropies `[answer]` in nats of a plain pass in `dtype`, softmax in float64; the model is left in
    `dtype`."""
    assert isinstance(engine, TransformersEngine)
    model: Any = engine.model
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model.to(dtype)(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    logs = logits[:, : engine.tokens.vocab_size].log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).cpu()


async def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    n, seed = settings["n"], settings["seed"]
    items = [item for task in TASKS for item in draw(task, seed, n)][:: len(TASKS)]  # n in all, of every task
    found: dict[str, Any] = {}
    async with load_pair(settings["models"], AT_ONCE) as engines:
        prompts = [engines[SMALL].tokens.chat([{"role": "user", "content": item.open_book}]) for item in items]
        answers = {}
        for way in WAYS:
            task = bar.add_task(f"{way}: answers", total=None)
            answers[way] = await asyncio.gather(
                *(_answer(engines, way, prompt, settings["max_tokens"], i) for i, prompt in enumerate(prompts))
            )
            bar.update(task, total=len(prompts), completed=len(prompts))
        own = {name: engine.embedding_matrix().dtype for name, engine in engines.items()}
        for precision in ("own", "float64"):
            task = bar.add_task(f"reference, {precision}", total=len(prompts) * len(WAYS))
            for way in WAYS:
                tokens, means = [], []
                for prompt, (told, steps) in zip(prompts, answers[way], strict=True):
                    dtype = own if precision == "own" else dict.fromkeys(engines, torch.float64)
                    written = [step.token for step in steps]
                    exact = {name: reference(engines[name], prompt, written, dtype[name]) for name in told.tokens}
                    expected = np.array([float(exact[step.engine][t]) for t, step in enumerate(steps)])
                    tokens += list(abs(expected - [step.entropy for step in steps]))
                    means.append(abs(told.as_dict()["entropy"]["mean"] - expected.mean()))
                    bar.advance(task)
                found.setdefault(way, {"answers": len(prompts), "tokens": len(tokens)})[precision] = {
                    "means": {"mean": float(np.mean(means)), "max": float(max(means))},
                    "tokens": {"mean": float(np.mean(tokens)), "max": float(max(tokens))},
                }
    held = all(ways["own"]["means"]["max"] <= LIMIT for ways in found.values())
    return {"limit": LIMIT, "met": held, "ways": found}


def page(numbers: Mapping[str, Any]) -> list[str]:
    first = next(iter(numbers["ways"].values()))
    return [
        "# Entropies against a float64 softmax",
        f"{first['answers']} sampled answers (temperature 1) to questions of all kinds, each way; deviations in nats, "
        "mean and largest. *Answers*: of the reported mean entropy; *tokens*: of every single token. The reference is "
        "a plain pass over the whole answer, without cache or batch, in the model's own precision or in float64 "
        "throughout; its softmax is always float64.",
        f"**Mean entropies within {numbers['limit']:g} nats of a float64 softmax**: {report.verdict(numbers['met'])}.",
        report.table(
            ("way", "tokens", "reference", "answers, mean", "answers, max", "tokens, mean", "tokens, max"),
            [
                [way, f"{found['tokens']:,}", precision, *(f"{found[precision][of][kind]:.1e}" for of, kind in KINDS)]
                for way, found in numbers["ways"].items()
                for precision in ("own", "float64")
            ],
        ),
    ]


KINDS = (("means", "mean"), ("means", "max"), ("tokens", "mean"), ("tokens", "max"))


@app.command()
def main(
    context: typer.Context,
    seed: report.Seed = 40260,
    n: Annotated[int, typer.Option(min=4, help="Answers, for each way.")] = 200,
    max_tokens: report.MaxTokens = 128,
    models: report.Models = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare reported entropies with those of a float64 softmax, alone and across hand-overs.

    Writes entropy_check.json and .md. About 2 minutes on two cores.
    """
    report.need_extra()
    settings = dict(context.params)
    conditions = report.conditions("entropy-check", settings)
    with report.progress() as bar:
        found = conditions | asyncio.run(measure(settings, bar))
    report.write(out, "entropy_check", found, page(found))


if __name__ == "__main__":
    app()
