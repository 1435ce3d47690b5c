"""Images are classified by their most confident views: a small CLIP with an imbalanced prior, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.training.adaptation import digits
from waver.cli import app
from waver.entropy.debiased import debiased_entropy, orders, softmax
from waver.training.adaptation import classify as work
from waver.training.adaptation.options import ClassifyRun
from waver.training.adaptation.stream import Stream
from waver.training.adaptation.views import crops, read_image

SHORT = ["--views", "16", "--keep", "0.25", "--smallest", "0.5", "--mirror", "0", "--warmup", "30", "--every", "20"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    digits.train(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    digits.write_images(folder)
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(digits.NAMES) + "\n")
    return file


def run(pictures: Path, labels: Path, clip: Path, out: Path, *more: str) -> Any:
    command = ["classify", str(pictures), "--labels", str(labels), "--model", str(clip), "--out", str(out)]
    return CliRunner().invoke(app, [*command, *SHORT, *more])


def predictions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_a_biased_classifier_is_adapted(
    pictures: Path, labels: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(pictures, labels, clip, tmp_path / "run")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = report["accuracy"]
    assert report["images"] == sum(report["predicted"].values()) == 240
    assert found["adte"] > 0.6
    assert found["adte"] > found["shannon"]
    counted = {label: sum(line["label"] == label for line in predictions(tmp_path / "run")) for label in digits.NAMES}
    assert report["predicted"] == counted
    prior = [report["prior"][name] for name in digits.NAMES]
    assert report["orders"] == pytest.approx(dict(zip(digits.NAMES, orders(prior), strict=True)))
    assert np.mean(prior[:3]) > np.mean(prior[-3:]), "what was trained on more is predicted more"

    stopped, logits = tmp_path / "stopped", work.ZeroShot.__call__
    calls = iter(range(50))

    def dies(*args: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return logits(*args)

    with monkeypatch.context() as patch:
        patch.setattr(work.ZeroShot, "__call__", dies)
        assert run(pictures, labels, clip, stopped).exit_code == 130
    assert len(predictions(stopped)) == 50
    assert run(pictures, labels, clip, stopped).exit_code == 0
    for name in ("predictions.jsonl", "report.json"):
        assert (stopped / name).read_text() == (tmp_path / "run" / name).read_text()
    again = run(pictures, labels, clip, stopped)
    assert "done already" in again.output
    other = run(pictures, labels, clip, stopped, "--seed", "2")
    assert other.exit_code == 1
    assert "holds another run" in other.output


def test_two_passes_know_the_prior_from_the_first_image_on(labels: Path, clip: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    digits.write_images(few, each=3)
    assert run(few, labels, clip, tmp_path / "two", "--two-passes", "--measure", "all", "--adjust").exit_code == 0
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["images"] == 30
    assert report["prior"] is not None, "although fewer than the warm-up asks for have entered"
    assert len(predictions(tmp_path / "two")[0]["kept"]) == 16


def test_a_stream_estimates_after_every_few_items() -> None:
    how = ClassifyRun("any", keep=0.5, warmup=2, every=2, slots=3)
    stream = Stream(2, how)
    views = np.array([[4.0, 0.0], [0.0, 1.0]])
    p = softmax(views)
    assert stream.classify(views).kept == (int(debiased_entropy(p, 0.1).argmin()),)
    stream.learn(np.array([[4.0, 0.0]]))
    assert stream.prior is None
    stream.learn(np.array([[4.0, 2.0]]))
    assert stream.q.tolist() == pytest.approx([0.9, 0.01])
    assert stream.prior is not None
    assert stream.classify(views, "shannon").kept == (0,)
    assert stream.classify(views).kept == (1,), "the label that is predicted always is trusted less"
    assert stream.classify(views, "first").kept == (0,)
    assert stream.classify(views, "all").kept == (0, 1)
    adjusted = Stream(2, ClassifyRun("any", adjust=True, keep=1.0))
    adjusted.prior = np.array([0.9, 0.1])
    expected = softmax(views - np.log([0.9, 0.1])).mean(0)
    assert adjusted.classify(views).mean.tolist() == pytest.approx(expected.tolist())


def test_views_of_an_image(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(30 * 40, dtype=np.uint32).reshape(30, 40).astype(np.uint8)).convert("RGB")
    first = [np.array(view) for view in crops(image, 8, 5, 0.3, 0.5, "1:a")]
    again = [np.array(view) for view in crops(image, 8, 5, 0.3, 0.5, "1:a")]
    other = [np.array(view) for view in crops(image, 8, 5, 0.3, 0.5, "2:a")]
    assert [view.shape for view in first] == [(8, 8, 3)] * 5
    assert all(map(np.array_equal, first, again))
    assert np.array_equal(first[0], other[0]), "the centre"
    assert not any(map(np.array_equal, first[1:], other[1:]))
    centre = image.resize((8, 8), Image.Resampling.BICUBIC, box=(5, 0, 35, 30))
    assert np.array_equal(first[0], np.array(centre))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"a\.png .*cannot be read|a\.png is no image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "labels.txt").write_text("one\n"), "has 1 labels; at least two"),
        (lambda f: (f / "labels.txt").write_text("one\none\n"), "the label 'one' twice"),
        (lambda f: (f / "labels.txt").unlink(), "No such file"),
        (lambda f: (f / "pictures" / "a.png").unlink(), "holds no images"),
        (lambda f: ["--measure", "best"], "--measure is one of adte"),
        (lambda f: ["--template", "a photo"], "has no {} for the label"),
        (lambda f: ["--low", "0.9", "--high", "0.1"], "--low 0.9 is above --high 0.1"),
        (lambda f: None, "cannot load"),
    ],
)
def test_what_is_refused(change: Any, words: str, tmp_path: Path, labels: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    more = change(tmp_path)
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    done = run(folder, labels, nobody, tmp_path / "out", *(more if isinstance(more, list) else ()))
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ")
    assert not (tmp_path / "out" / "report.json").exists()
