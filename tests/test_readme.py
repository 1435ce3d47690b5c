"""Run the README: its commands against a real server, and compare its outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from waver.policies.registry import policies
from waver.server.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
VARYING = ("id", "created", "system_fingerprint")
"""Fields that differ from call to call, or with the configuration."""
SECONDS = ("seconds", "seconds_alone")
"""Fields of `waver.cost` that differ from call to call; the second is there once the engine has been measured."""
FENCED = r"```(\w+)\n(.*?)```"
BLOCKS = re.findall(FENCED, README + GUIDE, re.S)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def comparable(answer: Any) -> Any:
    """An answer without what differs from call to call, floats to four digits."""
    if isinstance(answer, dict):
        return {k: comparable(v) for k, v in answer.items() if k not in (*VARYING, *SECONDS)}
    if isinstance(answer, list):
        return [comparable(part) for part in answer]
    return pytest.approx(answer, abs=1e-4) if isinstance(answer, float) else answer


@pytest.fixture(scope="module")
def bundled(start: Callable[..., Any]) -> Any:
    """The server that `make serve` starts."""
    return start(config=yaml.safe_load((ROOT / "configs" / "bundled.yaml").read_text()), port=0)


def test_the_curl_command_answers_as_shown(bundled: Any) -> None:
    command = next(text for text in blocks("sh") if "curl" in text)
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", bundled.url)],
        capture_output=True,
        text=True,
        check=True,
    )
    answer, shown = json.loads(done.stdout), json.loads(blocks("json")[0])
    assert answer.keys() == shown.keys()
    for cost in (answer["waver"]["cost"], *answer["waver"]["cost"]["engines"].values()):
        for seconds in SECONDS:
            assert cost.pop(seconds, 1.0) > 0
    assert answer == comparable(shown) | {key: answer[key] for key in VARYING}


def test_the_python_snippet_prints_what_is_shown(bundled: Any, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(blocks("python")[0].replace("http://127.0.0.1:8000", bundled.url))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == blocks("text")[0].strip()


def commands(word: str) -> list[str]:
    """Return the `waver` commands of the block that has a word in it, as they run here."""
    block = next(text for text in blocks("sh") if word in text)
    lines = [line.split(" #")[0] for line in block.splitlines() if line.startswith(".venv/bin/waver ")]
    assert lines
    return [line.replace(".venv/bin/waver", f"{sys.executable} -m waver") for line in lines]


def run(command: str, folder: Path) -> str:
    """Run a command from the root as a reader does, what it keeps in a folder of the test's."""
    environment = os.environ | {"WAVER_RETRIEVAL__PATH": str(folder)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def test_a_handbook_is_taken_in_and_a_threshold_found(tmp_path: Path) -> None:
    ingest, calibrate = commands("calibrate l_rag")
    assert "8 added" in run(ingest, tmp_path)
    found = run(calibrate, tmp_path)
    accuracy = dict(re.findall(r"^(without lookups|always|at the threshold) +([\d.]+) %", found, re.M))
    assert float(accuracy["at the threshold"]) >= float(accuracy["without lookups"]) + 20
    preset = yaml.safe_load(found.strip().splitlines()[-1])
    assert preset["collection"] == "handbook"
    assert 0.3 < preset["expected_rate"] < 0.9


def test_a_probe_is_trained_on_the_examples(tmp_path: Path) -> None:
    (train,) = commands("train probe")
    run(f"{train.replace('probes/mine', str(tmp_path / 'mine'))} --samples 2", tmp_path)  # ten take minutes
    assert (tmp_path / "mine" / "README.md").exists()


def test_a_model_is_trained(tmp_path: Path) -> None:
    listing, train = commands("train rl --out")
    assert "earl" in run(listing, tmp_path)
    shorter = train.replace("--out run", f"--out {tmp_path / 'run'}").replace("--steps 20", "--steps 1")
    run(f"{shorter} --prompts 2 --group 2 --held-out 0", tmp_path)
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_every_make_target_is_one() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"serve", "test"} <= named <= known


def test_examples_can_be_checked() -> None:
    """Each question has one answer, and half of the answers stand in the handbook."""
    pages = [page.read_text() for page in sorted((ROOT / "examples" / "handbook").glob("*.md"))]
    asked = [json.loads(line) for line in (ROOT / "examples" / "questions.jsonl").read_text().splitlines()]
    assert len(pages) == 8
    assert len({row["question"] for row in asked}) == len(asked) >= 20
    town = re.compile(r"(?:of|through|is) ([A-Z]\w+)")
    answered = [
        row
        for row in asked
        if any(f"# {town.search(row['question'])[1]}\n" in page and row["answer"] in page for page in pages)  # type: ignore[index]
    ]
    assert len(answered) == len(asked) / 2


def test_the_sums_of_the_examples_are_right() -> None:
    asked = [json.loads(line) for line in (ROOT / "examples" / "sums.jsonl").read_text().splitlines()]
    assert len({row["question"] for row in asked}) == len(asked) == 100
    for row in asked:
        terms = re.findall(r"[+-]? ?\d+", row["question"])
        assert sum(int(term.replace(" ", "")) for term in terms) == int(row["answer"]), row


def test_every_policy_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.M)) == set(policies())


def test_the_configuration_is_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(blocks("yaml")[0])
    assert set(load_config(file).engines) == set(yaml.safe_load(blocks("yaml")[0])["engines"])


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "models" / "README.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_it_is_short() -> None:
    prose = re.sub(FENCED, "", README, flags=re.S)
    assert len([word for word in prose.split() if re.search(r"\w", word)]) <= 900, "bars of tables are no words"
