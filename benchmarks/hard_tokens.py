"""Tune the bundled small model on the tokens that are hard for how uncertain it is (Light-IF, arXiv 2508.03178)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import cross_entropy

from waver.benchmarks.experiments import Found
from waver.entropy import shannon_entropy
from waver.resources import MODELS
from waver.training import checkpoints
from waver.training.pair.data import Turn, encode
from waver.training.pair.world import RELATIONS, towns
from waver.training.texts import IGNORED
from waver.training.tuning.entropy_sft import SHARE, loss

BATCH, RATE = 32, 1e-3
ENOUGH, EVERY, MOST_STEPS = 0.95, 20, 400
"""The share of right answers at which ways are compared, steps between two looks at it, and the most steps."""
OPEN, RIGHT = 40, 3
"""Questions with several right answers, and how many each has; as many others have one."""
Rows = list[tuple[list[int], list[bool]]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _random(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    kept = torch.randperm(len(labels))[: int(SHARE * len(labels))]
    return cross_entropy(logits[kept], labels[kept])


WAYS: Mapping[str, Loss] = {
    "all tokens": cross_entropy,
    "80 % at random": _random,
    "80 %, by cross-entropy": lambda logits, labels: loss(logits, labels, weight=0.0),
    "80 %, Entropy-SFT": loss,
}


def hard_tokens(seed: int) -> Found:
    """Tune on facts that the model does not know, half of them with one answer and half with three; return entropies
    (nats) and what it gets right."""
    draw, found = random.Random(f"hard tokens:{seed}"), {}
    model, tokens = checkpoints.load(str(MODELS / "small"))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = draw.sample([(town, name) for town in towns()["rare"] for name in RELATIONS], 2 * OPEN)
    sure: Rows = []
    several: list[Rows] = []
    for i, (town, name) in enumerate(chosen):
        asked = RELATIONS[name]
        question = asked.questions[0].format(town=town.name)
        values = [town.facts[name]] if i < OPEN else draw.sample(asked.values, RIGHT)
        rows = [encode([Turn(question, asked.statement.format(town=town.name, value=v))], tokens.tokenizer)
                for v in values]  # fmt: skip
        if i < OPEN:
            sure += rows
        else:
            several.append(rows)
    open_rows = [row for rows in several for row in rows]
    for name, of in WAYS.items():
        model.load_state_dict(start)
        found[name] = _tuned(model, of, sure, open_rows, seed)
    return found


def _tuned(model: torch.nn.Module, of: Loss, sure: Rows, several: Rows, seed: int) -> dict[str, float]:
    """Tune until enough is right of what has one answer; return the steps and what the model has become."""
    torch.manual_seed(seed)
    order, learned = random.Random(seed), sure * RIGHT + several
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    found: dict[str, float] = {}
    for steps in range(EVERY, MOST_STEPS + 1, EVERY):
        model.train()
        for _ in range(EVERY):
            logits, labels = scored(model, order.sample(learned, BATCH))
            optimizer.zero_grad()
            of(logits, labels).backward()
            optimizer.step()
        found = {"steps": float(steps), **_judged(model, sure, several)}
        if found["right of those with one answer"] >= ENOUGH:
            break
    return found


def scored(model: torch.nn.Module, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits at learned tokens `[n, vocab]` and these tokens `[n]`."""
    longest = max(len(ids) for ids, _ in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), IGNORED)
    for i, (own, flags) in enumerate(rows):
        ids[i, : len(own)] = torch.tensor(own)
        labels[i, : len(own)] = torch.where(torch.tensor(flags), torch.tensor(own), IGNORED)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # padding on the right is behind all that is learned
    valid = labels[:, 1:] != IGNORED
    return logits[valid].float(), labels[:, 1:][valid]


@torch.inference_mode()
def _judged(model: torch.nn.Module, sure: Rows, several: Rows) -> dict[str, float]:
    model.eval()
    rows = [*sure, *several]
    logits, labels = scored(model, rows)
    sizes = [sum(flags[1:]) for _, flags in rows]
    entropies = shannon_entropy(logits)
    right = [bool(each.all()) for each in (logits.argmax(-1) == labels).split(sizes)[: len(sure)]]
    parting = [float(each.max()) for each in entropies.split(sizes)[len(sure) :]]  # at the value, where answers part
    return {
        "right of those with one answer": sum(right) / len(right),
        "entropy": float(entropies.mean()),
        "entropy where answers part": sum(parting) / len(parting),
        "loss": float(cross_entropy(logits, labels)),
    }
