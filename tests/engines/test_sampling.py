"""Draws follow the distribution that the request asks for, and only that."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from waver.engines.base import Sampling
from waver.engines.inverse_cdf import sample, sample_blockwise
from waver.engines.sampling import Row, draw, uniform
from waver.entropy.cpu_kernels import BLOCK

VOCAB = 40
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5)) * 2


def row(sampling: Sampling, ids: tuple[int, ...] = (), start: int = 0, ends: tuple[int, ...] = (0,)) -> Row:
    return Row(sampling, ids, start, ends)


def expected(logits: torch.Tensor, s: Sampling) -> np.ndarray:
    """The truncated distribution, in float64, token by token."""
    p = (logits.double() / s.temperature).softmax(-1).numpy()
    order = [int(i) for i in np.argsort(-p, kind="stable")]
    kept = [i for i in order if p[i] >= s.min_p * p[order[0]]]
    kept = kept[: s.top_k] if s.top_k else kept
    mass, nucleus = sum(p[i] for i in kept), []
    for i in kept:
        nucleus.append(i)
        if sum(p[j] for j in nucleus) / mass >= s.top_p:
            break
    out = np.zeros_like(p)
    out[nucleus] = p[nucleus] / p[nucleus].sum()
    return out


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.2, "min_p": 0.05},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 12, "min_p": 0.02},
    ],
)
def test_frequencies(how: dict[str, float]) -> None:
    n = 40_000
    rows = [row(Sampling(seed=seed, **how)) for seed in range(n)]  # type: ignore[arg-type]
    counts = np.bincount(draw(LOGITS.expand(n, -1), rows).tokens.numpy(), minlength=VOCAB)
    p = expected(LOGITS, rows[0].sampling)
    assert counts[p == 0].sum() == 0
    enough = p * n >= 5
    seen = np.append(counts[enough], counts[~enough].sum())
    wanted = np.append(p[enough] * n, max(p[~enough].sum() * n, 0))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-4


def test_the_most_likely_token_always_stays() -> None:
    for how in ({"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-9}, {"temperature": 0.0}):
        rows = [row(Sampling(seed=seed, **how)) for seed in range(50)]
        assert set(draw(LOGITS.expand(50, -1), rows).tokens.tolist()) == {int(LOGITS.argmax())}


def test_ties() -> None:
    flat = torch.zeros(300, VOCAB)
    drawn = draw(flat, [row(Sampling(seed=seed, top_k=3)) for seed in range(300)]).tokens
    assert len(set(drawn.tolist())) == 3
    drawn = draw(flat, [row(Sampling(seed=seed, top_p=0.5)) for seed in range(300)]).tokens
    assert len(set(drawn.tolist())) == VOCAB // 2
    assert draw(flat[:1], [row(Sampling(temperature=0))]).tokens.tolist() == [0]


def test_masked_tokens_are_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[5:] = -torch.inf
    rows = [row(Sampling(seed=seed, temperature=100.0, top_p=0.999)) for seed in range(2000)]
    assert set(draw(logits.expand(2000, -1), rows).tokens.tolist()) == set(range(5))


@settings(deadline=None)
@given(
    st.integers(1, 3 * BLOCK),
    st.integers(0, 2**32),
    st.floats(0, 0.99),
    st.floats(0.1, 10),
    st.lists(st.one_of(st.just(0.0), st.just(1 - 2.0**-53), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=4),
)
def test_the_token_at_a_point_of_the_running_sum(
    vocabulary: int, seed: int, masked: float, temperature: float, points: list[float]
) -> None:
    """By either way, wherever its blocks lie; never a token without weight."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(points), vocabulary, generator=rng) * 4
    barred = torch.rand(len(points), vocabulary, generator=rng) < masked
    barred[:, seed % vocabulary] = False
    logits[barred] = -torch.inf
    sums = torch.cat([torch.zeros(len(points), 1), (logits.double() / temperature).softmax(-1).cumsum(-1)], dim=1)
    for way in (sample, sample_blockwise):
        tokens = way(logits, torch.full((len(points),), temperature), torch.tensor(points, dtype=torch.float64))
        for i, (token, point) in enumerate(zip(tokens.tolist(), points, strict=True)):
            assert not barred[i, token]
            assert sums[i, token] - 1e-6 <= point <= sums[i, token + 1] + 1e-6


def test_uniform() -> None:
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64), indexing="ij")
    u = uniform(seeds.ravel(), positions.ravel()).reshape(300, 300)
    assert 0 <= u.min() < u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4
    assert len(np.unique(u)) == u.size
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:]), (u[1:, :-1], u[:-1, 1:])):  # seeds, positions, diagonals
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
        assert stats.kstest((a - b).ravel() % 1, "uniform").pvalue > 1e-4
    assert uniform(np.array([2**64 - 1], np.uint64), np.array([2**40], np.uint64)) < 1


def reference(logits: torch.Tensor, r: Row) -> list[float]:
    """Bias, minimum length and penalties as vLLM and OpenAI define them, token by token."""
    s, out = r.sampling, logits.double().tolist()
    said = Counter(r.ids[r.start :])
    for token in range(len(out)):
        out[token] += s.logit_bias.get(token, 0.0)
        if r.position < s.min_tokens and token in r.ends:
            out[token] = -float("inf")
        if token in r.ids:
            out[token] = out[token] / s.repetition_penalty if out[token] > 0 else out[token] * s.repetition_penalty
        if said[token]:
            out[token] -= s.presence_penalty + s.frequency_penalty * said[token]
    return out


@settings(max_examples=80, deadline=None)
@given(
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    start=st.integers(0, 30),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.floats(0.5, 2),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-20, 20), max_size=4),
    min_tokens=st.integers(0, 10),
)
def test_penalties(
    ids: list[int], start: int, presence: float, frequency: float, repetition: float, bias: dict, min_tokens: int
) -> None:
    how = Sampling(
        temperature=0.0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
        min_tokens=min_tokens,
    )
    penalised = Row(how, ids, min(start, len(ids)), (int(LOGITS.argmax()),))
    raw = LOGITS.expand(3, -1).clone()
    plain = Sampling(temperature=0.8, seed=3, top_p=0.9)
    drawn = draw(raw, [row(plain), penalised, row(Sampling(temperature=0.0))]).tokens
    wanted = reference(LOGITS, penalised)
    assert wanted[int(drawn[1])] == pytest.approx(max(wanted), abs=1e-4)
    # Rows beside it are as they would be alone, and the raw logits stay as they were.
    assert drawn[0] == draw(LOGITS[None], [row(plain)]).tokens
    assert drawn[2] == LOGITS.argmax()
    assert torch.equal(raw, LOGITS.expand(3, -1))


def test_min_tokens_yields_where_only_the_end_is_left() -> None:
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[:, 4] = 1.0
    rows = [Row(Sampling(temperature=t, min_tokens=5), (1, 2), 2, (4,)) for t in (0.0, 1.0)]
    assert draw(logits, rows).tokens.tolist() == [4, 4]


def test_position_and_seed_decide() -> None:
    how = Sampling(temperature=1.5, seed=9)
    drawn = [int(draw(LOGITS[None], [Row(how, tuple(range(i)), 0, ())]).tokens) for i in range(30)]
    assert len(set(drawn)) > 5
    shifted = [int(draw(LOGITS[None], [Row(how, (7,) * 11 + tuple(range(i)), 11, ())]).tokens) for i in range(30)]
    assert shifted == drawn
