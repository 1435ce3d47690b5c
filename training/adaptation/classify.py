"""Run `waver classify`: give every image of a folder one of the labels, and follow the stream of images.

The folder holds `predictions.jsonl`, `report.json`, `stream.npz` (the state to go on from) and `run.json`. Where all
images lie in folders that are named like labels, the report has accuracies.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from waver import job
from waver.progress import counted
from waver.training.adaptation.options import MEASURES, ClassifyRun
from waver.training.adaptation.stream import Stream
from waver.training.adaptation.views import crops, find_images, read_image
from waver.training.adaptation.zero_shot import ZeroShot

console = Console()
PREDICTIONS = "predictions.jsonl"


def read_labels(file: Path) -> list[str]:
    """Read labels, one in each line.

    Raises:
        ValueError: there are fewer than two, or one twice. OSError: the file cannot be read.
    """
    try:
        labels = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8") from None
    if len(labels) < 2:
        raise ValueError(f"{file} has {len(labels)} labels; at least two are needed, one in each line")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise ValueError(f"{file} has the label {twice[0]!r} twice")
    return labels


def check(run: ClassifyRun) -> None:
    """Refuse options that make no run.

    Raises:
        ValueError: with a sentence.
    """
    if run.measure not in MEASURES:
        raise ValueError(f"--measure is one of {', '.join(MEASURES)}, not {run.measure!r}")
    if run.low > run.high:
        raise ValueError(f"--low {run.low} is above --high {run.high}")
    if missing := [each for each in run.template if "{}" not in each]:
        raise ValueError(f"--template {missing[0]!r} has no {{}} for the label")


def classify(folder: Path, labels_file: Path, run: ClassifyRun, out: Path) -> dict[str, Any]:
    """Classify, or go on; returns the report.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. OSError: a file cannot be read.
    """
    check(run)
    labels, images = read_labels(labels_file), find_images(folder)
    random.Random(f"classify:{run.seed}").shuffle(images)  # folders are often sorted by label, which no stream is
    names = [image.relative_to(folder).as_posix() for image in images]
    listed = hashlib.sha256("\n".join([*labels, "", *names]).encode()).hexdigest()
    job.claim(out, asdict(run) | {"folder": str(folder.resolve()), "files": listed})
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: see {out / PREDICTIONS}")
        return done
    model = ZeroShot(run.model, labels, run.template)
    stream, lines = _state(out, len(labels), run)

    def logits(place: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        seed = f"{run.seed}:{names[place]}"
        views = crops(read_image(images[place]), model.size, run.views, run.smallest, run.mirror, seed)
        return model(list(views), run.batch)

    with counted(console) as bar:
        if run.two_passes and not stream.frozen:
            task = bar.add_task("first pass", total=len(images), completed=stream.seen)
            for place in range(stream.seen, len(images)):
                stream.learn(logits(place))
                bar.advance(task)
                if stream.seen % run.every == 0:
                    _keep(out, stream)
            stream.freeze()
            _keep(out, stream)
        task = bar.add_task("images", total=len(images), completed=stream.seen)
        for place in range(stream.seen, len(images)):
            found = logits(place)
            lines.append(_line(stream, found, names[place], labels))
            job.append_line(out / PREDICTIONS, lines[-1])
            stream.learn(found)
            bar.advance(task)
            if stream.seen % run.every == 0:
                _keep(out, stream)
    _keep(out, stream)
    report = _report(stream, lines, labels, names)
    text = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", partial(Path.write_text, data=text, encoding="utf-8"))
    for name, share in report["accuracy"].items():
        console.print(f"{name}: {share:.4f} right")
    console.print(f"The labels of {len(images)} images are in {out / PREDICTIONS}.")
    return report


def _line(
    stream: Stream, logits: np.ndarray[Any, np.dtype[np.float64]], name: str, labels: Sequence[str]
) -> dict[str, Any]:
    """Describe the prediction for one image."""
    own = stream.classify(logits)
    beside = {each: labels[stream.classify(logits, each).label] for each in MEASURES if each != stream.how.measure}
    return {
        "image": name,
        "label": labels[own.label],
        "probability": float(own.mean[own.label]),
        "kept": list(own.kept),
        "others": beside,
    }


def _state(out: Path, labels: int, run: ClassifyRun) -> tuple[Stream, list[dict[str, Any]]]:
    """Return the stream and the predictions of a stopped run as of its last checkpoint, or new ones."""
    stream = Stream(labels, run)
    if (out / "stream.npz").exists():
        with np.load(out / "stream.npz") as saved:
            stream.restore(saved)
    second = stream.frozen or not run.two_passes
    lines = job.read_lines(out / PREDICTIONS)[: stream.seen if second else 0]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    job.replace_file(out / PREDICTIONS, partial(Path.write_text, data=text, encoding="utf-8"))
    return stream, lines


def _keep(out: Path, stream: Stream) -> None:
    """Write the state to go on from; the predictions that it counts are written already."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **stream.state())

    job.replace_file(out / "stream.npz", write)


def _report(
    stream: Stream, lines: Sequence[dict[str, Any]], labels: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Sum the predictions up; accuracies where every image lies in a folder that is named like a label."""
    truths = [Path(name).parent.name for name in names]
    known = set(truths) <= set(labels)
    accuracy = {}
    if known:
        for measure in MEASURES:
            said = [line["label"] if measure == stream.how.measure else line["others"][measure] for line in lines]
            accuracy[measure] = sum(map(str.__eq__, said, truths)) / len(truths)
    counts = Counter(line["label"] for line in lines)
    prior = None if stream.prior is None else dict(zip(labels, stream.prior.tolist(), strict=True))
    return {
        "images": len(lines),
        "predicted": {label: counts[label] for label in labels},
        "accuracy": accuracy,
        "prior": prior,
        "orders": dict(zip(labels, stream.q.tolist(), strict=True)),
        "learned_from": stream.bank.entered,
    }
