"""Run `waver train tool-light`: teach a model to call tools no more than it must."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import config_option, filled
from waver.training.tool_light.options import ToolLightRun


@filled(run=ToolLightRun)
def train_tool_light(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    run: ToolLightRun,
    traces: Annotated[
        Path | None,
        typer.Option(help="JSONL: `question` and `trace`, ways to answers with tags, to fine-tune on first."),
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Questions to judge by; the rounds end where fewer are right.")
    ] = None,
    config: Annotated[Path | None, config_option("A YAML file, for the collection's store.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train a model to reason with a calculator and a search, and to call them no more than it must.

    After fine-tuning on traces, chains are drawn plainly and by branching where steps begin most uncertainly. DPO
    prefers right answers with few calls to wrong ones with more, and is repeated on what the model has become
    (Tool-Light, arXiv 2509.23285). A trace is text with `<python>12 * 3</python>`, `<search>words</search>`,
    `<result>…</result>` and at its end `<answer>…</answer>`.

    The trained model is in OUT/model, ready for `waver serve`. Needs the extra `train`.

        waver train tool-light questions.jsonl --traces traces.jsonl --out run --collection handbook
    """
    from waver.engines.base import EngineError

    with importing("train"):
        from waver.training.tool_light.run import train
    from waver.retrieval.base import RetrievalError

    with in_sentences(ValueError, OSError, EngineError, RetrievalError):
        if run.collection is None:
            train(questions, traces, held_out, None, run, out, threads)
            return
        from waver.retrieval.library import Library
        from waver.server.config import load_config

        library = Library(load_config(config).retrieval)
        try:
            collection = library.open(run.collection)

            def search(words: str) -> str:
                found = collection.search_now(words, run.passages) if words else []
                return "\n\n".join(each.text for each in found) or "nothing found"

            train(questions, traces, held_out, search, run, out, threads)
        finally:
            library.close()
