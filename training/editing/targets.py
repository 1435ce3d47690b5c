"""Find what an edit should make of the hidden state at a fact's subject (the value), and what it reads there (the key).

As in MEMIT, which RLSEdit (arXiv 2601.15686) keeps: the value is the state of the last edited layer plus a vector that
makes the target likely behind several openings, and leaves what the subject is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from waver.engines.tokens import TokenText
from waver.training.editing.facts import Fact, last_of_subject
from waver.training.editing.sites import Site, at, moved, rows, seen, states

OPENINGS = ("The", "Therefore", "Because", "I", "You")
ENOUGH = 0.05
"""Loss below which a value is not moved any further."""


@dataclass(frozen=True)
class Search:
    """The search for a value: Adam's steps and rate, the largest move as a part of the state's norm, and the weights of
    the KL term and the decay.

    The rate is a part of the state's root mean square: Adam moves each coordinate by about its rate, and states of some
    models have a norm of 10, of others one of 700.
    """

    steps: int = 25
    rate: float = 0.5
    clamp: float = 0.75
    kl: float = 0.0625
    decay: float = 0.5


@dataclass(frozen=True)
class Prompts:
    """The rows of a group of facts, fact after fact: the plain prompt, those behind openings, and `<subject> is a`.

    Args:
        ids: the rows with their targets. places: `[rows]`, the last token of the subject. target: how many tokens at
            the end of each row are target. each: rows of one fact.
    """

    ids: list[list[int]]
    places: torch.Tensor
    target: list[int]
    each: int

    @property
    def facts(self) -> int:
        return len(self.ids) // self.each

    def of(self, facts: Sequence[int]) -> Prompts:
        """Return the rows of some of the facts."""
        kept = [row for fact in facts for row in range(fact * self.each, (fact + 1) * self.each)]
        ids, target = [self.ids[row] for row in kept], [self.target[row] for row in kept]
        return Prompts(ids, self.places[kept], target, self.each)


def openings(model: PreTrainedModel, tokens: TokenText, count: int, length: int, seed: int) -> list[str]:
    """Draw openings of `length` tokens from the model itself, to put before prompts."""
    torch.manual_seed(seed)
    found = []
    for word in (OPENINGS * -(-count // len(OPENINGS)))[:count]:
        ids = torch.tensor([tokens.encode(word)], device=model.device)
        options = {"do_sample": True, "top_k": 5, "max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0}
        generate: Any = model.generate
        drawn = generate(ids, attention_mask=torch.ones_like(ids), **options)
        found.append(" ".join(tokens.decode(drawn[0].tolist()).split()))
    return found


def prompts(facts: Sequence[Fact], tokens: TokenText, before: Sequence[str]) -> Prompts:
    """Make the rows of facts, behind each of the openings `before` and without one."""
    ids, places, target = [], [], []
    for fact in facts:
        answer = fact.target_ids(tokens)
        asked = [fact.ask.ids(tokens, prefix) for prefix in ("", *before)]
        for row in asked:
            ids.append([*row, *answer])
            target.append(len(answer))
            places.append(last_of_subject(row, fact.subject, tokens))
        essence = tokens.encode(f"{fact.subject} is a")
        ids.append(essence)
        target.append(0)
        places.append(last_of_subject(essence, fact.subject, tokens))
    return Prompts(ids, torch.tensor(places), target, len(before) + 2)


def values(model: PreTrainedModel, site: Site, asked: Prompts, search: Search) -> torch.Tensor:
    """Search for the values of facts at the output of one site's layer, `[facts, hidden]`.

    The loss of a fact is the mean over its prompts of the target's mean surprisal, plus `kl` times
    KL(before || after) behind `<subject> is a`, plus `decay` |delta| / |state|^2.
    """
    places = asked.places.to(model.device)
    with torch.no_grad(), seen([site.block], outputs=True, stop=True) as hidden:
        states(model, rows(model, asked.ids))
    state = at(hidden[0], places)[:: asked.each].clone()
    norm = state.norm(dim=-1)
    size = norm.unsqueeze(-1) / state.shape[-1] ** 0.5
    moves = torch.zeros_like(state)
    left = list(range(asked.facts))
    move, optimizer = _start(moves, left, search.rate)
    before = torch.zeros(0, device=model.device)
    for number in range(search.steps):
        some, sizes, norms = asked.of(left), size[left], norm[left]
        delta = move * sizes
        with moved(site.block, some.places.to(model.device), delta.repeat_interleave(asked.each, 0)):
            surprisal, essence = _read(model, rows(model, some.ids), some)
        before = essence.detach() if number == 0 else before
        kl = (before[left].exp() * (before[left] - essence)).sum(-1)
        loss = surprisal + search.kl * kl + search.decay * _length(delta) / norms.square()
        going = (loss.detach() >= ENOUGH).tolist()
        if not any(going) or number == search.steps - 1:
            break
        found = move.detach().clone()
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            longest = search.clamp * norms / _length(move * sizes)
            move.mul_(longest.clamp(max=1.0).unsqueeze(-1))
            kept = torch.tensor(going, device=model.device).unsqueeze(-1)
            moves[left] = torch.where(kept, move, found)
        if not all(going):  # those that are there cost no more passes
            rest = [place for place, more in enumerate(going) if more]
            left = [left[place] for place in rest]
            move, optimizer = _start(moves, left, search.rate, optimizer, rest)
    wanted: torch.Tensor = (state + moves * size).detach()
    return wanted


def _start(
    moves: torch.Tensor,
    left: Sequence[int],
    rate: float,
    before: torch.optim.Adam | None = None,
    rest: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.optim.Adam]:
    """Return the moves of the facts that are left, to be searched on, and Adam; `before` had more facts, of which
    `rest` are left, and hands its moments on."""
    move = moves[list(left)].clone().requires_grad_()
    optimizer = torch.optim.Adam([move], lr=rate)
    if before is not None:
        (had,) = before.state.values()
        optimizer.state[move] = {
            name: value[list(rest)] if name in ("exp_avg", "exp_avg_sq") else value for name, value in had.items()
        }
    return move, optimizer


def _length(delta: torch.Tensor) -> torch.Tensor:
    """Return norms whose gradient at zero is zero."""
    return delta.square().sum(-1).clamp(min=1e-24).sqrt()


def _read(model: PreTrainedModel, batch: dict[str, torch.Tensor], asked: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the surprisal of each fact's target, `[facts]`, and the log-probabilities behind its last row,
    `[facts, vocab]`. Logits are made where they are read alone."""
    hidden = states(model, batch)
    head = model.get_output_embeddings()
    row, place, token = [], [], []
    for number, (ids, length) in enumerate(zip(asked.ids, asked.target, strict=True)):
        for back in range(length, 0, -1):
            row.append(number)
            place.append(len(ids) - back - 1)
            token.append(ids[-back])
    at_targets = head(hidden[row, place]).float().log_softmax(-1)
    chosen = -at_targets[torch.arange(len(token)), torch.tensor(token, device=hidden.device)]
    sums = torch.zeros(len(asked.ids), device=hidden.device).index_add(
        0, torch.tensor(row, device=hidden.device), chosen
    )
    means = sums / torch.tensor([max(1, length) for length in asked.target], device=hidden.device)
    surprisal = means.view(asked.facts, asked.each)[:, :-1].mean(-1)
    last = range(asked.each - 1, len(asked.ids), asked.each)
    return surprisal, head(hidden[list(last), [len(asked.ids[each]) - 1 for each in last]]).float().log_softmax(-1)


@torch.no_grad()
def keys(model: PreTrainedModel, site: Site, asked: Prompts) -> torch.Tensor:
    """Return the keys of facts at one site, `[facts, d_k]`: what goes into it at the subject, the mean of the plain
    prompt and the mean of those behind openings."""
    with seen([site.down], stop=True) as inputs:
        states(model, rows(model, asked.ids))
    found = at(inputs[0], asked.places).float().view(asked.facts, asked.each, -1)
    plain, opened = found[:, 0], found[:, 1:-1]
    return plain if opened.shape[1] == 0 else (plain + opened.mean(1)) / 2


@torch.no_grad()
def outputs(model: PreTrainedModel, site: Site, asked: Prompts) -> torch.Tensor:
    """Return the output of a site's layer at the subjects of the plain prompts, `[facts, hidden]`."""
    plain = asked.ids[:: asked.each]
    with seen([site.block], outputs=True, stop=True) as hidden:
        states(model, rows(model, plain))
    return at(hidden[0], asked.places[:: asked.each]).float()
