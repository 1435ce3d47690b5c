"""Run `waver train rl`: a causal language model, a recipe and a task, through TRL, into a folder ready to serve.

The folder holds `model/` (to serve), `metrics.jsonl`, TensorBoard's `runs/`, `curves.png`, `run.json` and the last
checkpoints. The same command in the same folder goes on from the last checkpoint as if it had not been stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from waver import job
from waver.engines.tokens import TokenText
from waver.extras import how_to_install_vllm
from waver.training.options import RlRun
from waver.training.rl.adapters.trl_arguments import check_refill
from waver.training.rl.adapters.trl_correct import Correct
from waver.training.rl.adapters.trl_trainer import RecipeTrainer
from waver.training.rl.monitor import Monitor, plot
from waver.training.rl.recipe import Recipe
from waver.training.rl.registry import make_recipe
from waver.training.rl.run_arguments import adapters, check_options, learning_rate, load_model, make_arguments
from waver.training.rl.search_rollouts import SearchRollouts, SearchSettings
from waver.training.tasks.consistency.reward import f1, relaxed
from waver.training.tasks.consistency.sets import read_sets, training_rows
from waver.training.tasks.instructions import follows, instructions
from waver.training.tasks.instructions.reward import ALL
from waver.training.tasks.rewards import (
    Verifiable,
    arithmetic,
    custom,
    from_file,
    passes_testbench,
    passes_tests,
    puzzles,
    same_number,
)
from waver.training.tasks.tools import TOOLS
from waver.training.tasks.verilog import need_simulator
from waver.training.tasks.vote import majority

JUDGES: dict[str, Callable[..., Any]] = {
    "gsm8k": same_number,
    "python": passes_tests,
    "verilog": passes_testbench,
    "majority": majority,
    "instructions": follows,
}
"""Tasks whose questions come from a file, and who judges the answers."""

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
    if run.task == "knights":
        return puzzles(rows, run.held_out, run.seed, run.people)
    if run.task not in (*JUDGES, "paraphrases", "custom"):
        there = ", ".join(("arithmetic", "knights", *JUDGES, "paraphrases", "custom"))
        raise ValueError(f"there is no task {run.task!r}; there are {there}")
    if run.task == "instructions" and run.data is None and not run.reward:
        drawn = instructions(rows + run.held_out, run.seed, (2, 5))
        return Verifiable(drawn[:rows], drawn[rows:], follows, correct=ALL)
    if run.data is None:
        raise ValueError(f"the task {run.task} needs --data, a JSONL file with a `question` in each line")
    if run.task == "paraphrases":
        return _paraphrases(run, Path(run.data))
    if run.task == "custom" and not run.reward:
        raise ValueError("the task custom needs --reward module:function")
    names = run.reward or (run.task,)
    if "verilog" in names:
        need_simulator()
    reward, *also = [JUDGES[name] if name in JUDGES else custom(name) for name in names]
    task = from_file(Path(run.data), rows, run.held_out, run.seed, reward, run.correct)
    return replace(task, also=tuple(also))


def _paraphrases(run: RlRun, file: Path) -> Verifiable:
    """Return wordings of questions, rewarded by agreement, and by the F1 of an answer where one is known.

    Raises:
        ValueError: the file cannot be used.
    """
    sets = read_sets(file)
    taught, held_out = training_rows(sets, run.steps * run.prompts, run.held_out, run.prompts, run.seed)
    named: list[Any] = [custom(name) for name in run.reward]
    if not named:
        named = [relaxed, f1] if any(each.answer is not None for each in sets) else [relaxed]
    if run.reward_weight and len(run.reward_weight) != len(named):
        raise ValueError(f"this task has {len(named)} rewards: give --reward-weight for each, or none")
    return Verifiable(taught, held_out, named[0], run.correct if run.reward else None, tuple(named[1:]))


def train(run: RlRun, out: Path, threads: int = 1) -> Path:
    """Train, or go on; returns the folder of the trained model.

    Raises:
        ValueError: what is asked for cannot be done (`RecipeError` is one), or `out` holds another run.
        SimulatorMissing: the task is Verilog, and Icarus is not there.
    """
    check_options(run)
    run = replace(run, learning_rate=learning_rate(run))
    recipe = make_recipe(**{"max_length": run.length, **run.recipe})
    if run.vllm:
        check_vllm(recipe)
    check_refill(recipe, run.refill, ())
    task = questions(run)
    if run.rollouts == "search" and task.goals is None:
        raise ValueError(f"the task {run.task} has no goals that a search could go by: leave --rollouts out")
    if task.correct is None and (readers := recipe.readers("correct")):
        raise ValueError(
            f"{' and '.join(readers)} must know which answers are right, and a reward of your own does not say it: "
            "give --correct, the least reward of a right answer"
        )
    first = job.is_first_process()
    if first:
        job.claim(out, asdict(run))
    torch.set_num_threads(threads)
    checkpoint = get_last_checkpoint(str(out))
    trainer = make_trainer(run, recipe, task, out, resumed=checkpoint is not None)
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    save(trainer, out)
    if first:
        plot(out / "metrics.jsonl", out / "curves.png")
        console.print(f"The model is in {out / 'model'}, its curves in {out / 'curves.png'}.")
    return out / "model"


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


def parts(run: RlRun, task: Verifiable, out: Path, *, eager: bool = False, resumed: bool = False) -> dict[str, Any]:
    """Return the arguments of any of TRL's trainers of this kind: model, rewards, arguments, questions, adapters.

    Args:
        eager: whether attention weights have to be seen. resumed: a checkpoint is there to go on from.
    """
    if run.vllm:  # TRL hands the weights over in this process, where the engine has to be then
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        _compute_with_what_is_handed_over()
    tokenizer = TokenText.load(run.model, padding_side="left").tokenizer
    train, held_out = (Dataset.from_list([_asked(row, tokenizer) for row in r]) for r in (task.train, task.held_out))
    return {
        "model": load_model(run, eager=eager),
        "reward_funcs": [task.reward, *task.also],
        "args": make_arguments(run, out, resumed=resumed),
        "train_dataset": train,
        "eval_dataset": held_out if run.held_out else None,
        "processing_class": tokenizer,
        "peft_config": adapters(run),
        "tools": [TOOLS[name] if name in TOOLS else custom(name) for name in run.tool] or None,
    }


def make_trainer(run: RlRun, recipe: Recipe, task: Verifiable, out: Path, *, resumed: bool) -> RecipeTrainer:
    """Return the trainer of a run, not yet started. `resumed`: a checkpoint is there to go on from."""
    seeing = any(measure.source == "attention" for measure in recipe.measures)
    trainer = RecipeTrainer(
        **parts(run, task, out, eager=seeing, resumed=resumed),
        recipe=recipe,
        refill=run.refill,
        rollout_func=rollout_func(run, task),
        correct=None if task.correct is None else Correct(task.correct, task.reward.__name__),
        callbacks=[Monitor(out / "metrics.jsonl", run.updates, console)] if job.is_first_process() else [],
    )
    trainer.remove_callback(PrinterCallback)  # our bar and our file take its place
    return trainer


def rollout_func(run: RlRun, task: Verifiable) -> SearchRollouts | None:
    """Return what draws the groups of a run; None where TRL does."""
    if run.rollouts == "plain" or task.goals is None:
        return None
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return SearchRollouts(task.goals, SearchSettings(delimiter=run.delimiter))


def save(trainer: GRPOTrainer, out: Path) -> None:
    """Write the trained model to `model/`, and adapters by themselves to `adapter/`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload"):
        trainer.save_model(str(out / "model"))
    elif job.is_first_process():
        model.save_pretrained(out / "adapter")
        model.merge_and_unload().save_pretrained(out / "model")
        trainer.processing_class.save_pretrained(out / "model")


def _asked(row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return a row with its prompt: a user's message where the model has a chat template, else the question itself."""
    question = row["question"]
    return {**row, "prompt": [{"role": "user", "content": question}] if tokenizer.chat_template else question}
