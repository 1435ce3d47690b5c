"""Run `waver train distil`: a student, an expert and a task, through TRL, into a folder ready to serve.

The folder is that of `waver train rl`. The same command in the same folder goes on from the last checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from waver import job
from waver.engines import ModelConfig, load_engine
from waver.training.distil.experts import Samples, Source, TopTokens
from waver.training.distil.options import Distil, check
from waver.training.distil.trainer import DistilTrainer
from waver.training.options import RlRun
from waver.training.rl.monitor import Monitor, plot
from waver.training.rl.run import parts, questions, save
from waver.training.rl.run_arguments import check_options, learning_rate
from waver.training.tasks.rewards import custom

console = Console()


def train(run: RlRun, distil: Distil, config: ModelConfig | None, out: Path, threads: int = 1) -> Path:
    """Distil, or go on; returns the folder of the trained model.

    Args:
        config: of the engine that is the expert; None where it is the model itself.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. EngineError: the expert died.
    """
    check(distil)
    check_options(run)
    if run.vllm:
        raise ValueError("rows drawn by vLLM are not corrected for here: leave --vllm out")
    run = replace(run, learning_rate=learning_rate(run))
    task = questions(run)
    told: Any = None if distil.feedback is None else custom(distil.feedback)
    record = asdict(run) | {"distil": asdict(distil), "expert_model": None if config is None else config.model}
    job.claim(out, record)
    torch.set_num_threads(threads)
    checkpoint = get_last_checkpoint(str(out))
    arguments = parts(run, task, out, resumed=checkpoint is not None)
    source = None if config is None else _source(distil, config, arguments["processing_class"].get_vocab(), run.seed)
    try:
        monitor = Monitor(out / "metrics.jsonl", run.updates, console)
        trainer = DistilTrainer(**arguments, distil=distil, source=source, told=told, callbacks=[monitor])
        trainer.remove_callback(PrinterCallback)  # our bar and our file take its place
        if checkpoint is not None:
            console.print(f"going on from {checkpoint}")
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        if source is not None:
            source.close()
    save(trainer, out)
    plot(out / "metrics.jsonl", out / "curves.png")
    console.print(f"The model is in {out / 'model'}, its curves in {out / 'curves.png'}.")
    return out / "model"


def _source(distil: Distil, config: ModelConfig, vocabulary: dict[str, int], seed: int) -> Source:
    """Load the engine of an expert.

    Raises:
        ValueError: it cannot be loaded, or knows other tokens than the student.
    """
    engine = load_engine(distil.engine, config)
    if distil.expert == "samples":
        return Samples(engine, vocabulary, distil.states, seed)
    return TopTokens(engine, vocabulary, distil.top_k)
