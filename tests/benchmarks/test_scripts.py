"""Every benchmark once from end to end, on a random pair and on very few questions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from tests.conftest import Running
from waver.benchmarks import (
    bundled,
    diffadapt,
    entropy_check,
    forms,
    frontier,
    ingestion,
    l_rag,
    report,
    retrieval,
    throughput,
    truncation,
    truncation_speed,
)
from waver.benchmarks.answers import load_pair
from waver.benchmarks.frontier import BARS, POINTS, SHARES, Point
from waver.clients.client import AsyncWaver
from waver.engines.probe import Probe, Record, reference_ids
from waver.extras import how_to_install
from waver.policies.think.difficulty import DIFFICULTIES
from waver.training.probe.fit import mlp, weights


@pytest.fixture(scope="session")
def pair(tiny_pair: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small` and `large`, the random pair."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in tiny_pair.items():
        (folder / name).symlink_to(model)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two families, one threshold each, two shares: the frontier in seconds."""
    settings = ({"window": 5, "min_tokens": 10}, {"window": 1, "min_tokens": 1, "monitor": "small"})
    monkeypatch.setattr(frontier, "FAMILIES", {str(s): (s, (3.0,)) for s in settings})
    monkeypatch.setattr(frontier, "SHARES", (0.3, 0.6))


def run(script: Any, out: Path, *options: object) -> dict[str, Any]:
    """Run a benchmark by its command line; its JSON."""
    script.app(args=[*map(str, options), "--out", str(out)], standalone_mode=False)
    (file,) = out.glob("*.json")
    assert file.with_suffix(".md").read_text().startswith("# ")
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["versions"]["torch"]
    assert found["command"].startswith("waver bench ")
    return found


FEW = ("--n", 4, "--calibration-n", 2, "--max-tokens", 24)


@pytest.mark.usefixtures("few")
def test_frontier(pair: Path, tmp_path: Path) -> None:
    found = run(frontier, tmp_path, *FEW, "--models", pair)
    methods = [row["method"] for row in found["points"]]
    assert methods[:2] == ["small alone", "large alone"]
    assert methods.count("ead") == len(frontier.ead_grid())
    assert methods.count("random_switch") == 2
    assert "route" in methods
    shares = {row["method"]: row["share"] for row in found["points"][:2]}
    assert shares == {"small alone": 0.0, "large alone": 1.0}
    assert found["points"][0]["relative_cost"] == pytest.approx(found["small_cost"])
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md", ".png", ".svg"}


@pytest.mark.usefixtures("few")
def test_frontier_over_http_is_the_same(pair: Path, running: Any, tmp_path: Path) -> None:
    here = run(frontier, tmp_path / "here", *FEW, "--models", pair)
    there = run(frontier, tmp_path / "there", *FEW, "--base-url", running.v1)
    for one, other in zip(here["points"], there["points"], strict=True):
        assert one.pop("relative_cost") == pytest.approx(other.pop("relative_cost"))
        assert one == other


def test_the_draws_must_differ(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        frontier.app(args=["--seed", "5", "--calibration-seed", "5"])
    assert "different seeds" in capsys.readouterr().err


def test_throughput(pair: Path, tmp_path: Path) -> None:
    found = run(throughput, tmp_path, "--runs", 1, "--tokens", 12, "--segment", 4, "--models", pair)
    assert found["concurrency"]["small"]["equal"]["median"] > 1
    assert {cache for case in found["hand_over"].values() for cache in case} == {"kept", "cold"}
    assert (tmp_path / "throughput.png").exists()


def test_truncation(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncation, "TEMPERATURES", (0.5, 2.0))
    found = run(truncation, tmp_path, "--n", 3, "--repeated", 2, "--max-tokens", 6, "--models", pair)
    for measured in found["models"].values():
        rows = {(row["method"], row["temperature"]): row for row in measured["cells"]}
        assert len(rows) == 2 * (1 + len(truncation.METHODS))
        assert rows["no truncation", 2.0]["texts"] == truncation.SAMPLES  # random weights repeat nothing
        assert rows["greedy", 2.0]["texts"] == 1
        assert rows["top_w", 2.0]["kept"] <= rows["top_w, mass_weight 5", 2.0]["kept"]
        assert rows["top_w", 0.5]["over"] == 0
    assert (tmp_path / "truncation.png").exists()


def test_l_rag(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l_rag, "GATES", {"entropy": {}, "flare": {}})
    monkeypatch.setattr(l_rag, "RATES", (0.2, 0.8))
    monkeypatch.setattr(l_rag, "TIMED", 3)
    monkeypatch.setattr(l_rag, "TOKENS", 4)
    monkeypatch.setattr(l_rag, "corpus", lambda distractors, seed, whole=l_rag.corpus: whole(distractors, seed)[:12])
    options = ("--n", 40, "--calibration", 40, "--distractors", 3, "--runs", 1, "--models", pair)
    found = run(l_rag, tmp_path, *options)
    assert len(l_rag.corpus(3, 1)) == 12
    for told in found["engines"].values():
        rows = {row["policy"]: row for row in told["rows"]}
        assert set(rows) == {"never", "always", "entropy", "random", "flare", "oracle"}
        assert (rows["never"]["rate"], rows["always"]["rate"], rows["always"]["over"]) == (0, 1, 0)
        for row in told["sweep"]:
            assert abs(row["rate"] - row["calibrated_rate"]) < 0.35
        assert told["times"]["milliseconds"]["always"]["median"] > 0
    assert (tmp_path / "l_rag.png").exists()


@pytest.fixture
def probed(pair: Path, tmp_path: Path) -> Path:
    """The random pair with two probes of random weights for its large model."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "large").mkdir()
    for file in (pair / "large").iterdir():
        (folder / "large" / file.name).symlink_to(file)

    async def reference() -> tuple[tuple[int, ...], torch.Tensor]:
        async with load_pair(pair) as engines:
            ids = reference_ids(engines["large"], "")
            return ids, await engines["large"].hidden_state(ids)

    ids, state = asyncio.run(reference())
    for seed, rule in enumerate(("paper", "oracle")):
        torch.manual_seed(seed)
        record = Record(model="random", words="", labels=rule)
        Probe(weights(mlp(len(state), 8)), record, ids, state).save(folder / "large" / "probe" / rule)
    return folder


def test_diffadapt(probed: Path, start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def serve(settings: dict[str, Any], config: dict[str, Any]) -> AsyncGenerator[AsyncWaver, None]:
        engines = {"large": {"backend": "transformers", "model": str(settings["models"] / "large")}}
        running = start(config={"engines": engines, "presets": {}, "default_preset": None, **config})
        async with AsyncWaver(base_url=running.v1) as client:
            yield client

    monkeypatch.setattr(diffadapt, "serve", serve)
    monkeypatch.setattr(diffadapt, "WARM_UP", 0)
    monkeypatch.setattr(diffadapt, "BLOCK", 5)
    found = run(
        diffadapt, tmp_path / "out", "--n", 8, "--timed", 1, "--longer", 1, "--max-tokens", 40, "--models", probed
    )
    rows = {row["way"]: row for row in found["rows"]}
    routed = ("diffadapt, paper", "diffadapt, oracle")
    assert set(rows) == {"plain", *DIFFICULTIES, *routed, "shuffled, paper", "shuffled, oracle", "oracle"}
    for name in DIFFICULTIES:
        assert rows[name]["mix"][name] == 1
    assert rows["normal"]["saving"] == rows["normal"]["over_normal"] == 0
    assert all(sum(rows[name]["mix"].values()) == pytest.approx(1) for name in routed)
    assert rows["oracle"]["tokens"] <= min(rows[name]["tokens"] for name in DIFFICULTIES)
    assert [row["way"] for row in found["beyond"]] == ["plain", *DIFFICULTIES, *routed]
    assert sum(level["count"] for level in found["levels"]) == 8 + len(diffadapt.BEYOND)
    assert found["first_tokens"]["long"]["milliseconds"]["auto"]["median"] > 0
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".json", ".md", ".png", ".svg"}


def test_what_a_probe_knows_is_what_its_shuffled_decisions_lose() -> None:
    def made(right: list[float], tokens: float, chosen: str | list[str]) -> diffadapt.StrategyResult:
        named = [chosen] * 4 if isinstance(chosen, str) else chosen
        return diffadapt.StrategyResult(
            np.array(right * 50), np.full(200, tokens), np.ones(200), tuple(named * 50), 0.0, 1.0
        )

    fixed = {
        "easy": made([1, 1, 0, 0], 10, "easy"),
        "normal": made([1, 1, 1, 1], 100, "normal"),
        "hard": made([1, 1, 1, 1], 50, "hard"),
    }
    routed = made([1, 1, 1, 1], 55, ["easy", "easy", "normal", "normal"])
    row = diffadapt.rows(fixed | {"diffadapt, paper": routed})[-1]
    assert row["mix"] == {"easy": 0.5, "normal": 0.5, "hard": 0}
    assert row["saving"] == pytest.approx(0.45)
    assert (row["shuffled_accuracy"], row["shuffled_tokens"], row["over_shuffled"]) == (0.75, 55, 0.25)
    assert row["met"] == {"saving": True, "shuffled": True}
    lost = diffadapt.rows(fixed | {"diffadapt, paper": made([1, 1, 0, 1], 10, "easy")})[-1]
    assert lost["met"]["saving"] is False


def test_which_signal_tells() -> None:
    assert l_rag.auroc(np.array([0.1, 0.2, 0.3, np.inf]), np.array([0, 0, 1, 1])) == 1
    assert l_rag.auroc(np.array([1.0, 1, 1, 1]), np.array([0, 1, 0, 1])) == 0.5
    assert np.isnan(l_rag.auroc(np.array([1.0, 2]), np.array([0, 0])))


def test_verdicts_on_truncations() -> None:
    def row(method: str, accuracy: float, spread: float, entropy: float | None) -> dict[str, Any]:
        over = {"over_interval": (accuracy - spread, accuracy + spread), "crop_entropy": entropy}
        return {"method": method, "temperature": 2.0, **over}

    rows = [row("greedy", 0.1, 0.05, None), row("top_w", 0.0, 0.0, 0.3), row("no truncation", 0.0, 0.1, None)]
    rows += [row("top_p", -0.3, 0.1, 2.0), row("min_p", -0.1, 0.2, 0.4), row("top_h", 0.0, 0.2, 0.3)]
    (found,) = truncation.verdicts(rows)
    assert found["above"] == ["top_p"]
    assert found["below"] == ["greedy"]
    assert found["sharper"] == ["no truncation", "min_p"]
    assert found["no_sharper"] == ["top_h"]


def test_truncation_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncation_speed, "VOCABULARIES", {"2k": 2_000})
    monkeypatch.setattr(truncation_speed, "BATCHES", (1, 3))
    found = run(truncation_speed, tmp_path, "--runs", 1, "--dim", 16)
    assert len(found["cells"]) == 2 * len(truncation_speed.SHAPES)
    for cell in found["cells"].values():
        assert set(truncation_speed.METHODS) <= set(cell)
        assert cell[truncation_speed.TOP_P]["alone"]["median"] == 1.0
    assert found["whitening"]["2k"]["mebibytes"] == pytest.approx(2_000 * 16 * 4 / 2**20)
    assert set(found["bars"]) == set(truncation_speed.BARS)


def test_bundled(pair: Path, tmp_path: Path) -> None:
    found = run(bundled, tmp_path, "--n", 2, "--strategy-n", 1, "--max-tokens", 8, "--models", pair)
    assert set(found["models"]["large"]["cells"]) == {cell.name for cell in bundled.CELLS}
    assert set(found["strategies"]["checked"]) == {str(steps) for steps in range(1, 9)}


def test_entropy_check(pair: Path, tmp_path: Path) -> None:
    found = run(entropy_check, tmp_path, "--n", 4, "--max-tokens", 12, "--models", pair)
    assert found["met"]
    assert found["ways"]["ead"]["float64"]["tokens"]["max"] < 1e-3


def test_retrieval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "ROUNDS", 1)
    monkeypatch.setattr(ingestion, "FORMATS", {"html": ingestion.html, "pdf": ingestion.pdf})
    options = ("--sizes", 400, "--n", 8)
    found = run(retrieval, tmp_path, *options)
    assert found["indices"]["400"]["flat"]["recall"] == 1
    assert all(0.8 < kind["recall"] <= 1 for kind in found["indices"]["400"].values())
    for taken in found["ingestion"].values():
        assert taken["chunks"] >= 8
        assert all(seconds > 0 for seconds in taken["seconds"].values())
    cut = json.loads((tmp_path / "retrieval.json").read_text())
    del cut["indices"]["400"]["hnsw"], cut["ingestion"]["html"]
    (tmp_path / "retrieval.json").write_text(json.dumps(cut))
    again = run(retrieval, tmp_path, *options, "--resume")
    for kind in ("flat", "ivf_pq"):
        assert again["indices"]["400"][kind] == found["indices"]["400"][kind]
    assert again["indices"]["400"]["hnsw"]["recall"] == found["indices"]["400"]["hnsw"]["recall"]
    assert set(again["ingestion"]) == set(found["ingestion"])
    with pytest.raises(typer.BadParameter, match="other settings"):
        run(retrieval, tmp_path, "--sizes", 500, "--n", 8, "--resume")


def test_an_ingestion_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner parts are not counted twice, and all parts add up to the whole."""
    now = iter((0.0, 1.0, 3.0, 6.0, 10.0, 15.0))
    monkeypatch.setattr(ingestion.time, "perf_counter", lambda: next(now))
    clock = ingestion.Clock()
    index = clock.watch("index", lambda: "built")
    assert clock.watch("write", index)() == "built"
    clock.charge()
    assert clock.seconds == {"rest": 1 + 5, "write": 2 + 4, "index": 3}


def points() -> list[Point]:
    """Two models alone and between them a policy better than chance, as a run might have found them."""
    n = 200

    def made(method: str, right: float, share: float, **settings: float) -> Point:
        total = np.full(n, 10.0)
        return Point(method, settings, np.arange(n) < right * n, total * share, total, np.zeros(n), np.zeros(n))

    return [
        made("small alone", 0.5, 0.0),
        made("large alone", 1.0, 1.0),
        made("ead", 0.99, 0.2, threshold=0.1),
        made("ead", 0.7, 0.05, threshold=0.5),
        *(made("random_switch", 0.5 + share / 2, share, rate=share) for share in SHARES),
    ]


def test_forms_across_hand_overs(start: Callable[..., Running], pair: Path, tmp_path: Path) -> None:
    stores = {"retrieval": {"path": str(tmp_path / "collections")}}
    server = start(config={**forms.configuration(pair), "presets": {}, **stores})
    found = run(forms, tmp_path, "--url", server.url, "--count", 3, "--threshold", 3.0)
    outcomes = found["outcomes"]
    assert len(outcomes) == 6
    assert all(each["valid"] == each["count"] == 3 for each in outcomes if each["way"] == "one engine")
    assert sum(each["handed_over"] for each in outcomes) > 0


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"city": "Rome", "days": 2, "means": ["ship"]}', True),
        ('{"city": "Rome", "days": 2, "means": ["ship"], "more": 1}', False),
        ('{"city": "Rome", "days": "2", "means": []}', False),
        ('{"city": "Rome"', False),
    ],
)
def test_what_is_a_trip(text: str, valid: bool) -> None:
    assert forms.is_trip(text) == valid


def test_bars_are_read_off_the_points() -> None:
    found = frontier.numbers(points(), {"b": {"threshold": 0.1}, "c": {"threshold": 0.5}}, 0.2)
    best = found["points"][2]
    assert best["over_random"] == pytest.approx(0.99 - 0.6)
    assert best["over_random_interval"][0] > POINTS
    assert best["relative_cost"] == pytest.approx(0.2 + 0.8 * 0.2)
    assert [found["bars"][bar]["met"] for bar in ("a", "b", "c")] == [True, True, False]
    assert found["bars"]["c"]["settings_that_do"] == 1


def test_no_quality_is_certain() -> None:
    """Also a setting with the very answers of the large model has an interval, and only the model itself has none."""
    made = points()
    twin = made[1].__class__("ead", {"threshold": 0.2}, *list(vars(made[1]).values())[2:])
    rows = frontier.numbers([*made, twin], {"b": None, "c": None}, 0.2)["points"]
    low, high = rows[-1]["quality_interval"]
    assert low < 1 < high
    assert rows[1]["method"] == "large alone"
    assert "(100.0–100.0)" not in frontier._line(rows[1])[2] + frontier._line(rows[-1])[2]


def test_the_papers_rule_is_among_what_is_tried() -> None:
    lagged = [each for each in frontier.ead_grid() if each.get("timing") == "lagged"]
    assert len(lagged) == 8
    assert all((each["window"], each["min_tokens"], each["threshold_down"]) == (5, 10, None) for each in lagged)


def test_the_operating_point_keeps_to_its_share_and_off_the_edge() -> None:
    lucky, plateau = ((0.5, 0.8, 1.0), (0.01, 0.02, 0.03)), ((0.95, 0.95, 0.95), (0.1, 0.2, 0.3))
    total, none = np.full(200, 10.0), np.zeros(200)
    tried = [
        Point("ead", {"window": w, "threshold": t}, np.arange(200) < right * 200, share * total, total, none, none)
        for w, (rights, shares) in ((3, lucky), (1, plateau))
        for t, right, share in zip((0.3, 0.2, 0.1), rights, shares, strict=True)
    ]
    assert frontier.choose(tried, BARS["b"][1]) == {"window": 1, "threshold": 0.3}
    assert frontier.choose(tried, 0.1) == {"window": 3, "threshold": 0.1}
    assert frontier.choose(tried, 0.01) is None


def test_numbers_are_written_as_plain_json(tmp_path: Path) -> None:
    numbers = report.conditions("frontier", {"n": 3, "models": None, "out": tmp_path}) | {"quality": float("nan")}
    report.write(tmp_path, "one", numbers, ["# One"])
    assert json.loads((tmp_path / "one.json").read_text())["quality"] is None
    assert numbers["command"] == f"waver bench frontier --n 3 --out {tmp_path}"


def test_without_the_extra_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as left:
        frontier.app(args=[])
    assert left.value.code == 1
    assert how_to_install("bench") in capsys.readouterr().out
