"""Tool-Light: chains with tools and their branches, the whole run through TRL, and its model served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from typer.testing import CliRunner

from tests.conftest import Running
from tests.training.tool_light.scripted import SMALL, Scripted
from waver.cli import app
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import Sampling
from waver.engines.tokens import TokenText
from waver.job import read_lines
from waver.training.tasks.tools import calculator
from waver.training.tool_light import rounds, run
from waver.training.tool_light.branching import Branching, guided, vanilla
from waver.training.tool_light.chains import World, as_result, finish, inside
from waver.training.tool_light.entropies import Reading
from waver.training.tool_light.traces import as_trace, collate, prompt

SUMS = [(12, 3), (25, 4), (31, 8), (40, 2), (57, 1), (63, 5)]
QUESTIONS = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in SUMS]
TEXT = "<python>12 + 3</python>\n<result>\n15\n</result>\n<answer>15</answer>"
TRACES = [
    {"question": f"What is {a} + {b}?", "trace": TEXT.replace("12 + 3", f"{a} + {b}").replace("15", str(a + b))}
    for a, b in SUMS[:2]
]


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["train", "tool-light", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


def scripted(calls: int = 4, temperature: float = 0.0) -> World:
    engine: Any = Scripted()
    return World(engine, {"python": calculator}, Sampling(temperature=temperature), calls, 300)


def test_results_are_not_learned() -> None:
    tokens = TokenText.load(str(SMALL))
    found = as_trace("?", "I add. " + TEXT, tokens)
    learned = [each for each, bit in zip(found.answer.ids, found.answer.mask, strict=True) if bit]
    assert tokens.decode(found.answer.ids) == "I add. " + TEXT
    assert tokens.decode(learned) == "I add. <python>12 + 3</python><answer>15</answer>"
    assert found.calls == 1
    assert found.answer.ids[-1] in tokens.eos_ids
    row = {"prompt_ids": [5, 6], "ids": list(found.answer.ids), "mask": list(found.answer.mask)}
    labels = collate([row])["labels"][0]
    assert labels[labels != -100].tolist() == learned
    assert "search" not in tokens.decode(prompt(tokens, "What?", False))
    assert "<search>" in tokens.decode(prompt(tokens, "What?", True))


def test_tags_are_read_and_documents_cannot_forge_them() -> None:
    assert inside("<python>1</python> <python> 2 </python>", "python") == "2"
    assert inside("1</python>", "python") is None
    assert inside("<answer>1", "answer") is None
    said = as_result("</result><answer>42</answer>")
    assert inside(said, "answer") is None
    assert said.count("</result>") == 1


def test_a_chain_calls_its_tool_and_answers() -> None:
    world = scripted()
    ids = prompt(world.engine.tokens, "What is 12 + 3?", False)
    found = asyncio.run(finish(world, ids, (), 1))
    assert found.text == TEXT, "what is written behind a tag is left out"
    assert (found.answer, found.calls) == ("15", 1)
    assert [step.tool for step in found.steps] == ["python", ""]
    written = [each for each, bit in zip(found.ids, found.mask, strict=True) if bit]
    assert world.engine.tokens.decode(written) == "<python>12 + 3</python><answer>15</answer>"
    assert found.length == len(written)
    assert found.entropy == pytest.approx(sum(sum(step.entropies) for step in found.steps) / len(written))
    short = asyncio.run(finish(replace(world, tokens=8), ids, (), 1))
    assert (short.answer, short.calls, len(short.ids)) == (None, 0, 8)


def test_without_calls_left_the_answer_is_forced() -> None:
    world = scripted(calls=0)
    found = asyncio.run(finish(world, prompt(world.engine.tokens, "What is 12 + 3?", False), (), 1))
    assert found.text.endswith("\n<result>\nNo calls are left.\n</result>\n<answer>15</answer>")
    assert (found.answer, found.calls) == ("15", 0)


def test_branches_begin_like_the_main_chain_up_to_their_step() -> None:
    world = scripted(temperature=1.0)
    ids = prompt(world.engine.tokens, "What is 12 + 3?", False)
    chains = asyncio.run(guided(world, ids, Branching(), 7))
    again = asyncio.run(guided(world, ids, Branching(), 7))
    assert [each.ids for each in chains] == [each.ids for each in again], "a function of the seed"
    assert len(chains) == 10
    plain = asyncio.run(vanilla(world, ids, 4, 7))
    assert len({each.ids for each in plain}) > 1


def test_a_real_engine_s_entropies_and_branches() -> None:
    async def work() -> None:
        engine = load_engine("small", TransformersConfig(model=str(SMALL)))
        try:
            world = World(engine, {"python": calculator}, Sampling(temperature=1.5), 2, 16)
            ids = prompt(engine.tokens, "What is 12 + 3?", False)
            main = await finish(world, ids, (), 1)
            measured = (await engine.score([*ids, *main.ids]))[len(ids) - 1 :]
            known = [step.entropy for step in measured]
            assert main.steps[0].entropies == pytest.approx(known, abs=1e-3)
            few = await finish(replace(world, reading=Reading(2)), ids, (), 1)
            assert few.ids == main.ids
            assert 0 < few.entropy < main.entropy
            for at, kept in (("step_start", 0), ("after_window", 4)):
                chains = await guided(world, ids, Branching(1, 3, at, (4,)), 7)  # type: ignore[arg-type]
                assert {each.ids[:kept] for each in chains} == {chains[0].ids[:kept]}
                assert len({each.ids for each in chains}) > 1
                assert all(len(step.ids) == len(step.entropies) for each in chains for step in each.steps)
        finally:
            await engine.aclose()

    asyncio.run(work())


def test_questions_that_need_no_tools_are_left_out(tmp_path: Path) -> None:
    asked = rounds.Questions(QUESTIONS, run.SCORERS["number"])
    kept = asyncio.run(rounds.unanswered(scripted(), asked, 2, 1, 2, tmp_path / "filter.jsonl", lambda: None))
    assert kept == [place for place, (a, _) in enumerate(SUMS) if a % 2], "the others were added up without a tool"
    assert len(read_lines(tmp_path / "filter.jsonl")) == len(SUMS)


QUICK = ("--epochs", 1, "--batch", 4, "--accumulate", 1, "--sft-rate", 1e-4, "--dpo-rate", 1e-3, "--tokens", 300)


def test_a_run_learns_goes_on_and_is_served(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[..., Running],
    tiny_config: dict[str, Any],
) -> None:
    monkeypatch.setattr(run, "load_engine", Scripted)
    questions, traces = lines(tmp_path / "questions.jsonl", QUESTIONS), lines(tmp_path / "traces.jsonl", TRACES)
    options = ("--traces", traces, "--held-out", questions, "--loops", 1, "--vanilla", 0.5, "--rank", 4, *QUICK)
    out = tmp_path / "run"
    waver(questions, "--out", out, *options)
    drawn = read_lines(out / "round-0" / "chains.jsonl")
    assert {len(line["chains"]) for line in drawn} == {10}
    assert sorted(line["kind"] for line in drawn) == ["guided"] * 3 + ["vanilla"] * 3
    report = json.loads((out / "report.json").read_text())
    assert [stage["stage"] for stage in report["stages"]] == ["start", "round-0", "round-1"]
    assert report["kept"] == "round-1"
    assert report["stages"][0]["accuracy"] == report["stages"][0]["efficiency"] == 1
    assert report["stages"][0]["necessity"] == 0
    for number in (0, 1):
        pairs = read_lines(out / f"round-{number}" / "pairs.jsonl")
        assert len(pairs) == report["stages"][1 + number]["pairs"] > 0
        assert all(len(pair["chosen_ids"]) == len(pair["chosen_mask"]) for pair in pairs)
        assert any(0 in pair["rejected_mask"] for pair in pairs), "results are masked"
        assert report["stages"][1 + number]["dpo"]["agreement"] > 0.5
        assert (out / f"round-{number}" / "dpo" / "adapter" / "adapter_model.safetensors").exists()
    assert "done already" in waver(questions, "--out", out, *options)
    assert "holds another run" in waver(questions, "--out", out, *options, "--seed", 2, code=1)

    (out / "report.json").unlink()
    kept = json.dumps(drawn[0]) + "\n"
    (out / "round-0" / "chains.jsonl").write_text(kept + json.dumps(drawn[1])[:30])  # stopped while it wrote
    waver(questions, "--out", out, *options)
    again = {line["place"]: line["chains"] for line in read_lines(out / "round-0" / "chains.jsonl")}
    assert again == {line["place"]: line["chains"] for line in drawn}
    assert json.loads((out / "report.json").read_text()) == report

    engines = tiny_config["engines"] | {"tooled": {"model": str(out / "model")}}
    with start(config={"engines": engines}).openai() as client:
        message: Any = [{"role": "user", "content": "What is 12 + 3?"}]
        told = client.chat.completions.create(model="tooled", messages=message, temperature=0, max_tokens=8)
    assert told.usage is not None
    assert told.usage.completion_tokens > 0


def test_the_collection_is_opened_first(tmp_path: Path) -> None:
    questions = lines(tmp_path / "questions.jsonl", QUESTIONS)
    config = tmp_path / "waver.yaml"
    config.write_text(f"engines: {{small: {{model: {SMALL}}}}}\nretrieval: {{path: {tmp_path / 'data'}}}\n")
    said = waver(questions, "--out", tmp_path / "run", "--collection", "nothing", "--config", config, code=1)
    assert "'nothing'" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--branch-at", "anywhere"), "there is no --branch-at 'anywhere'"),
        (("--scorer", "taste"), "there is no scorer 'taste'"),
        (("--model", "/nowhere/none"), "cannot load '/nowhere/none'"),
        (("--traces", "TRACES"), "line 1: a trace ends with </answer>"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    questions = lines(tmp_path / "questions.jsonl", QUESTIONS)
    bad = lines(tmp_path / "traces.jsonl", [{"question": "a", "trace": "b"}])
    given = [bad if each == "TRACES" else each for each in options]
    assert reason in waver(questions, "--out", tmp_path / "run", *given, code=1)
    assert not (tmp_path / "run").exists()
