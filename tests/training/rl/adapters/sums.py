"""The bundled small model on sums it does not always get right: what the tests of the adapters train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from waver.training.pair.world import draw, score_text

SMALL = Path(__file__).parents[4] / "models" / "small"


OWN = ("recipe", "correct", "refill", "rollout_func", "peft_config", "tools")
"""Arguments of a trainer itself."""


def questions(prompts: int = 8, steps: int = 3) -> Dataset:
    """So many sums, as TRL takes them."""
    items = draw("arithmetic", 5, prompts, steps=steps)
    rows = [{"prompt": [{"role": "user", "content": i.prompt}], "sum": i.prompt, "answer": i.answer} for i in items]
    return Dataset.from_list(rows)


def reward(completions: list[Any], sum: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for a right answer, 0 for a wrong one."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(score_text("arithmetic", *row)) for row in zip(sum, answer, texts, strict=True)]


def arguments(folder: Path, **given: Any) -> GRPOConfig:
    """Two updates, each over two micro-batches of two groups of four."""
    plain: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 64,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "temperature": 1.3,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return GRPOConfig(**plain | given)


def made(kind: type, folder: Path, *, prompts: int = 8, model: dict[str, Any] | None = None, **given: Any) -> Any:
    """A trainer of that class. Its own arguments go to it, `model` to the loading, most else to its arguments."""
    options = {name: given.pop(name) for name in OWN if name in given}
    tokenizer = AutoTokenizer.from_pretrained(SMALL, padding_side="left")
    tokenizer.chat_template = given.pop("template", tokenizer.chat_template)
    return kind(
        AutoModelForCausalLM.from_pretrained(SMALL, **model or {}),
        given.pop("reward_funcs", reward),
        arguments(folder, **given),
        questions(prompts),
        processing_class=tokenizer,
        **options,
    )
