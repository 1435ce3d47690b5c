"""`waver plan`: the arithmetic of memory and costs, checked by hand and by its limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from waver.cli import app
from waver.clients.plan import Plan, compute, costs, layouts, need, step, utilization
from waver.engines.footprint import GIB, Shape, read_shape

ROOT = Path(__file__).parents[2]
SMALL, LARGE = read_shape("Qwen/Qwen3-0.6B"), read_shape("Qwen/Qwen3-8B")
PAIR = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)


def test_needs_are_weights_caches_and_overhead() -> None:
    found = need(LARGE, Plan(context=1000, sequences=4, overhead=1.5))
    # 36 layers, keys and values of 8 heads of 128 numbers, 2 bytes each: 144 KiB a token.
    assert found.kv * GIB == pytest.approx(36 * 2 * 8 * 128 * 2 * 1000 * 4)
    assert found.weights * GIB == 2 * LARGE.parameters
    assert found.total == found.weights + found.kv + 1.5
    assert need(LARGE, Plan(dtype="fp8", kv_dtype="fp8")).weights == found.weights / 2


def fitting(memory: float, gpus: int) -> set[str]:
    plan = Plan(gpu_memory=memory, gpus=gpus, context=4096, sequences=8)
    return {each.way for each in layouts([need(SMALL, plan), need(LARGE, plan)], plan) if each.fits}


def test_layouts_fit_where_there_is_room() -> None:
    assert fitting(80, 1) == {"both on one GPU"}
    assert fitting(24, 1) == set()
    assert fitting(24, 2) == {"a GPU for each"}
    assert fitting(16, 2) == set()
    assert fitting(16, 3) == {"Qwen/Qwen3-8B over 2 GPUs, the small one on its own"}


def test_vllm_is_told_enough_and_no_more() -> None:
    plan = Plan(gpu_memory=24)
    assert utilization(12.01, plan) == 0.51
    assert utilization(12, plan) == 0.5


def by_way(plan: Plan) -> dict[str, Any]:
    return {each.way.split(" large")[-1].lstrip(", ") if "ead" in each.way else each.way: each
            for each in costs(0.006, 0.016, plan)}  # fmt: skip


def test_costs_by_hand() -> None:
    plan = Plan(questions=1600, sequences=16, answer_tokens=100, share=0.2, hand_overs=10)
    found = by_way(plan)
    assert found["small alone"].seconds_per_answer == pytest.approx(0.6)
    assert found["large alone"].busy == pytest.approx(100 * 1.6)
    # 80 small tokens, 20 large ones, 5 hand-overs in each direction; 20 tokens are read along.
    apart = 85 * 0.006 + 25 * 0.016
    assert found["a GPU for each"].seconds_per_answer == pytest.approx(apart)
    assert found["a GPU for each"].busy == pytest.approx(100 * (apart + 20 * 0.006))
    assert found["a GPU for each"].alone == pytest.approx(2 * 100 * apart)
    assert found["one GPU, at worst"].seconds_per_answer == pytest.approx(110 * 0.022)


def test_costs_at_their_limits() -> None:
    plain = Plan(hand_overs=0, monitor="active")
    nothing, everything = by_way(replace(plain, share=0.0)), by_way(replace(plain, share=1.0))
    assert nothing["one GPU, at best"].busy == pytest.approx(nothing["small alone"].busy)
    assert everything["a GPU for each"].seconds_per_answer == pytest.approx(
        everything["large alone"].seconds_per_answer
    )
    some = by_way(Plan())
    assert some["one GPU, at best"].alone < some["one GPU, at worst"].alone
    assert by_way(Plan(monitor="active"))["a GPU for each"].busy < some["a GPU for each"].busy


def test_a_bandwidth_gives_a_bound() -> None:
    shape = Shape("m", 10**9, 1000, 0, "bfloat16")
    plan = Plan(bandwidth=1000, context=100, sequences=2)
    assert step(shape, plan, None) == pytest.approx((2e9 + 1000 * 2 * 100) / 1e12)
    assert step(shape, plan, 0.5) == 0.5
    assert step(shape, Plan(), None) is None


def test_the_command_prints_a_page_and_ends_by_whether_it_fits() -> None:
    done = invoke(*PAIR, "--gpu-memory", 80, "--small-step", 0.006, "--large-step", 0.016, "--price", 2)
    assert done.exit_code == 0
    assert "both on one GPU" in done.output
    assert "ead, 20 % large, one GPU, at worst" in done.output
    assert "price" in done.output
    done = invoke(*PAIR, "--gpu-memory", 16, "--context", 4096, "--sequences", 8)
    assert done.exit_code == 3
    assert "would fit on 3 GPUs" in done.output
    assert "--small-step" in done.output


def test_the_models_of_a_configuration_are_planned_as_json() -> None:
    done = invoke("--json", "--context", 1024, "--config", ROOT / "configs" / "bundled.yaml")
    found = json.loads(done.output)
    assert [each["model"] for each in found["engines"]] == ["models/small", "models/large"]
    assert found["too_long"] == found["costs"] == []
    assert json.loads(json.dumps(compute([SMALL, LARGE], Plan()))) == compute([SMALL, LARGE], Plan())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "There is no model or config.json at nowhere"),
        ((*PAIR, "Qwen/Qwen3-4B"), "a small and a large one"),
        ((*PAIR, "--dtype", "int3"), "--dtype is one of"),
        ((*PAIR, "--monitor", "both"), "--monitor is small or active"),
    ],
)
def test_mistakes_are_sentences(arguments: tuple[str, ...], sentence: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 1
    assert sentence in done.output
