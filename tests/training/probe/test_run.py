"""`waver train probe` on a real model: probes that fit it, runs that go on, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from waver.cli import app
from waver.engines.base import Unsupported
from waver.engines.config import TransformersConfig
from waver.engines.probe import Probe
from waver.engines.transformers import TransformersEngine
from waver.training.probe import sampling
from waver.training.probe.sampling import judge
from waver.training.tasks.rewards import holds_answer, same_number

ROOT = Path(__file__).parents[3]
SHORT = ("--engine", "small", "--n", "20", "--samples", "3", "--max-tokens", "90", "--seeds", "1")
WORDS = ("--words", "", "--words", " This task is")


def waver(*options: Any, code: int = 0) -> str:
    """Return what `waver train probe` prints."""
    result = CliRunner().invoke(app, ["train", "probe", *map(str, options)], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return result.output


async def tried_on(probe: Probe, name: str) -> None:
    """Return whether a probe can read a bundled model."""
    engine = TransformersEngine(name, TransformersConfig(model=str(ROOT / "models" / name)))
    try:
        await probe.check(engine)
    finally:
        await engine.aclose()


def test_a_run_goes_on_and_its_probe_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "probe"
    assert "questions are few" in waver("--out", out, *SHORT, *WORDS)
    asked = (out / "questions.jsonl").read_text()
    lines = {line["place"]: line for line in map(json.loads, asked.splitlines())}
    assert sorted(lines) == list(range(20))
    assert {line["plain"]["right"] for line in lines.values()} <= {0, 1 / 3, 2 / 3, 1}
    assert all(line["plain"]["tokens"] <= 90 for line in lines.values())
    probe = Probe.load(out / "paper")
    assert probe.record.model == "models/small"
    assert probe.record.words in ("", " This task is")
    assert sum(probe.record.about["classes"].values()) == 20
    page = (out / "README.md").read_text()
    assert f"beta {probe.record.thresholds['beta']:.4g} nats" in page
    assert "U-shape" in page
    assert all((out / name).stat().st_size > 10_000 for name in ("u-shape.png", "confusion.png"))
    asyncio.run(tried_on(probe, "small"))
    with pytest.raises(Unsupported, match="trained on models/small"):
        asyncio.run(tried_on(probe, "large"))

    answered: list[int] = []
    answer = sampling.answer

    async def counted(*given: Any) -> Any:
        answered.append(1)
        return await answer(*given)

    monkeypatch.setattr(sampling, "answer", counted)
    # As if it had been cut off while the third last question was written down.
    begun = asked.splitlines(keepends=True)
    (out / "questions.jsonl").write_text("".join(begun[:-3]) + begun[-3][:20])
    waver("--out", out, *SHORT, "--words", "", "--beta", "0.5")
    assert len(answered) == 3 * 3
    again = {line["place"]: line for line in map(json.loads, (out / "questions.jsonl").read_text().splitlines())}
    for place, line in lines.items():
        assert again[place]["plain"] == pytest.approx(line["plain"], abs=1e-5)
    assert Probe.load(out / "paper").record.thresholds["beta"] == 0.5
    assert "holds another run" in waver("--out", out, *SHORT, "--seed", "2", code=1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--engine", "huge"), "no engine 'huge'"),
        (("--scorer", "guess"), "no scorer 'guess'"),
        (("--beta", "low"), "--beta is a number"),
        (("--beta", "solved"), "add --strategy-samples"),
        (("--chain", "5", "2"), "steps must be"),
        (("--config", "CONFIG"), "no hidden states"),
    ],
)
def test_what_cannot_be_done_is_said(options: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    config, file = tmp_path / "waver.yaml", tmp_path / "questions.jsonl"
    upstream = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    config.write_text(yaml.safe_dump({"engines": {"large": upstream}}))
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    given = [str(config) if each == "CONFIG" else each for each in options]
    if "--scorer" in options:
        given.append(str(file))
    assert reason in waver("--out", tmp_path / "probe", *given, code=1)
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize(
    ("line", "scorer", "reason"),
    [
        ('{"question": "1 + 1?", "answer": "two"}', "number", "line 1: `answer` has no number"),
        ('{"question": "Who?"}', "contains", "line 1: there is no `answer`"),
        ("{", "number", "line 1: not JSON"),
        ("", "number", "holds no questions"),
    ],
)
def test_bad_questions_are_named(line: str, scorer: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(line)
    assert reason in waver(file, "--out", tmp_path / "probe", "--scorer", scorer, code=1)


def test_what_a_model_thinks_is_not_judged() -> None:
    row = {"question": "2 + 2?", "answer": "4", "level": 1}
    texts = ["<think>4, no, 5</think>It is 4.", "<think>4</think>It is 5.", "It is 4"]
    assert judge(same_number, row, texts) == [True, False, True]


def test_answers_that_are_words() -> None:
    said = ["The mayor is Orla.", "The mayor is Orlando.", "ORLA  B.", "42"]
    assert holds_answer(said, ["Orla", "Orla", ["Cora", "orla b."], 42]) == [1, 0, 1, 1]


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "waver.yaml"
    base = "{backend: vllm, model: models/small, args: {enable_lora: true}}"
    file.write_text(f"engines:\n  small: {base}\n  tuned: {{backend: lora, base: small, model: adapters/x}}\n")
    said = waver("--out", tmp_path / "probe", "--engine", "tuned", "--config", file, code=1)
    assert "engine 'tuned' is an adapter: merge it into its model" in said
