"""Small experiments on adapters that route tokens: DynMoLE (arXiv 2504.00661) and Queryable LoRA (arXiv 2605.08423)
against LoRA of as many parameters, on regressions of mixed regimes, and on two tasks of the bundled small model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import gelu, mse_loss

from waver.benchmarks.experiments import Found
from waver.engines.tuners.dynmole import DynMoleConfig
from waver.engines.tuners.queryable import QueryableLoraConfig
from waver.engines.tuners.routing import RoutedTuner, usage
from waver.resources import MODELS
from waver.training import checkpoints
from waver.training.pair.world import RELATIONS, random_town, unknown_names
from waver.training.texts import Text, as_text, mean_loss, padded

WIDTH, REGIMES = 24, 6


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


# DynMoLE: a linear layer learns six regimes, and three tokens of ten lie half-way between two of them.

SOFT: dict[str, dict[str, Any]] = {
    "top_2": {"threshold": 1.0, "top_p": 1e-9, "renormalise": True, "entropy_weight": 0.0},
    "soft": {"threshold": 0.0, "entropy_weight": 0.0},
    "nucleus": {"threshold": 1.0, "entropy_weight": 0.0},
    "no_entropy_loss": {"entropy_weight": 0.0},
    "dynmole": {},
}


class Frozen(nn.Module):
    """A frozen linear layer of zeros, to be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(x)
        return made


@dataclass(frozen=True)
class Regimes:
    """Centres `[6, 24]` of regimes, and the maps of rank 2 that each token of one is to go through."""

    centres: torch.Tensor
    maps: torch.Tensor

    @classmethod
    def draw_all(cls, generator: torch.Generator) -> Regimes:
        """Draw the regimes."""
        up = torch.randn(REGIMES, WIDTH, 2, generator=generator) / math.sqrt(2)
        down = torch.randn(REGIMES, 2, WIDTH, generator=generator) / math.sqrt(WIDTH)
        return cls(0.9 * torch.randn(REGIMES, WIDTH, generator=generator), up @ down)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens `[count, 24]` and what they should become."""
        first, second = torch.randint(REGIMES, (2, count), generator=generator)
        between = torch.rand(count, generator=generator) < 0.3
        second = torch.where(between, second, first)
        x = (self.centres[first] + self.centres[second]) / 2 + torch.randn(count, WIDTH, generator=generator)
        mixed = (self.maps[first] + self.maps[second]) / 2
        noise = 0.1 * torch.randn(count, WIDTH, generator=generator)
        return x, (mixed @ x.unsqueeze(-1)).squeeze(-1) + noise


def dynmole(seed: int, ways: Iterable[str] = ("lora", *SOFT), steps: int = 600) -> Found:
    """Return the squared error on fresh tokens as a part of the variance, and how many experts a token gets."""
    generator = torch.Generator().manual_seed(seed)
    task = Regimes.draw_all(generator)
    x, y = task.draw(4096, generator)
    found = {}
    for way in ways:
        torch.manual_seed(seed)
        drawn = torch.Generator().manual_seed(seed + 1000)
        if way == "lora":  # 2 * 15 * 24 parameters, as six experts of rank 2 and their router
            config: Any = LoraConfig(r=15, lora_alpha=30, target_modules=["layer"])
        else:
            config = DynMoleConfig(r=2, alpha=4, dropout=0.0, experts=6, target_modules=["layer"], **SOFT[way])
        model = get_peft_model(Frozen(), config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
        tuner = model.base_model
        for _ in range(steps):
            tokens, wanted = task.draw(128, drawn)
            optimizer.zero_grad()
            if isinstance(tuner, RoutedTuner):
                with tuner.recorder.recording() as decisions:
                    loss = mse_loss(model(tokens), wanted)
                loss = loss + tuner.losses(decisions).total
            else:
                loss = mse_loss(model(tokens), wanted)
            loss.backward()
            optimizer.step()
        active = 1.0
        with torch.no_grad():
            if isinstance(tuner, RoutedTuner):
                with tuner.recorder.recording() as decisions:
                    error = mse_loss(model(x), y) / y.var()
                active = usage(decisions).active
            else:
                error = mse_loss(model(x), y) / y.var()
        found[way] = {"error": float(error), "active": active, "parameters": float(parameters(model))}
    return found


# Queryable LoRA: a network of six residual layers, trained on one function, is adapted to one with four regimes.


class Residual(nn.Module):
    """One residual layer, h + gelu(W h + b) / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(32, 32)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + 0.5 * gelu(self.mix(h))


def network() -> nn.Sequential:
    """Return the network, from 8 numbers to one."""
    return nn.Sequential(nn.Linear(8, 32), *(Residual() for _ in range(6)), nn.Linear(32, 1))


@dataclass(frozen=True)
class Shift:
    """A function of eight numbers that a network knows, and one of four regimes that it is adapted to."""

    a: torch.Tensor
    centres: torch.Tensor
    readings: torch.Tensor

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * x @ self.a) + 0.3 * x[..., 0] * x[..., 1]

    def regimes(self, x: torch.Tensor) -> torch.Tensor:
        return (8 * x @ self.centres.T / math.sqrt(8)).softmax(-1)

    def after(self, x: torch.Tensor) -> torch.Tensor:
        sums = torch.einsum("nd,rdk->nr", x, self.readings)
        return self.before(x) + (self.regimes(x) * sums).sum(-1)

    def prior(self, regimes: torch.Tensor) -> torch.Tensor:
        """Prefer two atoms for each regime, `[points]` -> `[points, 8]`."""
        known = torch.full((len(regimes), 8), 0.2 / 6)
        for each in (0, 1):
            known.scatter_(1, (2 * regimes + each).unsqueeze(-1), 0.4)
        return known


def queryable_lora(seed: int, ways: Iterable[str] = ("lora", "queryable", "informed", "misinformed")) -> Found:
    """Return the error on noise-free fresh points as a part of the variance.

    `informed` gets a prior over atoms that knows a point's regime, `misinformed` one of a random regime.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shift = Shift(normal(8) / math.sqrt(8), normal(4, 8), normal(4, 8, 4) / math.sqrt(8))
    base = network()
    optimizer = torch.optim.Adam(base.parameters(), lr=2e-3)
    for _ in range(500):
        x = normal(128, 8)
        optimizer.zero_grad()
        mse_loss(base(x).squeeze(-1), shift.before(x)).backward()
        optimizer.step()
    x, judged = normal(4000, 8), normal(4000, 8)
    y, wanted = shift.after(x) + 0.3 * normal(4000), shift.after(judged)
    found = {}
    for way in ways:
        torch.manual_seed(seed)
        drawn = torch.Generator().manual_seed(seed + 1000)
        adapted = get_peft_model(deepcopy(base), _adapter(way))
        optimizer = torch.optim.AdamW(adapted.parameters(), lr=4e-3)
        for _ in range(700):
            rows = torch.randint(4000, (64,), generator=drawn)
            optimizer.zero_grad()
            mse_loss(_told(adapted, x[rows], shift, way), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            error = float(mse_loss(_told(adapted, judged, shift, way), wanted) / wanted.var())
        found[way] = {"error": error, "parameters": float(parameters(adapted))}
    return found


def _told(adapted: Any, x: torch.Tensor, shift: Shift, way: str) -> torch.Tensor:
    """Run the network, with a prior where the way has one."""
    told = None
    if way in ("informed", "misinformed"):
        told = shift.prior(shift.regimes(x).argmax(-1) if way == "informed" else torch.randint(4, (len(x),)))
    with nullcontext() if told is None else adapted.base_model.prior(told):
        made: torch.Tensor = adapted(x.unsqueeze(1))[:, 0, 0]
        return made


def _adapter(way: str) -> Any:
    if way == "lora":
        return LoraConfig(r=4, lora_alpha=8, target_modules=["mix"])
    return QueryableLoraConfig(r=3, alpha=6, atoms=8, query=8, block=2, top=2, target_modules=["mix"])


# Two tasks at once for the bundled small model: facts about new towns, and a new operation on numbers.


def mixed_tasks(seed: int, ways: Iterable[str] = ("lora", "dynmole", "queryable_lora"), steps: int = 150) -> Found:
    """Return the losses on both tasks in other words and numbers, in nats."""
    rng = random.Random(f"mixed:{seed}")
    towns = [random_town(name, rng) for name in rng.sample(unknown_names(), 16)]
    pairs = [(rng.randrange(10, 50), rng.randrange(10, 50)) for _ in range(160)]

    def facts(wording: int) -> list[dict[str, str]]:
        return [
            {"question": relation.questions[wording].format(town=town.name), "answer": town.statement(key)}
            for town in towns
            for key, relation in RELATIONS.items()
        ]

    sums = [{"question": f"What is {a} # {b}?", "answer": f"The answer is {2 * a + b}."} for a, b in pairs]
    learned = [facts(0) + facts(1), sums[:128]]
    found = {}
    for way in ways:
        model, tokens = checkpoints.load(str(MODELS / "small"))
        held = {"facts": facts(2), "numbers": sums[128:]}
        texts = {name: [as_text(row, tokens) for row in rows] for name, rows in held.items()}
        torch.manual_seed(seed)
        adapted = get_peft_model(model, _on_all(way))
        _learn(adapted, [[as_text(row, tokens) for row in task] for task in learned], steps, seed)
        losses = {name: mean_loss(adapted, rows) for name, rows in texts.items()}
        found[way] = losses | {"parameters": float(parameters(adapted))}
    return found


def _on_all(way: str) -> Any:
    """Return adapters on all linear layers of the small model, of about as many parameters."""
    common: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    made: dict[str, Callable[[], Any]] = {
        "lora": lambda: LoraConfig(r=10, lora_alpha=20, **common),
        "dynmole": lambda: DynMoleConfig(r=2, alpha=4, experts=4, dropout=0.0, **common),
        "queryable_lora": lambda: QueryableLoraConfig(r=9, alpha=18, atoms=8, query=8, block=1, **common),
    }
    return made[way]()


def _learn(model: Any, tasks: list[list[Text]], steps: int, seed: int) -> None:
    drawn = random.Random(seed)
    tuner = model.base_model
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-3)
    model.train()
    for _ in range(steps):
        batch = padded([text for task in tasks for text in drawn.sample(task, 4)])
        optimizer.zero_grad()
        if isinstance(tuner, RoutedTuner):
            with tuner.recorder.recording() as decisions:
                loss = model(**batch).loss
            loss = loss + tuner.losses(decisions).total
        else:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
