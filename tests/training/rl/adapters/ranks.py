"""Train a tiny model by every method with rows that depend on nothing but their prompt: by one process, or by several.

    torchrun --nproc-per-node 2 tests/training/rl/adapters/ranks.py FOLDER

writes `FOLDER/2.pt`: by recipe, the weights at the end and what was logged.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig

from waver.training.rl import make_recipe, names
from waver.training.rl.adapters.trl_trainer import RecipeTrainer

SMALL = Path(__file__).parents[4] / "models" / "small"
PROMPTS, GROUP, LONGEST = 3, 4, 8
"""Groups of four over two processes with six rows each: one group has rows in both."""
VALUES: dict[str, dict[str, Any]] = {
    "clip_cov": {"share": 0.2, "low": 0.1},
    "kl_cov": {"share": 0.1},
    "siren": {"coefficient": 0.5},
    "aepo": {"alpha": 0.5},
    "spine": {"band_low": 0.5, "band_high": 0.5},
    "erpo": {"beta": 1.0},
    "attention_entropy": {"drop_sink": True},
    "entrocraft": {"low": 0.1, "high": 0.2, "low_end": 0.1, "high_end": 0.2},
}
"""Parameters under which something happens in so few rows."""
MORE: dict[str, dict[str, Any]] = {
    "gspo": {"base": "gspo"},
    "rloo": {"base": "rloo"},
    "dapo": {"base": "dapo"},
    "steer, linear": {"methods": [{"name": "steer", "form": "linear"}]},
    "steer, exact, by step": {"methods": [{"name": "steer", "estimator": "exact", "scope": "step"}]},
    "entropy_dynamics, by the vocabulary": {
        "methods": [{"name": "entropy_dynamics", "rule": "vocabulary", "threshold": 0.5, "max_share": 0.2}]
    },
    "hapo, by update": {"methods": [{"name": "hapo", "per_update": True}]},
    "attention_entropy, at random": {"methods": [{"name": "attention_entropy", "subset": "random"}]},
}
RECIPES = {name: {"methods": [{"name": name, **VALUES.get(name, {})}]} for name in names()} | MORE


class Trainer(RecipeTrainer):
    """Draws each row by a generator of its own, seeded by the prompt, its place in the group, the step and the draw."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        ids = torch.tensor(prompt_ids)
        first = self.accelerator.process_index * len(ids)
        temperature = self.generation_config.temperature
        said = [(row, (first + i) % GROUP, self.state.global_step, temperature) for i, row in enumerate(prompt_ids)]
        seeds = [zlib.crc32(repr(each).encode()) for each in said]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for _ in range(LONGEST):
            with torch.no_grad():
                shares = (self.model(ids).logits[:, -1] / temperature).softmax(-1)
            drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(shares, generators, strict=True)]
            ids = torch.cat([ids, torch.stack(drawn)], 1)
        rows = []
        for row, seed in zip(ids[:, -LONGEST:].tolist(), seeds, strict=True):
            length = 3 + seed % (LONGEST - 1)  # of those with more than the longest, no end is seen
            rows.append([*row[: length - 1], self.eos_token_ids[0]] if length <= LONGEST else row)
        return rows, None


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """1 for an even first token, else a little by the second."""
    return [1.0 if ids[0] % 2 == 0 else 0.1 * (ids[1] % 3) for ids in completion_ids]


def tiny(folder: Path) -> Path:
    """A model of two layers with sharp distributions, in double precision: roundings must decide nothing."""
    config = LlamaConfig(
        vocab_size=1280,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).double().save_pretrained(folder)
    return folder


def questions(tokenizer: Any) -> Dataset:
    """Prompts of one length for two generations."""
    sums = [f"{a} + {b} =" for a in range(3, 9) for b in range(2, 9)]
    length = len(tokenizer(sums[0])["input_ids"])
    same = [{"prompt": text} for text in sums if len(tokenizer(text)["input_ids"]) == length]
    return Dataset.from_list(same[: 2 * PROMPTS])


def train(model: Path, recipe: dict[str, Any], rows: int, parts: int) -> dict[str, Any]:
    """Two generations with two updates on all rows of each; returns the weights and what was logged.

    Args:
        rows: of a micro-batch of a process. parts: micro-batches of an update.
    """
    args = GRPOConfig(
        str(model.parent / "run"),
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=parts,
        steps_per_generation=parts,
        num_iterations=2,
        num_generations=GROUP,
        max_completion_length=LONGEST,
        max_steps=4,
        optim="sgd",
        lr_scheduler_type="constant",
        learning_rate=0.05,
        max_grad_norm=0.0,
        shuffle_dataset=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(SMALL, padding_side="left")
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64, attn_implementation="eager"),
        reward,
        args,
        questions(tokenizer),
        recipe=make_recipe(**{"max_length": LONGEST, **recipe}),
        correct=1.0,
        processing_class=tokenizer,
    )
    trainer.train()
    weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    log = [
        {name: value for name, value in line.items() if "time" not in name and "runtime" not in name}
        for line in trainer.state.log_history[:-1]
    ]
    return {"weights": weights, "log": log}


def train_all(model: Path, rows: int, parts: int) -> dict[str, dict[str, Any]]:
    """By recipe."""
    return {name: train(model, recipe, rows, parts) for name, recipe in RECIPES.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = train_all(Path(sys.argv[1]) / "tiny", rows=3, parts=2)
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]) / "2.pt")
    torch.distributed.destroy_process_group()
