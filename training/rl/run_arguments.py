"""Make TRL's arguments, and the model, from the options of `waver train rl`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, SchedulerType
from trl import GRPOConfig

from waver.extras import how_to_install
from waver.resources import MODELS
from waver.training.options import RlRun

BUNDLED_RATE, PRETRAINED_RATE = 1e-4, 1e-6
REPORTS = ("tensorboard", "wandb", "none")
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_options(run: RlRun) -> None:
    """Check what the command line cannot.

    Raises:
        ValueError: an option has no such value, or names a package that is missing.
    """
    rows, processes = run.prompts * run.group, _processes()
    if rows % (run.updates * run.micro_batches * processes):
        several = f" in each of {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"{rows} rows a step ({run.prompts} prompts of {run.group}) cannot be cut into {run.updates} updates of "
            f"{run.micro_batches} micro-batches{several}"
        )
    choices = {
        "report-to": (run.report_to, REPORTS),
        "weights": (run.weights, tuple(WEIGHTS)),
        "peft": (run.peft, (None, "lora")),
        "rollouts": (run.rollouts, ("plain", "search")),
        "schedule": (run.schedule, tuple(each.value for each in SchedulerType)),
    }
    for name, (given, known) in choices.items():
        if given not in known:
            raise ValueError(f"--{name} is {', '.join(str(each) for each in known if each)}, not {given!r}")
    own = run.task == "paraphrases" and not run.reward  # it has two rewards of its own
    if run.reward_weight and not own and len(run.reward_weight) != len(run.reward):
        raise ValueError(f"there are {len(run.reward)} --reward and {len(run.reward_weight)} --reward-weight")
    if run.peft and find_spec("peft") is None:
        raise ValueError(f"--peft needs the package peft: {how_to_install('train')}")
    if run.report_to == "wandb" and find_spec("wandb") is None:
        raise ValueError("--report-to wandb needs the package wandb, which is not installed: pip install wandb")


def _processes() -> int:
    """Return how many processes `torchrun` or `accelerate launch` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def learning_rate(run: RlRun) -> float:
    """Return the learning rate of a run. Where none is given: 1e-4 for a bundled model, which is small and made from
    scratch, and 1e-6, the default of TRL and verl, for any other."""
    if run.learning_rate is not None:
        return run.learning_rate
    return BUNDLED_RATE if MODELS.resolve() in Path(run.model).resolve().parents else PRETRAINED_RATE


def load_model(run: RlRun, *, eager: bool) -> Any:
    """Return the model of a run.

    Args:
        eager: whether attention weights have to be seen. On a CPU attention is computed so in any case.
    """
    options = {"attn_implementation": "eager"} if eager or not torch.cuda.is_available() else {}
    return AutoModelForCausalLM.from_pretrained(run.model, dtype=WEIGHTS[run.weights], **options)


def adapters(run: RlRun) -> Any:
    """Return PEFT's configuration of a run with LoRA, else None."""
    if run.peft is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=run.lora_rank,
        lora_alpha=run.lora_alpha,
        lora_dropout=run.lora_dropout,
        target_modules=list(run.lora_target) or "all-linear",
        task_type="CAUSAL_LM",
    )


def make_arguments(run: RlRun, out: Path, *, resumed: bool) -> GRPOConfig:
    """Return TRL's arguments. `resumed`: a checkpoint is there to go on from."""
    steps = run.steps * run.updates
    return GRPOConfig(
        output_dir=str(out),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and run.weights == "float32",
        gradient_checkpointing=run.gradient_checkpointing,
        per_device_train_batch_size=run.prompts * run.group // (run.updates * run.micro_batches * _processes()),
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=run.micro_batches,
        steps_per_generation=run.updates * run.micro_batches,
        num_generations=run.group,
        num_generations_eval=1,
        max_completion_length=run.length,
        temperature=run.temperature,
        learning_rate=learning_rate(run),
        lr_scheduler_type=run.schedule,
        warmup_steps=round(run.warmup * steps),
        reward_weights=list(run.reward_weight) or None,
        max_steps=steps,
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
        report_to=run.report_to,
        disable_tqdm=True,
    )
