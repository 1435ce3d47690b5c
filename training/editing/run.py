"""Run `waver edit`: write facts into a model, go on with more of them, or take batches back.

The folder holds `model/` (to serve, with what later edits need in `model/edits/`), `report.json` and `run.json`. Every
version is written beside the one before and put in its place at once. The same command goes on where it was stopped,
and with a longer file of facts writes those that are new.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from waver import job
from waver.training import checkpoints
from waver.training.editing import sites
from waver.training.editing.editor import Editor
from waver.training.editing.facts import Fact, read_facts
from waver.training.editing.measure import measure
from waver.training.editing.options import EDITORS, EditRun
from waver.training.editing.state import FOLDER
from waver.training.texts import mean_loss, read_texts

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
MEASURED = 64
"""General texts by which the loss is measured before and after."""

console = Console()


def edit(
    model: str, facts: Path | None, texts: Path, run: EditRun, out: Path, undo: int = 0, threads: int = 1
) -> dict[str, Any]:
    """Edit, go on, or take the last `undo` batches back; returns the report.

    Args:
        facts: what to write; None to undo only. texts: general text, whose keys are held still.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds edits of another run.
        OSError: a file cannot be read.
    """
    if run.editor not in EDITORS:
        raise ValueError(f"there is no editor {run.editor!r}; there are {', '.join(EDITORS)}")
    if facts is None and not undo:
        raise ValueError("there is nothing to do: give a file of facts, or --undo")
    torch.set_num_threads(threads)
    loaded, tokens = checkpoints.load(model)
    where = sites.chosen_sites(loaded, run.first, run.last)
    new = read_facts(facts, tokens) if facts is not None else []
    general = read_texts(texts, tokens, run.length)
    kept = out / "model" / FOLDER
    if undo and not kept.exists():
        raise ValueError(f"{out} holds no edits to undo")
    job.claim(out, asdict(run) | {"model": model, "texts": checkpoints.sha256(texts)})
    editor = Editor(loaded, tokens, where, run, kept)
    if kept.exists():
        editor.resume()
    else:
        console.print("reading general text")
        editor.begin(sites.moments(loaded, where, [text.ids for text in general], run.samples))
    dtype = checkpoints.stored_dtype(model)

    def save() -> None:
        weights = {site.layer: site.read() for site in where}
        beside = partial(_write_state, editor=editor, weights=weights)
        checkpoints.save(out / "model", loaded, tokens, dtype, beside)
        editor.state.fresh.clear()

    if undo:
        editor.undo(undo)
        save()
    _write(editor, new, run.every, save)
    report = _report(editor, general)
    content = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", partial(Path.write_text, data=content, encoding="utf-8"))
    console.print(f"{report['batches']} batches, {len(editor.state.live)} facts. The model is in {out / 'model'}.")
    return report


def _write(editor: Editor, facts: Sequence[Fact], every: int, save: Any) -> None:
    """Write facts in batches, a version every few of them."""
    batches = list(editor.batches(facts))
    if not batches:
        return
    with Progress(*COLUMNS, console=console) as bar:
        task = bar.add_task("facts", total=sum(map(len, batches)))
        for number, batch in enumerate(batches, 1):
            editor.apply(batch)
            if number % every == 0 or number == len(batches):
                save()
            bar.advance(task, len(batch))


def _write_state(folder: Path, editor: Editor, weights: dict[int, torch.Tensor]) -> None:
    editor.state.write(folder / FOLDER, weights, editor.folder)


def _report(editor: Editor, general: Sequence[Any]) -> dict[str, Any]:
    """Measure the facts that are in the weights, in the order in which they came, and the general text."""
    report: dict[str, Any] = {"batches": editor.state.batches, "layers": [site.layer for site in editor.where]}
    if editor.state.live:
        report |= measure(editor, [fact for fact, _, _ in editor.state.live.values()])
    after = mean_loss(editor.model, general[:MEASURED])
    with editor.unedited():
        before = mean_loss(editor.model, general[:MEASURED])
    return report | {"loss": {"before": before, "after": after}}
