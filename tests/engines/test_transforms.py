"""Truncations as data: to JSON and back, many kinds in one batch, in their place among what shapes a draw."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.engines.driving import plain_logits, prompts, steps
from tests.entropy import reference
from waver.engines.base import Sampling
from waver.engines.sampling import Row, draw
from waver.engines.transformers import TransformersEngine
from waver.engines.transforms import (
    TopH,
    TopW,
    Transform,
    Truncation,
    from_data,
    needs_geometry,
    transform_classes,
    truncate,
)
from waver.entropy.geometry import whiten

VOCAB = 40
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5)) * 2
RAW = torch.randn(VOCAB, 5, generator=torch.Generator().manual_seed(6))
GEOMETRY = whiten(RAW)
EVERY: list[dict[str, Any]] = [
    {"name": "top_p", "p": 0.7},
    {"name": "min_p", "p": 0.2},
    {"name": "typical", "p": 0.6},
    {"name": "eta", "epsilon": 0.03},
    {"name": "epsilon", "epsilon": 0.04},
    {"name": "top_n_sigma", "n": 1.2},
    {"name": "top_h", "alpha": 0.6},
    {"name": "top_h", "alpha": 0.7, "form": "renormalised"},
    {"name": "top_w", "mass_weight": 5.0},
    {"name": "top_w", "mass_weight": 6.0, "warm_mass": 0.05, "geometry_scale": 1.0, "metric": "chord"},
    {"name": "top_w", "mass_weight": 6.0, "potential": "knn", "neighbours": 2, "selection_temperature": 0.5},
    {"name": "top_w", "mass_weight": 2.0, "entropy_weight": 2.5, "pool": 9, "iterations": 1},
]


def expected(logits: torch.Tensor, transform: Transform, temperature: float = 1.0) -> set[int]:
    """The set that the reference keeps, of logits to which the temperature has been applied."""
    z = logits.double().numpy()
    data = transform.as_data()
    name = data.pop("name")
    if name == "top_w":
        selected = data.pop("selection_temperature")
        data["potential_kind"] = data.pop("potential")
        sharp = temperature / selected if selected else 1.0
        return reference.top_w(z * sharp, reference.whiten(RAW.numpy()), **data)
    form = f"_{data.pop('form')}" if name == "top_h" else ""
    (value,) = data.values()
    found: set[int] = getattr(reference, name + form)(reference.softmax(z), z, value)
    return found


def left(logits: torch.Tensor) -> set[int]:
    return set((logits > -torch.inf).nonzero()[:, 0].tolist())


def label(data: dict[str, Any]) -> str:
    return "-".join(str(value) for value in data.values())


@pytest.mark.parametrize("data", EVERY, ids=label)
def test_there_and_back(data: dict[str, Any]) -> None:
    transform = from_data(json.loads(json.dumps(data)))
    assert from_data(json.loads(json.dumps(transform.as_data()))) == transform
    assert pickle.loads(pickle.dumps(Sampling(transforms=(transform,)))).transforms == (transform,)
    assert hash(transform) == hash(from_data(data))
    assert {key: transform.as_data()[key] for key in data} == data
    assert needs_geometry((transform,)) == (data["name"] == "top_w")


def test_every_rule_is_tried_here() -> None:
    tried = {(data["name"], from_data(data).variant) for data in EVERY}
    assert {name for name, _ in tried} == {n for n, each in transform_classes().items() if issubclass(each, Truncation)}
    assert {("top_h", "running"), ("top_h", "renormalised")} < tried
    assert not needs_geometry((TopW(geometry_scale=0.0), TopH()))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"name": "top_q"}, "top_q"),
        ({"p": 0.5}, "name"),
        ("top_p", "transform"),
        ({"name": "top_p", "p": 0.0}, "p: Input should be greater than 0"),
        ({"name": "top_p", "p": "0.5"}, "p: Input should be a valid number"),
        ({"name": "typical", "p": float("nan")}, "p: Input should be"),
        ({"name": "eta", "p": 0.5}, "p: Extra inputs"),
        ({"name": "top_w", "mass_weight": -1.0}, "mass_weight"),
        ({"name": "top_w", "potential": "far"}, "potential: Input should be 'nearest' or 'knn'"),
        ({"name": "top_h", "form": 1}, "form"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        from_data(data)
    assert "\n" not in str(raised.value)


def test_all_kinds_in_one_batch_are_what_each_is_alone() -> None:
    generator = torch.Generator().manual_seed(9)
    rows: list[tuple[Transform, ...]] = [(from_data(data),) for data in EVERY for _ in range(3)]
    rows += [(), ()]
    order = torch.randperm(len(rows), generator=generator).tolist()
    rows = [rows[i] for i in order]
    logits = torch.randn(len(rows), VOCAB, generator=generator) * 1.5
    logits[::4, :7] = -torch.inf
    before, temperatures = logits.clone(), torch.linspace(0.5, 2, len(rows))
    together = truncate(logits, rows, GEOMETRY, temperatures)
    assert torch.equal(logits, before)
    for i, own in enumerate(rows):
        alone = truncate(logits[i : i + 1], [own], GEOMETRY, temperatures[i : i + 1])
        assert torch.equal(alone.logits[0], together.logits[i])
        assert (alone.kept[0], alone.entropy[0]) == (together.kept[i], together.entropy[i])
        if not own:
            assert torch.equal(together.logits[i], logits[i])
            assert together.kept[i] == 0
        else:
            wanted = expected(logits[i], own[0], float(temperatures[i]))
            assert left(together.logits[i]) == wanted
            assert together.kept[i] == len(wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("data", EVERY, ids=label)
def test_half_precision(data: dict[str, Any], dtype: torch.dtype) -> None:
    """Logits of a half-precision model as they come: the sets are those of the very same numbers in double precision.
    They are sixteenths or more apart, so that no two are equal, and every type holds them exactly."""
    generator = torch.Generator().manual_seed(11)
    ranks = torch.stack([torch.randperm(VOCAB, generator=generator) for _ in range(40)])
    logits = (ranks / 8 * torch.tensor([0.5, 1.0, 2.0, 4.0]).repeat(10)[:, None] - 3).to(dtype)
    transform = from_data(data)
    crop = truncate(logits, [(transform,)] * 40, GEOMETRY)
    assert crop.logits.dtype == torch.float32
    for row, kept, n in zip(logits, crop.logits, crop.kept.tolist(), strict=True):
        wanted = expected(row, transform)
        assert left(kept) == wanted
        assert n == len(wanted)
        assert torch.equal(kept[sorted(wanted)], row[sorted(wanted)].float())


def test_several_transforms_act_in_their_order() -> None:
    first, second = from_data({"name": "min_p", "p": 0.05}), from_data({"name": "top_h", "alpha": 0.7})
    for own in ((first, second), (second, first)):
        crop = truncate(torch.stack([LOGITS, LOGITS]), [own, ()])
        kept = expected(LOGITS, own[0])
        after = LOGITS.clone()
        after[[i for i in range(VOCAB) if i not in kept]] = -torch.inf
        assert left(crop.logits[0]) == expected(after, own[1])
        assert crop.kept.tolist() == [len(expected(after, own[1])), 0]
    with pytest.raises(ValueError, match="embedding matrix"):
        truncate(LOGITS[None] / 10, [(TopW(potential="knn"),)])


@pytest.mark.parametrize("data", EVERY, ids=label)
def test_frequencies(data: dict[str, Any]) -> None:
    """Tokens are drawn from the reference's set, as often as the renormalised distribution says."""
    n, temperature, transform = 20_000, 1.6, from_data(data)
    rows = [Row(Sampling(temperature=temperature, seed=seed, transforms=(transform,)), (), 0, ()) for seed in range(n)]
    drawn = draw(LOGITS.expand(n, -1), rows, GEOMETRY)
    counts = np.bincount(drawn.tokens.numpy(), minlength=VOCAB)
    kept = sorted(expected(LOGITS / temperature, transform, temperature))
    assert set(counts.nonzero()[0]) <= set(kept)
    q = reference.softmax((LOGITS / temperature).double().numpy())[kept]
    q /= q.sum()
    assert drawn.kept is not None
    assert drawn.crop_entropy is not None
    assert set(drawn.kept.tolist()) == {len(kept)}
    assert float(drawn.crop_entropy[0]) == pytest.approx(reference.entropy(q), abs=1e-4)
    assert len(kept) == 1 or stats.chisquare(counts[kept], q * n).pvalue > 1e-4


def test_the_order_of_what_shapes_a_draw() -> None:
    """Bias and penalties first, then temperature, the transforms, `min_p`, `top_k` and `top_p`."""
    transform = from_data({"name": "top_h", "alpha": 0.7})
    top = int(LOGITS.argmax())
    how = Sampling(
        temperature=1.8,
        logit_bias={top: -6.0, 3: 2.0},
        presence_penalty=1.0,
        transforms=(transform,),
        min_p=0.2,
        top_k=5,
        top_p=0.8,
    )
    n = 4000
    rows = [Row(replace(how, seed=seed), (9, 4), 1, ()) for seed in range(n)]
    z = LOGITS.clone()
    z[top] -= 6.0
    z[3] += 2.0
    z[4] -= 1.0
    z /= 1.8
    for step in (lambda z: expected(z, transform), lambda z: reference.min_p(*both(z), 0.2), top_five, nucleus):
        kept = step(z)
        z[[i for i in range(VOCAB) if i not in kept]] = -torch.inf
    drawn = draw(LOGITS.expand(n, -1), rows)
    assert set(drawn.tokens.tolist()) == left(z)
    assert drawn.kept is not None
    assert set(drawn.kept.tolist()) == {len(left(z))}


def both(z: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return reference.softmax(z.double().numpy()), z.double().numpy()


def top_five(z: torch.Tensor) -> set[int]:
    return set(z.argsort(descending=True)[:5].tolist())


def nucleus(z: torch.Tensor) -> set[int]:
    return reference.top_p(*both(z), 0.8)


def test_greedy_rows_and_rows_without_a_truncation() -> None:
    wanted = Sampling(temperature=1.0, transforms=(TopH(),))
    kinds = [Sampling(temperature=0.0, transforms=(TopH(),)), Sampling(temperature=1.0), wanted]
    drawn = draw(LOGITS.expand(3, -1), [Row(s, (), 0, ()) for s in kinds])
    assert drawn.tokens[0] == LOGITS.argmax()
    assert drawn.kept is not None
    assert drawn.kept[:2].tolist() == [0, 0]
    assert drawn.kept[2] == len(expected(LOGITS, TopH()))
    assert draw(LOGITS.expand(2, -1), [Row(s, (), 0, ()) for s in kinds[:2]]).kept is None


async def test_the_engine_keeps_what_the_reference_keeps(wild: TransformersEngine) -> None:
    """Along one answer: the set at each position is that of the logits and the input embeddings of this very model."""
    prompt, temperature = prompts(1, seed=3)[0], 1.7
    known = wild.tokens.vocab_size
    unit = reference.whiten(wild.embedding_matrix().double().numpy())
    for data in (
        {"name": "top_w", "mass_weight": 8.0, "warm_mass": 0.01, "geometry_scale": 3.0, "pool": 60},
        {"name": "typical", "p": 0.3},
    ):
        transform = from_data(data)
        made = await steps(
            wild, prompt, temperature=temperature, seed=4, transforms=(transform,), max_tokens=6, ignore_eos=True
        )
        logits = plain_logits(wild, [*prompt, *(step.token for step in made)])[len(prompt) - 1 :] / temperature
        sizes = []
        for z, step in zip(logits.numpy(), made, strict=False):
            if data["name"] == "top_w":
                kept = reference.top_w(z, unit, mass_weight=8.0, warm_mass=0.01, geometry_scale=3.0, pool=60)
            else:
                kept = reference.typical(reference.softmax(z), z, 0.3)
            q = reference.softmax(z)[sorted(kept)]
            assert step.kept == len(kept)
            assert step.crop_entropy == pytest.approx(reference.entropy(q / q.sum()), abs=1e-3)
            assert step.token in kept
            assert max(kept) < known
            sizes.append(len(kept))
        assert max(sizes) > 1


async def test_a_grammar_goes_before(small: TransformersEngine) -> None:
    """The truncation chooses among what the grammar allows, so the answer keeps to it."""
    prompt = small.tokens.chat([{"role": "user", "content": "hello"}])
    schema = '{"enum": ["a heron", "a swan"]}'
    made = await steps(
        small, prompt, temperature=2.0, seed=1, grammar=schema, max_tokens=200, transforms=(TopW(mass_weight=4.0),)
    )
    text = small.tokens.decode([step.token for step in made if step.token not in small.tokens.eos_ids])
    assert made[-1].finish == "stop"
    assert json.loads(text) in ("a heron", "a swan")
    assert all(step.kept for step in made)


async def test_no_truncation_no_report(wild: TransformersEngine) -> None:
    prompt = prompts(1, seed=3)[0]
    for options in ({"temperature": 1.0}, {"temperature": 0.0, "transforms": (TopW(),)}):
        assert {step.kept for step in await steps(wild, prompt, max_tokens=3, **options)} == {None}
