"""A temperature that follows the entropy: the numbers of arXiv 2509.16591's account, and its place among what draws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engines.driving import plain_logits, prompts, steps, tokens
from waver.engines.base import Sampling
from waver.engines.sampling import Row, draw
from waver.engines.temperature import adapted_temperatures
from waver.engines.transformers import TransformersEngine
from waver.engines.transforms import AdaptiveTemperature, TopH, TopP, TopW, Transform, from_data, truncate
from waver.entropy import shannon_entropy
from waver.entropy.geometry import whiten
from waver.entropy.uncertainty import Statistics

KNOWN = AdaptiveTemperature(span=0.1, low=0.01, pivot=0.5, high=1.0)
"""Of the entropies .01, .1, .5, 1, .02, .2 and .4, of which .5 is the 0.8 quantile."""
COOL = AdaptiveTemperature(span=0.3, low=50.0, pivot=60.0, high=70.0)
"""0.7 of the request's temperature, whatever the entropy."""
WARM = AdaptiveTemperature(span=0.3, low=1e-8, pivot=2e-8, high=3e-8)
SWAYING = AdaptiveTemperature(span=0.3, low=0.05, pivot=1.0, high=3.0)


def temperatures(logits: torch.Tensor, *transforms: Transform, base: float = 1.0) -> torch.Tensor:
    rows = len(logits)
    return adapted_temperatures(torch.full((rows,), base), [transforms] * rows, shannon_entropy(logits))


@pytest.mark.parametrize(
    ("p", "temperature", "after"),
    [
        ([0.25] * 4, 1.1, 1.386294),
        ([0.97, 0.01, 0.01, 0.01], 0.972075, 0.151014),
        ([0.5, 0.3, 0.15, 0.05], 1.1, 1.174636),  # the third entropy by hand: sum of p^(1/1.1) normalised
    ],
)
def test_the_papers_numbers(p: list[float], temperature: float, after: float) -> None:
    logits = torch.tensor([p]).log() + 3
    for base in (1.0, 0.7):
        assert temperatures(logits, KNOWN, base=base).item() == pytest.approx(base * temperature, abs=1e-6)
    assert shannon_entropy(logits / temperatures(logits, KNOWN)[:, None]).item() == pytest.approx(after, abs=1e-5)


def test_uncertain_positions_open_and_sure_ones_close() -> None:
    """4,000 logit vectors: the mean entropy of the upper group rises by 0.030, that of the lower falls by 0.011, where
    one temperature of 1.05 raises both, by 0.032 and 0.072."""
    g = torch.Generator().manual_seed(0)
    few = torch.rand(4000, generator=g) < 0.2
    scale = torch.where(few, 0.3 + 1.2 * torch.rand(4000, generator=g), 2 + 4 * torch.rand(4000, generator=g))
    logits = torch.randn(4000, 50, generator=g) * scale[:, None]
    before = shannon_entropy(logits)
    s = Statistics.of(before)
    low, pivot, high = (math.exp(s.q + s.sigma * h) for h in (-1 / s.s_neg, 0, 1 / s.s_pos))
    rule = AdaptiveTemperature(low=low, pivot=pivot, high=high)
    upper = s.signal(before) > 0
    changes = [
        shannon_entropy(logits / t) - before for t in (temperatures(logits, rule)[:, None], torch.tensor([[1.05]]))
    ]
    means = [float(change[group].mean()) for change in changes for group in (upper, ~upper)]
    assert means == pytest.approx([0.030, -0.011, 0.032, 0.072], abs=0.004)


def test_rows_each_in_their_own_way() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * 3
    asked: list[tuple[Transform, ...]] = [(), (COOL,), (TopP(p=0.5),), (TopP(p=0.5), WARM), (COOL, WARM), ()]
    base = torch.tensor([1.0, 1.0, 0.5, 0.5, 2.0, 1.5])
    out = adapted_temperatures(base, asked, shannon_entropy(logits))
    assert out.tolist() == pytest.approx([1.0, 0.7, 0.5, 0.65, 1.82, 1.5])
    assert base.tolist() == [1.0, 1.0, 0.5, 0.5, 2.0, 1.5]
    assert adapted_temperatures(base, [()] * 6) is base
    with pytest.raises(ValueError, match="needs the entropy"):
        adapted_temperatures(base, asked)


def sampled(logits: torch.Tensor, how: Sampling, n: int = 400) -> Any:
    rows = [Row(replace(how, seed=seed), (9, 4), 1, ()) for seed in range(n)]
    many = logits.expand(n, -1)
    return draw(many, rows, entropy=shannon_entropy(many))


@pytest.mark.parametrize(("rule", "factor"), [(COOL, 0.7), (WARM, 1.3)])
@pytest.mark.parametrize("more", [{}, {"transforms": (TopH(alpha=0.7),)}, {"top_p": 0.8, "presence_penalty": 1.0}])
def test_at_its_ends_it_is_a_plain_temperature(rule: Transform, factor: float, more: dict[str, Any]) -> None:
    """With whatever comes after it, in whichever place of the list."""
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(2)) * 2
    cut = more.get("transforms", ())
    plain = sampled(logits, Sampling(temperature=1.5 * factor, **more))
    for transforms in ((rule, *cut), (*cut, rule)):
        ours = sampled(logits, Sampling(temperature=1.5, **more | {"transforms": transforms}))
        assert ours.tokens.tolist() == plain.tokens.tolist()
        if plain.kept is None:
            assert ours.kept is None
        else:
            assert ours.kept.tolist() == plain.kept.tolist()


def test_the_entropy_is_that_of_the_raw_distribution() -> None:
    """Biases and penalties do not move the temperature."""
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(3))
    bias = {int(logits.argmax()): 12.0}
    [own] = temperatures(logits, SWAYING, base=1.5).tolist()
    biased = logits.clone()
    biased[0, int(logits.argmax())] += 12.0
    assert abs(temperatures(biased, SWAYING, base=1.5).item() - own) > 0.3
    ours = sampled(logits, Sampling(temperature=1.5, logit_bias=bias, transforms=(SWAYING,)))
    plain = sampled(logits, Sampling(temperature=own, logit_bias=bias))
    assert ours.tokens.tolist() == plain.tokens.tolist()


def test_a_truncation_selects_at_the_adapted_temperature() -> None:
    matrix = torch.randn(60, 8, generator=torch.Generator().manual_seed(4))
    wide = TopW(warm_mass=0.05, mass_weight=4.0, selection_temperature=1.0)
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(5))
    t = temperatures(logits, SWAYING)
    ours = truncate(logits / t[:, None], [(SWAYING, wide)] * 3, whiten(matrix), t)
    at_one = truncate(logits, [(wide,)] * 3, whiten(matrix))
    assert torch.equal(ours.logits > -torch.inf, at_one.logits > -torch.inf)


async def test_the_engine_draws_so(wild: TransformersEngine) -> None:
    """Along one answer, at each position from the entropy there; beside others in the same batch; never greedy."""
    prompt = prompts(1, seed=30)[0]
    rule = AdaptiveTemperature(span=0.3, low=1.0, pivot=4.0, high=6.5)
    how = {"temperature": 1.3, "seed": 7, "ignore_eos": True, "max_tokens": 30}
    out = await steps(wild, prompt, **how, transforms=(rule,))
    ids, seen = [*prompt, *(step.token for step in out)], set[float]()
    for position, step in enumerate(out):
        logits = plain_logits(wild, ids[: len(prompt) + position])[-1:].float()
        t = temperatures(logits, rule, base=1.3).item()
        row = Row(Sampling(temperature=t, seed=7), ids[: len(prompt) + position], len(prompt), ())
        assert step.token == int(draw(logits, [row]).tokens)
        seen.add(round(t, 2))
    assert len(seen) > 5
    assert await tokens(wild, prompt, transforms=(rule,)) == await tokens(wild, prompt)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"span": 0.31}, "0.3"),
        ({"span": -0.1}, "0"),
        ({"low": 0.0}, "0.00000001"),
        ({"low": 0.5, "pivot": 0.5}, "should rise"),
        ({"pivot": 4.0}, "low 1e-06, pivot 4 and high 3 should rise in this order"),
        ({"tau": 0.1}, "tau"),
    ],
)
def test_what_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_data({"name": "adaptive_temperature", **data})
