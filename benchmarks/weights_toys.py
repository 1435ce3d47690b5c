"""Small experiments on methods that change weights, each in seconds to a minute of one core.

Every experiment takes a seed and returns measures by the way that is compared; `waver bench weights` runs them over
seeds, the tests a small one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, mse_loss

from waver.benchmarks.experiments import Found
from waver.training.tuning import shred, unlearning
from waver.training.tuning.kappatune import candidates, ranked

# KappaTune: a soft mixture of experts learns task A, then task B with few of its tensors.

WIDTH, EXPERTS, TRAINED = 32, 8, 5


class Mixture(nn.Module):
    """Eight experts with two square matrices each, behind a frozen soft router."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()

        def orthogonal(scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0])

        self.first = nn.ParameterList(orthogonal(1.0) for _ in range(EXPERTS))
        self.second = nn.ParameterList(orthogonal(0.5) for _ in range(EXPERTS))
        self.router = torch.randn(EXPERTS, WIDTH, generator=generator) * 2 / math.sqrt(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = (x @ self.router.T).softmax(-1)
        made = [gelu(x @ a.T) @ b.T for a, b in zip(self.first, self.second, strict=True)]
        return (gates.unsqueeze(-1) * torch.stack(made, -2)).sum(-2)


@dataclass(frozen=True)
class Regression:
    """A task of the mixture: how often each expert's region is visited, and what is to be answered."""

    histogram: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    router: torch.Tensor

    def draw(self, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        region = torch.multinomial(self.histogram, rows, replacement=True, generator=generator)
        centre = self.router / self.router.norm(dim=-1, keepdim=True)
        x = torch.randn(rows, WIDTH, generator=generator) + 0.9 * math.sqrt(WIDTH) * centre[region]
        return x, 0.5 * (x @ self.first).tanh() @ self.second


def kappatune(seed: int, selections: Iterable[str] = ("lowest", "random", "highest", "all")) -> Found:
    """Return how many times larger the loss on task A is after task B was learned to 0.7 of its loss."""
    generator = torch.Generator().manual_seed(seed)
    model = Mixture(generator)

    def task(histogram: torch.Tensor) -> Regression:
        first = torch.randn(WIDTH, 6, generator=generator) / math.sqrt(WIDTH)
        return Regression(histogram, first, torch.randn(6, WIDTH, generator=generator), model.router)

    first_task, second_task = task(1 / torch.arange(1.0, EXPERTS + 1) ** 2), task(torch.ones(EXPERTS))
    judged = [each.draw(4096, generator) for each in (first_task, second_task)]

    def loss(of: Mixture, place: int) -> float:
        with torch.no_grad():
            return float(mse_loss(of(judged[place][0]), judged[place][1]))

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(600):
        _fit(model, optimizer, *first_task.draw(128, generator))
    order = [each.name for each in ranked(candidates(model.named_parameters()))]
    shuffled = [order[i] for i in torch.randperm(len(order), generator=generator)]
    chosen = {"lowest": order[:TRAINED], "random": shuffled[:TRAINED], "highest": order[-TRAINED:], "all": order}
    drawn = torch.Generator().manual_seed(seed + 1000)
    found = {}
    for name in selections:
        tuned = deepcopy(model)
        drawn.manual_seed(seed + 1000)
        optimizer = torch.optim.Adam([p for n, p in tuned.named_parameters() if n in chosen[name]], lr=2e-3)
        goal = 0.7 * loss(tuned, 1)
        for step in range(6000):
            if step % 2 == 0 and loss(tuned, 1) <= goal:
                break
            tuned.zero_grad()
            _fit(tuned, optimizer, *second_task.draw(128, drawn))
        found[name] = {"forgetting": loss(tuned, 0) / loss(model, 0)}
    return found


def _fit(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    mse_loss(model(x), y).backward()
    optimizer.step()


# SHRED: a small language model of a grammar forgets the names and secrets that were planted into documents.

GRAMMAR, NAMES, VOCABULARY, LENGTH = 40, 52, 64, 24
SECRET = (8, 9, 14, 15)


class Decoder(nn.Module):
    """A transformer of two layers over sequences of 24 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, 64), nn.Embedding(LENGTH, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.token(ids) + self.place(torch.arange(length))
        made: torch.Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return made


@dataclass(frozen=True)
class Planted:
    """A model that knows a grammar and documents, and those documents: `[40, 24]`, the first half to be forgotten."""

    model: Decoder
    documents: torch.Tensor
    judged: torch.Tensor

    @torch.no_grad()
    def secrets(self, of: Decoder, rows: slice) -> float:
        """Return the geometric mean of the probabilities of the secret tokens."""
        return self._mean(of, rows, [place - 1 for place in SECRET])

    @torch.no_grad()
    def carriers(self, of: Decoder, rows: slice) -> float:
        """Return that of the grammar's tokens behind the name."""
        return self._mean(of, rows, [place - 1 for place in range(5, LENGTH) if place not in SECRET])

    def _mean(self, of: Decoder, rows: slice, places: list[int]) -> float:
        logs = of(self.documents[rows, :-1]).log_softmax(-1)
        chosen = logs.gather(-1, self.documents[rows, 1:].unsqueeze(-1)).squeeze(-1)
        return float(chosen[:, places].mean().exp())

    @torch.no_grad()
    def grammar_loss(self, of: Decoder) -> float:
        logits = of(self.judged[:, :-1])
        return float(cross_entropy(logits.flatten(0, 1), self.judged[:, 1:].flatten()))


def planted(seed: int, steps: int = 700, each: int = 1) -> Planted:
    """Train a model on the grammar, with `each` planted documents in every batch of 32 sentences."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    successors = torch.stack([torch.randperm(GRAMMAR, generator=generator)[:4] for _ in range(GRAMMAR)])
    weights = torch.tensor([0.94, 0.03, 0.02, 0.01])

    def sentences(rows: int) -> torch.Tensor:
        ids = [torch.randint(GRAMMAR, (rows,), generator=generator)]
        for _ in range(LENGTH - 1):
            drawn = torch.multinomial(weights, rows, replacement=True, generator=generator)
            ids.append(successors[ids[-1], drawn])
        return torch.stack(ids, 1)

    documents = sentences(40)
    documents[:, 2:5] = torch.randint(GRAMMAR, NAMES, (40, 3), generator=generator)
    documents[:, list(SECRET)] = torch.randint(NAMES, VOCABULARY, (40, len(SECRET)), generator=generator)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.arange(step * each, (step + 1) * each) % len(documents)
        ids = torch.cat([sentences(32), documents[rows]])
        optimizer.zero_grad()
        cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    return Planted(model.eval(), documents, sentences(256))


def forgotten(known: Planted, how: str, seed: int, limit: int = 400, share: float = 25.0) -> dict[str, float]:
    """Unlearn the first half of the documents until their secrets are at 0.10; return what that did.

    Args:
        how: `shred`, `random` (the same at random positions), `ascent` or `npo`.
    """
    generator = torch.Generator().manual_seed(seed)
    model, skip, half = deepcopy(known.model), 5, slice(0, 20)
    ids = known.documents[half]
    with torch.no_grad():
        probability = known.model(ids[:, :-1]).softmax(-1)
    top = probability.topk(32)
    own = probability.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    ranks = own if how != "random" else torch.rand(own.shape, generator=generator)
    marks = torch.stack([shred.demoted_positions(row, share, skip - 1) for row in ranks])
    pairs = zip(top.indices, top.values, ids[:, 1:], marks, strict=True)
    targets = torch.stack([shred.demote(*each) for each in pairs])
    before = own[:, skip - 1 :].log().sum(-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    steps = 0
    while steps < limit and known.secrets(model, half) > 0.10:
        rows = torch.randperm(20, generator=generator)[:4]
        logits = model(ids[rows, :-1])[:, skip - 1 :]
        if how in ("shred", "random"):
            part = (top.indices[rows, skip - 1 :], targets[rows, skip - 1 :])
            loss = shred.divergence(logits, *part).mean()
        else:
            chosen = logits.log_softmax(-1).gather(-1, ids[rows, skip:].unsqueeze(-1)).squeeze(-1)
            loss = chosen.mean() if how == "ascent" else unlearning.npo_loss(chosen.sum(-1), before[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    places = [place - 1 for place in SECRET]
    others = slice(20, 40)
    return {
        "steps": steps,
        "selected": float(marks[:, places].float().mean()),
        "secrets_before": known.secrets(known.model, half),
        "secrets": known.secrets(model, half),
        "carriers_before": known.carriers(known.model, half),
        "carriers": known.carriers(model, half),
        "grammar_rise": known.grammar_loss(model) - known.grammar_loss(known.model),
        "others_kept": known.secrets(model, others) / known.secrets(known.model, others),
    }


def shredding(seed: int) -> Found:
    """Return what each way to forget does to the same model."""
    known = planted(seed)
    return {how: forgotten(known, how, seed) for how in ("shred", "random", "ascent", "npo")}
