"""`waver bench quality`: tasks are read and scored, peers are named, runs go on, and the tables tell who is better."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from tests.conftest import Running
from waver.benchmarks import quality
from waver.benchmarks.quality_asking import ANSWERS, Asking, Line, busy
from waver.benchmarks.quality_choice import Wanted, choose, found_of
from waver.benchmarks.quality_peers import BASELINES, Names, families, read
from waver.benchmarks.quality_tables import Told, numbers, verdicts
from waver.benchmarks.quality_tasks import CODE, Item, draws, instruction_for, is_right
from waver.benchmarks.quality_tasks import read as read_tasks
from waver.benchmarks.stats import holm, mcnemar
from waver.clients.questions import Refused
from waver.job import read_lines
from waver.policies.registry import parse
from waver.python_tests import Runner
from waver.stats import paired_difference

SETS = {
    "MultiArith": ({"input": "2 and 3?", "target": 5}, ("2 and 3?", ("5",), "numeric")),
    "SVAMP": (
        {"Body": "He had 3 nuts", "Question": "How many?", "Answer": 1201560.0},
        ("He had 3 nuts. How many?", ("1201560",), "numeric"),
    ),
    "GSM8K": ({"question": "2 and 3?", "answer": "2+3=5\n#### 1,005"}, ("2 and 3?", ("1,005",), "numeric")),
    "MMLU": (
        {"question": "Which?", "choices": ["x", "y"], "answer": 1, "type": "t"},
        ("Which?\nA. x\nB. y", ("B",), "choice"),
    ),
    "own": (
        {"prompt": "Where?", "answer": ["here", "there"], "scorer": "contains"},
        ("Where?", ("here", "there"), "contains"),
    ),
}  # fmt: skip
PROGRAM = {
    "task_id": "HumanEval/0",
    "prompt": "from math import floor\n\n\ndef half(x):\n    '''Halve.'''\n",
    "entry_point": "half",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(5) == 2\n",
}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SETS)
def test_known_sets_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    row, (prompt, answers, scorer) = SETS[name]
    file = written(tmp_path / "x.jsonl", "", row)
    (item,) = read_tasks(file)
    assert (item.line, item.prompt, item.answers, item.scorer) == (2, prompt, answers, scorer)
    assert bool(instruction_for(file)) == (name != "own")


def test_a_plain_answer_needs_a_scorer_which_an_option_may_give(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", {"question": "2 and 3?", "answer": 5})
    assert read_tasks(file, "numeric")[0].answers == ("5",)
    assert instruction_for(file) == ""
    with pytest.raises(Refused, match="line 1: `scorer` is one of numeric"):
        read_tasks(file)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 1 is not JSON"),
        ([1], "no JSON object"),
        ({"answer": "x", "scorer": "exact"}, "no prompt"),
        ({"prompt": "x", "answer": [], "scorer": "exact"}, "no answer"),
        ({"prompt": "x", "answer": "y", "scorer": "numeric"}, "'y' is no number"),
        ({"prompt": "x", "answer": "both", "scorer": "choice"}, "no letter"),
        ({"prompt": "x", "answer": "y", "scorer": "taste"}, "`scorer` is one of"),
        ({"prompt": "x", "scorer": "python_tests", "tests": "assert f()"}, "takes `tests`, a list"),
        ({"question": "x", "choices": ["a"], "answer": 40}, "looks like a line of MMLU"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(row: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=words):
        read_tasks(written(tmp_path / "x.jsonl", row))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("```python\ndef half(x):\n    return floor(x / 2)\n```", True),  # the imports of the prompt are there
        ("    return floor(x / 2)", True),
        ("```python\ndef half(x):\n    return x / 2\n```", False),
        ("I cannot.", False),
    ],
)
async def test_code_is_run_behind_its_prompt(text: str, right: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(PROGRAM).encode()))
    (item,) = read_tasks(file)
    assert item.prompt.startswith(CODE)
    assert await is_right(item, text, Runner()) is right


async def test_each_scorer_judges() -> None:
    for scorer, answer, good, bad in (
        ("exact", "Sorn", "sorn.", "the Sorn"),
        ("numeric", "5", "2 + 3 = 5", "5 or 6"),
        ("choice", "B", "The answer is (B).", "B or C? I take C."),
        ("contains", "Sorn", "It is the Sorn.", "Sornby"),
    ):
        item = Item(1, "?", (answer,), scorer)
        assert await is_right(item, good, Runner())
        assert not await is_right(item, bad, Runner())


def test_draws_are_apart_and_grow() -> None:
    items = [Item(i, str(i), ("1",), "exact") for i in range(30)]
    calibration, test = draws(items, 8, 10, 3)
    assert len({item.line for item in (*calibration, *test)}) == 18
    more_calibration, more = draws(items, 8, 20, 3)
    assert (more[:10], more_calibration) == (test, calibration)
    with pytest.raises(Refused, match="8 \\+ 23 questions are wanted"):
        draws(items, 8, 23, 3)


def test_peers_are_named() -> None:
    names = Names("s", "l", "handbook")
    plain = {name: read(name, names) for name in BASELINES}
    assert plain["large"].peers[0].model == "l"
    assert plain["speculative"].peers[0].model == "speculative"
    assert plain["random"].same_share
    assert not read("random={rate: 0.3}", names).same_share
    assert plain["always_retrieve"].peers[0].policy == ({"name": "l_rag", "gate": "always", "collection": "handbook"},)
    assert len(plain["route"].peers) > 1, "its usual sweep"
    (hard,) = plain["hard"].peers
    assert hard.policy == ({"name": "diffadapt", "strategy": "hard"},)
    swept = read("mine: ead={threshold: [0.1, 1], window: [1, 5], monitor: small}", names)
    assert (swept.name, len(swept.peers), swept.baseline) == ("mine", 4, False)
    assert swept.peers[1].name == "mine threshold 0.1, window 5"
    assert swept.peers[1].policy == (
        {"name": "ead", "small": "s", "large": "l", "threshold": 0.1, "window": 5, "monitor": "small"},
    )
    assert read("waver/frugal", names).peers[0].policy is None
    arm = read("s=[{name: top_p, p: 0.9}]", names)
    assert (arm.peers[0].model, arm.peers[0].policy) == ("s", ({"name": "top_p", "p": 0.9},))
    assert arm.peers[0].key != read("s", names).peers[0].key
    assert [each.name for each in families(["small"], names)] == ["large", "small"]
    for wrong, words in (
        (["small", "small"], "twice"),
        (["ead={threshold"], "cannot be read"),
        (["ead=3"], "write NAME"),
        (["small={a: 1}"], "takes no parameters"),
        (["@/nowhere"], "report.json cannot be read"),
    ):
        with pytest.raises(Refused, match=words):
            families(wrong, names)
    with pytest.raises(Refused, match="needs --collection"):
        families(["always_retrieve"], Names())


@pytest.mark.parametrize("name", BASELINES)
def test_a_server_takes_every_baseline(name: str) -> None:
    engines: Any = {each: Writer() for each in ("s", "l")}
    for peer in read(name, Names("s", "l", "handbook")).peers:
        assert peer.policy is not None
        assert [each.name for each in parse(peer.policy, engines)] == [each["name"] for each in peer.policy]


class Writer:
    """An engine, as far as policies are checked against it."""

    tokens, parameters = None, 1


def test_what_was_calibrated_is_a_peer(tmp_path: Path) -> None:
    written(tmp_path / "report.json", {"preset": {"name": "ead", "threshold": 0.2}})
    (peer,) = read(f"tuned: @{tmp_path}", Names()).peers
    assert (peer.name, peer.policy) == ("tuned", ({"name": "ead", "threshold": 0.2},))
    written(tmp_path / "report.json", {"preset": None})
    with pytest.raises(Refused, match="has chosen no setting"):
        read(f"@{tmp_path}", Names())


def cells(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    return (
        [True] * both + [True] * first + [False] * second + [False] * neither,
        [True] * both + [False] * first + [True] * second + [False] * neither,
    )


@pytest.mark.parametrize(
    ("counts", "interval"),
    [  # the first is an example of Newcombe's (1998, table III, method 10)
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        # No correlation can be seen: the reach of Wilson's interval of 30 out of 30, which begins at 0.8865.
        ((30, 0, 0, 0), (-0.1135, 0.1135)),
    ],
)
def test_differences_have_newcombes_interval(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    assert paired_difference(*cells(*counts)) == pytest.approx(interval, abs=6e-5)


@pytest.mark.parametrize("counts", [(10, 9, 2, 4), (10, 3, 3, 0), (4, 0, 0, 4), (0, 0, 7, 1)])
def test_mcnemar_is_the_binomial_test(counts: tuple[int, int, int, int]) -> None:
    _, first, second, _ = counts
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(*cells(*counts)) == pytest.approx(expected)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_time_in_which_others_have_their_turn_does_not_count() -> None:
    spans = [(0.0, 2.0), (1.0, 2.0), (10.0, 1.0), (10.5, 0.1)]
    assert busy([{"began": began, "seconds": seconds} for began, seconds in spans]) == pytest.approx(4.0)


def line(right: bool, large: int = 0, small: int = 0, cost: float = 1.0, place: int = 0) -> Line:
    return {
        "line": place, "right": right, "tokens": {"small": small, "large": large}, "decode": cost, "read": 0.0,
        "began": 10.0 * place, "seconds": cost, "finish": "stop", "switches": 0,
    }  # fmt: skip


def told(name: str, rights: list[bool], baseline: bool = True, **of: Any) -> Told:
    return Told(name, name, baseline, [line(right, place=i, **of) for i, right in enumerate(rights)])


def test_no_interval_is_empty_where_all_answers_are_alike() -> None:
    all_right = [True] * 12
    found = numbers(
        [told("large", all_right, large=9), told("ead", all_right, False, small=9, cost=0.2)], "large", "large"
    )
    ead = found["rows"][1]
    for key in ("accuracy_interval", "difference_interval", "share_interval"):
        low, high = ead[key]
        assert low < high, key
    assert ead["share"] == 0.0 <= ead["share_interval"][0]
    assert ead["p"] == 1.0
    assert ead["cost"] == pytest.approx(0.2)


def test_a_baseline_that_wins_is_named() -> None:
    good, bad = [True] * 30 + [False] * 10, [True] * 10 + [False] * 30
    large = told("large", good, large=9)
    ead = told("ead", [True] * 28 + [False] * 12, False, large=3, small=6, cost=0.6)
    found = numbers([large, ead, told("small", bad, small=9, cost=0.2)], "large", "large")
    assert "No baseline here has as many right answers" in verdicts(found, "large")[0]
    assert "not to be told from `large`" in verdicts(found, "large")[0]
    assert "saves no time" not in verdicts(found, "large")[0]
    slow = told("ead", good, False, large=3, small=6, cost=1.2)
    assert "**It saves no time over `large`.**" in verdicts(numbers([large, slow], "large", "large"), "large")[0]
    route = told("route", good, large=4, small=5, cost=0.5)
    found = numbers([large, ead, route], "large", "large")
    assert "**`route` does at least as well for no more**" in verdicts(found, "large")[0]
    assert [each["baseline"] for each in found["pairs"]] == ["large", "route"]
    worse = numbers([large, told("ead", bad, False, small=9, cost=0.1)], "large", "large")
    assert worse["rows"][1]["p_holm"] < 0.05
    assert "surely other than `large`" in verdicts(worse, "large")[0]


def test_a_peer_that_was_asked_later_is_said_to_be() -> None:
    large, ead = told("large", [True] * 9, large=9), told("ead", [True] * 9, False, small=9, cost=0.2)
    later = Told("late", "late", False, [each | {"began": each["began"] + 1000} for each in ead.lines])
    found = numbers([large, ead, told("small", [True] * 9, small=9), later], "large", "large")
    assert [row["apart"] for row in found["rows"]] == [False, False, False, True]
    assert ["asked at another time" in each for each in verdicts(found, "large")] == [False, True]


def test_settings_are_chosen_on_the_calibration_draw_alone() -> None:
    """The cheapest setting that loses little there is taken, though another one is better on the test draw; chance has
    the share that the chosen setting has."""
    found = families(["large", "ead={threshold: [0.1, 1, 9]}", "random"], Names())
    calibration, test = ([Item(i, str(i), ("1",), "exact") for i in places] for places in (range(10), range(10, 20)))
    costs, losses = {0.1: 0.9, 1: 0.5, 9: 0.1}, {0.1: 0, 1: 0, 9: 4}
    known = {}
    for item in (*calibration, *test):
        known[found[0].peers[0].key, item.line] = line(True, large=10)
        for peer in found[1].peers:
            threshold = dict((peer.policy or ({},))[0])["threshold"]
            right = item.line >= 10 or item.line >= losses[threshold]
            large = round(10 * costs[threshold])
            known[peer.key, item.line] = line(right, large=large, small=10 - large, cost=costs[threshold])
    wanted = Wanted(found, calibration, test, 0.02, Names(), False)
    picked, rows = choose(wanted, known)
    assert [peer.name for family in picked for peer in family.peers] == ["large", "ead threshold 1", "random at 50.0%"]
    assert [row["chosen"] for row in rows] == [False, True, False]
    for item in test:
        known[picked[2].peers[0].key, item.line] = line(False, large=5, small=5)
    made = found_of(picked, wanted, known)
    assert [row["questions"] for row in made["rows"]] == [10, 10, 10]
    del known[found[1].peers[0].key, 3]
    with pytest.raises(Refused, match="calibration draw are missing"):
        choose(wanted, known)
    with pytest.raises(Refused, match="name one, or random=\\{rate"):
        choose(Wanted(families(["random"], Names()), calibration, test, 0.02, Names(), False), known)


def bench(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(quality.app, [*map(str, options)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def options(running: Running, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A run on the random pair: its folder is the last but one."""
    folder = tmp_path_factory.mktemp("quality")
    rows = [{"prompt": f"{i} and {i}?", "answer": str(2 * i), "scorer": "numeric"} for i in range(12)]
    file = written(folder / "sums.jsonl", *rows)
    return (
        file, "--base-url", running.v1, "--peer", "small", "--peer", "random", "--peer",
        "ead={threshold: [0.1, 3], window: 5}", "--peer", "cascade={threshold: 1.0}", "--calibration", 2,
        "--max-tokens", 8, "--at-once", 3, "--work", folder / "work", "--out", folder / "out",
    )  # fmt: skip


def test_a_run_is_stopped_goes_on_and_grows(options: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    work, out = options[-3], options[-1]
    ask: Callable[..., Any] = Asking.ask
    asked: list[int] = []

    async def interrupted(self: Asking, peer: Any, item: Item) -> Line:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(item.line)
        made: Line = await ask(self, peer, item)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Asking, "ask", interrupted)
        assert "the same command goes on" in bench(*options, "--n", 3, code=130)
    before = read_lines(work / ANSWERS)
    assert before
    bench(*options, "--n", 3)
    # Large and two settings of ead choose on 2 questions; large, small, random, ead and cascade answer 3.
    assert len(read_lines(work / ANSWERS)) == 2 * 3 + 3 * 5
    bench(*options, "--n", 5)
    after = read_lines(work / ANSWERS)
    assert len(after) == 2 * 3 + 5 * 5
    assert after[: len(before)] == before
    assert all(each["text"] and each["seconds"] > 0 and each["decode"] > 0 for each in after)
    made = json.loads((out / "quality.json").read_text())
    assert [row["family"] for row in made["rows"]] == ["large", "small", "random", "ead", "cascade"]
    assert made["rows"][0]["cost"] == 1
    assert made["rows"][1]["cost"] < 1
    assert all(row["questions"] == 5 for row in made["rows"])
    assert all(not math.isclose(*row["accuracy_interval"]) for row in made["rows"])
    assert made["peers"]["cascade"]["policy"][0]["threshold"] == 1.0
    assert (out / "quality.png").exists()
    assert (out / "quality.svg").exists()
    written = (out / "quality.md").read_text()
    assert "## Verdicts" in written
    assert "bench quality sums.jsonl --base-url" in written
    assert str(work.parent) not in written + (out / "quality.json").read_text(), "folders stay private"
    assert "holds another run" in bench(*options, "--n", 5, "--max-tokens", 9, code=1)

    async def never(*_: Any) -> Line:
        raise AssertionError("everything is there")

    monkeypatch.setattr(Asking, "ask", never)
    bench(*options, "--n", 5, "--stored")
    again = json.loads((out / "quality.json").read_text())
    assert again["rows"] == made["rows"]


def test_what_the_server_refuses_is_said(options: tuple[Any, ...], tmp_path: Path) -> None:
    rest = ("--n", 2, "--work", tmp_path / "work")
    common = (*options[:3], *rest, "--out", tmp_path)
    assert "nobody" in bench(*common, "--peer", "nobody", code=1)
    assert "threshold" in bench(*common, "--peer", "ead={threshold: -1}", code=1)
    assert "No server answers at" in bench(
        options[0], "--base-url", "http://127.0.0.1:9/v1", *rest, "--peer", "small", code=1
    )


def test_baselines_are_listed() -> None:
    told = bench("--list")
    assert all(name in told for name in BASELINES)
