"""Groups by search: what is drawn in a batch, how a group is made up, and a run of the trainer from end to end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from accelerate import Accelerator
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.conftest import ROOT
from waver.cli import app
from waver.engines.tokens import TokenText
from waver.goals import sum_task
from waver.job import read_lines
from waver.training.rl.search_rollouts import Drawer, Found, SearchRollouts, SearchSettings, question

SMALL = str(ROOT / "models" / "small")
HOW = SearchSettings(delimiter=".", iterations=12)
EASY, HARD = "What is 12 + 30 - 5?", "What is 34 + 25 - 17?"


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()
    return model, TokenText.load(SMALL, padding_side="left").tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )


def test_a_group_has_a_right_row_and_the_best_wrong_ones() -> None:
    right, wrong = tuple((i,) for i in range(3)), tuple((i,) for i in range(10, 20))
    assert Found(right, wrong, 0).rows(4) == [(0,), (10,), (11,), (12,)]
    assert Found(right, wrong[:2], 0).rows(4) == [(0,), (1,), (10,), (11,)]
    assert Found(right, (), 0).rows(8) == list(right)
    assert Found((), wrong, 0).rows(3)[:2] == [(10,), (11,)]


def test_a_batch_draws_what_each_prompt_would_alone(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    eos = (tokenizer.eos_token_id,)
    prompts = [tuple(ids_of(tokenizer, each)) for each in (EASY, "What is 2 + 2?")]

    async def drawn(some: Sequence[tuple[int, ...]]) -> list[list[int]]:
        drawer = Drawer(model, tokenizer, eos, HOW)
        return await drawer.together([drawer.draw(each, None, 40) for each in some])

    both = asyncio.run(drawn(prompts))
    assert both == [asyncio.run(drawn([each]))[0] for each in prompts]
    assert all(row[-1] == eos[0] for row in both)
    assert "12 + 30 = 42" in tokenizer.decode(both[0])

    async def steps() -> list[int]:
        drawer = Drawer(model, tokenizer, eos, HOW)
        (made,) = await drawer.together([drawer.draw(prompts[0], 1, 40)])
        assert len(drawer.steps(made)) == 1
        assert drawer.text(made).endswith(".")
        return made

    torch.manual_seed(1)
    assert len(asyncio.run(steps())) < 40


def trainer_of(parts: tuple[Any, Any], rows: list[list[int]], size: int, training: bool = True) -> Any:
    """As much of a trainer as rollouts ask for, whose own rows are given."""
    model, tokenizer = parts
    return SimpleNamespace(
        model=SimpleNamespace(training=training), model_wrapped=model, accelerator=Accelerator(cpu=True),
        processing_class=tokenizer, num_generations=size, num_generations_eval=1,
        eos_token_ids=[tokenizer.eos_token_id], max_completion_length=60,
        args=SimpleNamespace(seed=1), state=SimpleNamespace(global_step=0),
        _metrics={"train": defaultdict(list)}, _generate_single_turn=lambda *_: (rows, None),
        _tokenize_prompts=lambda prompts: ([ids_of(tokenizer, question(each)) for each in prompts], None, {}),
    )  # fmt: skip


def test_only_groups_that_are_all_wrong_are_searched_for(parts: tuple[Any, Any]) -> None:
    _, tokenizer = parts
    end = tokenizer.eos_token_id

    def row(text: str) -> list[int]:
        return [*tokenizer.encode(text, add_special_tokens=False), end]

    wrong, right = row("The answer is 1."), row("12 + 30 = 42. 42 - 5 = 37. The answer is 37.")
    prompts = [[{"role": "user", "content": each}] for each in (EASY, EASY, HARD, HARD)]
    plain = [list(wrong), list(right), list(wrong), list(wrong)]
    trainer = trainer_of(parts, [list(each) for each in plain], 2)
    torch.manual_seed(0)
    made = SearchRollouts(sum_task, HOW)(prompts, trainer)
    assert made["completion_ids"][:2] == plain[:2]
    texts = [tokenizer.decode(each, skip_special_tokens=True) for each in made["completion_ids"]]
    assert texts[2].rstrip(".").endswith("42")
    assert all(each[-1] == end for each in made["completion_ids"])
    assert made["prompt_ids"][2] == made["prompt_ids"][3]
    log = trainer._metrics["train"]
    assert (log["search/groups"], log["search/solved"]) == ([0.5], [1.0])
    assert log["search/tokens"][0] > 0

    evaluated = trainer_of(parts, [list(wrong)] * 4, 2, training=False)
    assert SearchRollouts(sum_task, HOW)(prompts, evaluated)["completion_ids"] == [wrong] * 4


def test_what_is_never_right_stays_plain(parts: tuple[Any, Any]) -> None:
    _, tokenizer = parts
    wrong = [*tokenizer.encode("The answer is 1.", add_special_tokens=False), tokenizer.eos_token_id]
    trainer = trainer_of(parts, [list(wrong), list(wrong)], 2)
    how = SearchSettings(delimiter=".", iterations=4, most=1)  # one call, and no more
    made = SearchRollouts(lambda asked: sum_task("999999 + 999999"), how)([EASY, EASY], trainer)
    assert made["completion_ids"] == [wrong, wrong]
    assert trainer._metrics["train"]["search/solved"] == [0.0]


def train(out: Path, *options: str) -> Any:
    small = (
        "--steps",
        "1",
        "--prompts",
        "1",
        "--group",
        "2",
        "--length",
        "40",
        "--updates",
        "1",
        "--held-out",
        "0",
        "--every",
        "1",
    )
    return CliRunner().invoke(app, ["train", "rl", "--out", str(out), *small, *options], env={"COLUMNS": "500"})


def test_a_run_with_searched_groups(tmp_path: Path) -> None:
    made = train(tmp_path / "run", "--chain", "3", "3", "--rollouts", "search", "--set", "advantage=maxrl")
    assert made.exit_code == 0, made.output
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "search/groups" in line]
    assert len(lines) == 1
    assert 0 <= lines[0]["search/solved"] <= 1
    refused = train(tmp_path / "other", "--task", "instructions", "--rollouts", "search")
    assert refused.exit_code == 2
    assert "has no goals that a search could go by" in refused.output
