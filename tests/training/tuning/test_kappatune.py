"""KappaTune: condition numbers, their ranking and cut, their cache, and less forgetting on the paper's kind of task."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from waver.benchmarks.weights_toys import kappatune
from waver.training.tuning.kappatune import (
    Budget,
    Candidate,
    cached,
    candidates,
    choose,
    condition_number,
    experts_condition_number,
    matched_rank,
    ranked,
)


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def listed(**kappas: float) -> list[Candidate]:
    return [Candidate(name, kappa, (2, 2)) for name, kappa in kappas.items()]


def test_condition_numbers() -> None:
    assert condition_number(matrix([3, 0], [0, 1])) == pytest.approx(2.99999997, abs=1e-9)
    assert condition_number(10 * matrix([3, 0], [0, 1])) == pytest.approx(2.999999997, abs=1e-10)
    assert condition_number(matrix([1, 2], [3, 4]), eps=0) == pytest.approx(14.93303437, abs=1e-8)
    assert condition_number(matrix([1, 2, 3], [4, 5, 6]), eps=0) == pytest.approx(12.30224550, abs=1e-8)
    assert condition_number(matrix([1, 1], [1, -1])) == pytest.approx(1 - 7e-9, abs=1e-9)


def test_singular_and_broken_matrices_come_last_and_do_not_crash() -> None:
    singular = matrix([1, 2], [2, 4])
    assert condition_number(singular) == pytest.approx(499_999_990, rel=1e-6)
    assert condition_number(singular, eps=0) > 1e15
    assert condition_number(torch.zeros(2, 2), eps=0) == math.inf
    assert condition_number(matrix([1, math.nan], [0, 1])) == math.inf


def test_half_precision_is_read_in_float32() -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert condition_number(weight) == pytest.approx(condition_number(weight.float()))


def test_experts_count_by_their_mean() -> None:
    weight = torch.arange(1, 9, dtype=torch.float64).reshape(2, 2, 2)
    assert [condition_number(each, eps=0) for each in weight] == pytest.approx([14.93303437, 86.98850423], abs=1e-7)
    assert experts_condition_number(weight, eps=0) == pytest.approx(50.96076931, abs=1e-7)
    # Of another name it is a convolution's, and read as `[first, rest]`.
    found = candidates([("mlp.experts.down_proj", weight), ("conv.weight", weight)])
    assert found[0].kappa == pytest.approx(50.9607693, abs=1e-5)
    assert found[1].kappa == pytest.approx(condition_number(weight.reshape(2, 4)))
    assert [each.experts for each in found] == [True, False]


def test_what_can_be_chosen() -> None:
    named = [("norm", torch.ones(4)), ("embed", torch.ones(99, 2)), ("a", torch.eye(2)), ("b", torch.eye(3))]
    assert [each.name for each in candidates(named, largest=50, skip={"b"})] == ["a"]
    assert [each.name for each in candidates(named, largest=None)] == ["embed", "a", "b"]


def test_the_ranking_and_its_cut() -> None:
    order = ranked(listed(a=5, b=2, c=9, d=2, e=1.5, f=math.inf, g=3))
    assert [each.name for each in order] == list("ebdgacf")
    assert [each.name for each in choose(order, Budget())] == ["e"]
    assert [each.name for each in choose(order[:3], Budget())] == ["e"]
    assert len(choose(ranked(listed(**{str(i): i + 1 for i in range(10)})), Budget())) == 2
    assert [each.name for each in choose(order, Budget(count=3))] == list("ebd")
    assert [each.name for each in choose(order, Budget(threshold=3))] == list("ebdg")
    assert [each.name for each in choose(order, Budget(parameters=11))] == list("eb")
    assert [each.name for each in choose(order, Budget(parameters=1))] == ["e"]
    with pytest.raises(ValueError, match="no tensor to train is within the budget"):
        choose(order, Budget(threshold=1))


def test_experts_are_cut_apart_from_the_rest() -> None:
    order = ranked([*listed(a=1, b=2), Candidate("e", 90, (2, 2, 2), True), Candidate("f", 80, (2, 2, 2), True)])
    assert [each.name for each in choose(order, Budget(count=1))] == ["a", "f"]


def test_by_shape_a_square_matrix_is_not_behind_every_wide_one() -> None:
    wide = [Candidate(f"w{i}", 3 + i / 10, (4, 16)) for i in range(4)]
    square = [Candidate(f"s{i}", 200 + i, (8, 8)) for i in range(2)]
    assert [each.name for each in ranked([*square, *wide])][:4] == ["w0", "w1", "w2", "w3"]
    assert [each.name for each in ranked([*square, *wide], by_shape=True)] == ["w0", "s0", "w1", "w2", "s1", "w3"]


def test_the_cache_knows_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kappas.json"
    torch.manual_seed(0)
    named = list(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).named_parameters())
    named.append(("broken", torch.full((2, 2), math.nan)))
    first = cached(named, file)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svdvals", lambda *_: pytest.fail("computed again"))
        assert cached(named, file) == first
    assert first[-1].kappa == math.inf
    with torch.no_grad():
        named[0][1].mul_(torch.arange(1.0, 5.0))
    second = cached(named, file)
    assert second[0].kappa != first[0].kappa
    assert cached(named, file, largest=4) == [second[-1]]
    file.write_text(file.read_text()[:40])
    assert cached(named, file) == second
    assert json.loads(file.read_text())["candidates"][-1][1] is None


def test_a_higher_rank_spends_the_same() -> None:
    every = [(8, 8), (8, 24), (24, 8)]
    assert matched_rank(every, every, 16) == 16
    assert matched_rank(every[:1], every, 4) == 20
    assert matched_rank(every[1:], every[:1], 1) == 1


def test_peft_chooses_the_same_layers() -> None:
    helpers = pytest.importorskip("peft.helpers")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in ((4, 9), (9, 9), (9, 3), (3, 30), (30, 4))))
    theirs = helpers.find_kappa_target_modules(model, top_p=0.6, show_progress=False)["target_modules"]
    ours = choose(ranked(candidates(model.named_parameters())), Budget(share=0.6))
    assert [each.name.removesuffix(".weight") for each in ours] == theirs


def test_small_condition_numbers_forget_less() -> None:
    """One seed of five (`waver bench weights`)."""
    found = kappatune(0, ("lowest", "highest"))
    assert found["lowest"]["forgetting"] < found["highest"]["forgetting"] / 3
