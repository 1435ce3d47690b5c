"""Run `waver train rl`: a causal language model, a recipe and a task, through TRL, into a folder ready to serve.

The folder holds `model/` (to serve), `metrics.jsonl`, TensorBoard's `runs/`, `curves.png`, `run.json` and the last
checkpoints. The same command in the same folder goes on from the last checkpoint as if it had not been stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from waver.engines.tokens import TokenText
from waver.extras import how_to_install_vllm
from waver.resources import MODELS
from waver.training import job
from waver.training.options import RlRun
from waver.training.rl.adapters.trl_trainer import RecipeTrainer
from waver.training.rl.monitor import Monitor, plot
from waver.training.rl.recipe import Recipe
from waver.training.rl.registry import make_recipe
from waver.training.tasks.rewards import (
    Reward,
    Verifiable,
    arithmetic,
    custom,
    from_file,
    passes_testbench,
    same_number,
)
from waver.training.tasks.verilog import need_simulator

JUDGES: dict[str, Reward] = {"gsm8k": same_number, "verilog": passes_testbench}
"""Tasks whose questions come from a file, and who judges the answers."""

BUNDLED_RATE, PRETRAINED_RATE = 1e-4, 1e-6

console = Console()


def parse_settings(
    base: str | None, methods: Sequence[str], given: Sequence[str], file: Path | None = None
) -> dict[str, Any]:
    """Return the arguments of `make_recipe` from a YAML file, and what the command line puts over it, the base too.

    `given` are `key=value` for the base and `method.key=value` for a method; values are read as JSON or YAML.

    Raises:
        ValueError: a setting is not key=value, or the file is not a mapping.
    """
    recipe: dict[str, Any] = {"base": "grpo"}
    if file is not None:
        read = yaml.safe_load(file.read_text())
        if not isinstance(read, dict):
            raise ValueError(f"{file}: a recipe is a mapping with `base`, `methods` and settings")
        recipe |= read
    if base is not None:
        recipe["base"] = base
    listed = [{"name": m} if isinstance(m, str) else dict(m) for m in (*recipe.get("methods", ()), *methods)]
    for entry in given:
        key, sign, value = entry.partition("=")
        if not key or not sign:
            raise ValueError(f"{entry!r} is not a setting: write key=value, or method.key=value")
        name, dot, parameter = key.rpartition(".")
        target = next((m for m in listed if m["name"] == name), None) if dot else recipe
        if target is None:
            raise ValueError(f"{entry!r} sets a parameter of {name}, which is not in the recipe: add --method {name}")
        target[parameter if dot else key] = _value(value)
    return {**recipe, "methods": listed}


def _value(written: str) -> Any:
    """Read a value as JSON, which knows `1e-3` for a number, or else as YAML."""
    try:
        return json.loads(written)
    except json.JSONDecodeError:
        return yaml.safe_load(written)


def questions(run: RlRun) -> Verifiable:
    """Return the run's task.

    Raises:
        ValueError: there is no such task, or its data cannot be used. SimulatorMissing: for Verilog, there is none.
    """
    rows = run.steps * run.prompts
    if run.task == "arithmetic":
        if run.correct is not None:
            raise ValueError("--correct is for a reward of your own: sums are right where they earn 1")
        return arithmetic(rows, run.held_out, run.seed, run.chain)
    if run.task not in (*JUDGES, "custom"):
        raise ValueError(f"there is no task {run.task!r}; there are arithmetic, {', '.join(JUDGES)}, custom")
    if run.data is None:
        raise ValueError(f"the task {run.task} needs --data, a JSONL file with a `question` in each line")
    if run.task == "custom" and run.reward is None:
        raise ValueError("the task custom needs --reward module:function")
    if run.task == "verilog" and run.reward is None:
        need_simulator()
    reward = JUDGES[run.task] if run.reward is None else custom(run.reward)
    return from_file(Path(run.data), rows, run.held_out, run.seed, reward, run.correct)


def train(run: RlRun, out: Path, threads: int = 1) -> Path:
    """Train, or go on; returns the folder of the trained model.

    Raises:
        ValueError: what is asked for cannot be done (`RecipeError` is one), or `out` holds another run.
        SimulatorMissing: the task is Verilog, and Icarus is not there.
    """
    rows = run.prompts * run.group
    if rows % (run.updates * run.micro_batches):
        raise ValueError(
            f"{rows} rows a step ({run.prompts} prompts of {run.group}) cannot be cut into {run.updates} updates of "
            f"{run.micro_batches} micro-batches"
        )
    run = replace(run, learning_rate=learning_rate(run))
    recipe = make_recipe(**{"max_length": run.length, **run.recipe})
    if run.vllm:
        check_vllm(recipe)
    task = questions(run)
    if task.correct is None and (readers := recipe.readers("correct")):
        raise ValueError(
            f"{' and '.join(readers)} must know which answers are right, and a reward of your own does not say it: "
            "give --correct, the least reward of a right answer"
        )
    job.claim(out, asdict(run))
    torch.set_num_threads(threads)
    checkpoint = get_last_checkpoint(str(out))
    trainer = make_trainer(run, recipe, task, out, resumed=checkpoint is not None)
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(out / "model"))
    plot(out / "metrics.jsonl", out / "curves.png")
    console.print(f"The model is in {out / 'model'}, its curves in {out / 'curves.png'}.")
    return out / "model"


def learning_rate(run: RlRun) -> float:
    """Return the learning rate of a run. Where none is given: 1e-4 for a bundled model, which is small and made from
    scratch, and 1e-6, the default of TRL and verl, for any other."""
    if run.learning_rate is not None:
        return run.learning_rate
    return BUNDLED_RATE if MODELS.resolve() in Path(run.model).resolve().parents else PRETRAINED_RATE


def check_vllm(recipe: Recipe) -> None:
    """Check that vLLM can draw the rows of a recipe.

    Raises:
        ValueError: it is not there, or cannot draw so.
    """
    if find_spec("vllm") is None:
        raise ValueError(f"rows cannot be drawn by vLLM, which is not installed: {how_to_install_vllm()}")
    for method in recipe.methods:
        if method.rollout_sampler is not None:
            raise ValueError(f"{method.name} says how rows are drawn, which vLLM cannot be told: leave --vllm out")


def _compute_with_what_is_handed_over() -> None:
    """Make vLLM compute with the weights that it is handed. On a CPU with AVX-512 it uses packed copies made at its
    start, which new ones would find no place, or change nothing."""
    from vllm.model_executor.layers import utils

    def plainly(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]

    utils.dispatch_cpu_unquantized_gemm = plainly


def make_trainer(run: RlRun, recipe: Recipe, task: Verifiable, out: Path, *, resumed: bool) -> RecipeTrainer:
    """Return the trainer of a run, not yet started. `resumed`: a checkpoint is there to go on from."""
    if run.vllm:  # TRL hands the weights over in this process, where the engine has to be then
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        _compute_with_what_is_handed_over()
    seeing = any(measure.source == "attention" for measure in recipe.measures)
    options = {"attn_implementation": "eager"} if seeing or not torch.cuda.is_available() else {}
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32, **options)
    tokenizer = TokenText.load(run.model, padding_side="left").tokenizer
    size = run.prompts * run.group // (run.updates * run.micro_batches)
    args = GRPOConfig(
        output_dir=str(out),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=run.micro_batches,
        steps_per_generation=run.updates * run.micro_batches,
        num_generations=run.group,
        num_generations_eval=1,
        max_completion_length=run.length,
        temperature=run.temperature,
        learning_rate=learning_rate(run),
        lr_scheduler_type="constant",
        max_steps=run.steps * run.updates,
        seed=run.seed,
        shuffle_dataset=False,
        logging_steps=1,
        eval_strategy="steps" if run.held_out else "no",
        eval_steps=run.every * run.updates,
        eval_on_start=bool(run.held_out) and not resumed,
        save_strategy="steps",
        save_steps=run.every * run.updates,
        save_total_limit=run.keep,
        use_vllm=run.vllm,
        vllm_mode="colocate",
        report_to="tensorboard",
        disable_tqdm=True,
    )
    train, held_out = (Dataset.from_list([_asked(row, tokenizer) for row in r]) for r in (task.train, task.held_out))
    trainer = RecipeTrainer(
        model,
        task.reward,
        args,
        train,
        recipe=recipe,
        correct=task.correct,
        eval_dataset=held_out if run.held_out else None,
        processing_class=tokenizer,
        callbacks=[Monitor(out / "metrics.jsonl", run.updates, console)],
    )
    trainer.remove_callback(PrinterCallback)  # our bar and our file take its place
    return trainer


def _asked(row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return a row with its prompt: a user's message where the model has a chat template, else the question itself."""
    question = row["question"]
    return {**row, "prompt": [{"role": "user", "content": question}] if tokenizer.chat_template else question}
