"""The quick start and the pages around it: configurations are read, commands exist, and what is shown is computed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from waver.cli import app
from waver.clients.candidates import Search, check
from waver.clients.options import Tuning
from waver.clients.plan import Plan, layouts, need, utilization
from waver.clients.questions import read
from waver.engines.footprint import read_shape
from waver.policies.registry import policies
from waver.server.config import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
CONFIGS = sorted((ROOT / "configs" / "quickstart").glob("*.yaml"))
COMMAND = re.compile(r"^(?:\.venv/bin/)?waver ([^\n#]+)", re.M)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def test_the_plan_prints_what_is_shown() -> None:
    (line,) = (line for line in blocks(QUICKSTART, "sh")[0].splitlines() if "waver plan" in line)
    done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.strip() == blocks(QUICKSTART, "text")[0].strip()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_its_configurations_are_read_and_their_models_fit_together(file: Path) -> None:
    config = load_config(file)
    assert list(config.engines) == ["small", "large"]
    for preset in config.presets.values():
        for policy in preset:
            policies()[policy["name"]].model_validate(policy)
    small, large = (read_shape(each.model) for each in config.engines.values())
    assert small.parameters < large.parameters
    assert f"configs/quickstart/{file.name}" in QUICKSTART


def test_the_shares_of_one_gpu_are_enough() -> None:
    content = yaml.safe_load((ROOT / "configs" / "quickstart" / "one_gpu.yaml").read_text())
    assert yaml.safe_load(blocks(QUICKSTART, "yaml")[0]) == content
    plan = Plan(gpu_memory=24, context=4096, sequences=8)
    needs = [need(read_shape(each["model"]), plan) for each in content["engines"].values()]
    given = [each["args"] for each in content["engines"].values()]
    assert layouts(needs, plan)[0].fits
    assert all(args["gpu_memory_utilization"] >= utilization(each.total, plan)
               for args, each in zip(given, needs, strict=True))  # fmt: skip
    assert sum(args["gpu_memory_utilization"] for args in given) <= 0.95
    assert all((args["max_model_len"], args["max_num_seqs"]) == (plan.context, plan.sequences) for args in given)


@pytest.mark.parametrize("goal", ["loss", "share"])
def test_its_calibration_would_be_made(goal: str) -> None:
    lines = [line for line in blocks(QUICKSTART, "sh")[-1].splitlines() if "calibrate policy" in line]
    (line,) = (line for line in lines if f"--{goal}" in line)
    words = shlex.split(line, comments=True)
    assert words[1:4] == ["calibrate", "policy", "ead"]
    wanted = Tuning(**{goal: float(words[words.index(f"--{goal}") + 1])})
    questions = ROOT / "examples" / "sums.jsonl"  # some hundred, as the page says
    check(read(questions), wanted, Search(words[3], {}, {}), questions)


def commands(text: str) -> list[list[str]]:
    """Return the commands of `waver` in a page's shell blocks, as words up to a pipe or a redirection."""
    lines = (line for block in blocks(text, "sh") for line in COMMAND.findall(block.replace("\\\n", " ")))
    return [shlex.split(re.split(r"\s[|&<>]|\s2>", line)[0]) for line in lines]


def options(words: list[str]) -> tuple[set[str], set[str]]:
    """Return the options that a command is given, and those that it has.

    Raises:
        AssertionError: there is no such command.
    """
    command = typer.main.get_command(app)
    rest = list(words)
    while (inner := getattr(command, "commands", None)) is not None:
        assert rest, f"{words} is no whole command"
        assert rest[0] in inner, f"there is no command {' '.join(words)}"
        command = inner[rest.pop(0)]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}, known | {"--help", "-h"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_every_page_are_ones(page: Path) -> None:
    for words in commands(page.read_text()):
        if words[0] == "bench":  # their options are their own
            continue
        given, known = options(words)
        assert given <= known, f"{page.name}: waver {' '.join(words)}: {given - known}"


def test_a_command_that_is_none_is_found() -> None:
    with pytest.raises(AssertionError, match="no command cook"):
        options(["cook", "--slowly"])
    given, known = options(["chat", "--message", "hi", "--loudly"])
    assert given - known == {"--loudly"}
    assert commands("```sh\n.venv/bin/waver chat -m hi | cat\nwaver serve  # it\n```\n") == [
        ["chat", "-m", "hi"],
        ["serve"],
    ]


def test_every_neighbour_has_a_source() -> None:
    rows = [line for line in (ROOT / "docs" / "comparison.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 7
    for row in rows:
        assert "](" in row.rstrip("|").split("|")[-1], row
