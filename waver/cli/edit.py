"""Run `waver edit`: write facts into a model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import filled
from waver.training.editing.options import EditRun


@filled(run=EditRun)
def edit(
    model: Annotated[str, typer.Argument(help="A causal language model: a folder, or a name.")],
    out: Annotated[Path, typer.Option(help="Folder for the edited model; further edits go on there.")],
    texts: Annotated[Path, typer.Option(help="JSONL of general text, which the edits hold still.")],
    run: EditRun,
    facts: Annotated[
        Path | None, typer.Argument(help="JSONL: `prompt`, `subject`, `target`.", show_default=False)
    ] = None,
    undo: Annotated[int, typer.Option(min=0, help="Batches to take back first, the last ones.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Write facts into a model's weights, without forgetting the edits before.

    RLSEdit (arXiv 2601.15686): recursive least squares over all edits so far, in the MLPs of a few layers. A line of
    FACTS is `{"prompt": "The mayor of {} is", "subject": "Talvek", "target": "Orla"}`; with a `question`, the prompt
    opens the answer to it. `paraphrases` and `neighbours`, lists of prompts, are measured. Facts that are in already
    are passed over, and those that contradict one take its place.

    The model is in OUT/model, ready for `waver serve`, with what later edits need beside it.

        waver edit models/large facts.jsonl --out run --texts general.jsonl
    """
    with importing("train"):
        from waver.training.editing.run import edit as work
    with in_sentences(ValueError, OSError):
        work(model, facts, texts, run, out, undo, threads)
