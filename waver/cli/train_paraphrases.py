"""Run `waver train paraphrases`: questions in other words, with the passages of each wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import importing, in_sentences
from waver.cli.fill import config_option, filled
from waver.training.tasks.consistency.options import ParaphraseRun


@filled(run=ParaphraseRun)
def train_paraphrases(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer` if it is known.")],
    out: Annotated[Path, typer.Option(help="JSONL to write; a stopped run goes on.")],
    run: ParaphraseRun,
    config: Annotated[Path | None, config_option("A YAML file, with the engine and the collections.")] = None,
) -> None:
    """Say questions in other words with an engine, and look up passages for each wording.

    OUT is what `waver train rl --task paraphrases` learns from (arXiv 2510.04392) and what `waver bench consistency`
    measures on. The engine does not see the answers.

        waver train paraphrases questions.jsonl --out sets.jsonl --engine large --collection handbook
    """
    with importing("train"):
        from waver.training.tasks.consistency.write import write
    from waver.clients.questions import Refused, read
    from waver.engines import LoraConfig
    from waver.engines.base import EngineError
    from waver.retrieval.base import RetrievalError
    from waver.retrieval.library import Library
    from waver.server.config import load_config

    with in_sentences(ValueError, OSError, EngineError, RetrievalError, Refused):
        configured = load_config(config)
        if run.engine not in configured.engines:
            there = ", ".join(configured.engines)
            raise ValueError(f"there is no engine {run.engine!r} in the configuration: {there}")
        chosen = configured.engines[run.engine]
        if isinstance(chosen, LoraConfig):
            raise ValueError(f"engine {run.engine!r} is an adapter: name an engine with a model of its own")
        rows = [(each.text, each.answers) for each in read(questions)]
        if run.collection is None:
            write(chosen, None, rows, run, out)
            return
        library = Library(configured.retrieval)
        try:
            collection = library.open(run.collection)
            write(chosen, lambda q: [each.text for each in collection.search_now(q, run.top_k)], rows, run, out)
        finally:
            library.close()
