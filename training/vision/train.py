"""Train the bundled model that reads pictures, from scratch.

`waver train vision --out models/vision` runs it: fixed seed, one CPU thread, a progress bar, a checkpoint every two
minutes from which a stopped run goes on. First the vision transformer alone learns to say what each patch shows, by a
head that is thrown away; then the whole model learns to answer, the loss being on the answers only. Hidden matrices are
trained with Muon, the rest with AdamW.
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from waver import job
from waver.training.options import VisionRun
from waver.training.steps import take_steps
from waver.training.vision.model import CONTEXT_LENGTH, IMAGE, PATCH, build, processor, tokenizer
from waver.training.vision.pictures import COLOURS, KINDS, SIDE, Picture, conversation, draw

BATCHES = {"see": 64, "answer": 24}
"""Pictures of a step, in each of the two lessons."""
LEARNING_RATE = 4e-3
HELD_OUT = 10_000_019
"""The seed of pictures that training never draws: its own are below."""
RECORD = "training.json"

console = Console()


class Trainer:
    """The model on its way. `step()` takes one optimiser step on the next pictures."""

    def __init__(self, run: VisionRun) -> None:
        self.run = run
        torch.manual_seed(run.seed)
        self.tokens = tokenizer()
        self.processor = processor(self.tokens)
        self.model = build(self.tokens).train()
        self.model.set_attn_implementation("eager")  # the fused kernel's backward pass is slower on a CPU
        self.head = torch.nn.Linear(self.model.config.vision_config.hidden_size, len(KINDS) + len(COLOURS) + 2)
        self.taken = 0
        self.optimisers = self._fresh_optimisers()
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []

    @property
    def lesson(self) -> str:
        return "see" if self.taken < self.run.see else "answer"

    def _fresh_optimisers(self) -> list[torch.optim.Optimizer]:
        learners = self.model.model.vision_tower if self.lesson == "see" else self.model
        named = list(learners.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        return [
            torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([*others, *self.head.parameters()], lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0),
        ]

    def rate(self) -> float:
        """Return the learning rate: in each lesson up over 30 steps, level for half of it, then down along a line."""
        taken, steps = self.taken, self.run.see
        if self.lesson == "answer":
            taken, steps = taken - steps, self.run.answer
        return LEARNING_RATE * min(1.0, (taken + 1) / 30) * min(1.0, 2 * (1 - taken / steps))

    def pictures(self) -> list[Picture]:
        """Draw the next pictures; those of the second lesson are others than those of the first."""
        size = BATCHES[self.lesson]
        return [draw(self.run.seed, self.taken * max(BATCHES.values()) + i) for i in range(size)]

    def encode(self, picture: Picture, lot: random.Random) -> tuple[list[int], list[bool]]:
        """Encode a conversation about a picture, with marks at the tokens that are learned."""
        ids: list[int] = []
        learned: list[bool] = []
        shown = [IMAGE * (SIDE // PATCH) ** 2 + "\n", ""]
        for i, (question, answer) in enumerate(conversation(picture, lot)):
            asked = f"<|im_start|>user\n{shown[i > 0]}{question}<|im_end|>\n<|im_start|>assistant\n"
            for text, counts in ((asked, False), (f"{answer}<|im_end|>", True), ("\n", False)):
                new = self.tokens.encode(text, add_special_tokens=False)
                ids += new
                learned += [counts] * len(new)
        return ids, learned

    def see_loss(self) -> torch.Tensor:
        """Compute the mean cross-entropy of what each patch of the next pictures shows, its kind and its colour."""
        pictures = self.pictures()
        seen = self.model.model.vision_tower(pixel_values=pixel_values(pictures)).last_hidden_state[:, 1:]
        logits = self.head(seen).flatten(0, 1)
        kinds, colours = (
            torch.from_numpy(np.concatenate(each)) for each in zip(*(p.patches(PATCH) for p in pictures), strict=True)
        )
        split = len(KINDS) + 1
        return cross_entropy(logits[:, :split], kinds) + cross_entropy(logits[:, split:], colours)

    def answer_loss(self) -> torch.Tensor:
        """Compute the mean cross-entropy of the answers to questions about the next pictures, in nats a token."""
        pictures = self.pictures()
        lot = random.Random(f"{self.run.seed}:{self.taken}:words")
        rows = [self.encode(picture, lot) for picture in pictures]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.tokens.pad_token_id)
        learned = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (tokens, flags) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            learned[i, : len(flags)] = torch.tensor(flags)
        # Padding stands on the right, where causal attention keeps it from being seen: no mask is needed.
        hidden = self.model.model(input_ids=ids, pixel_values=pixel_values(pictures)).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1][learned[:, 1:]])
        return cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]])

    def step(self) -> float:
        """Take one optimiser step; return the loss, in nats a patch or a learned token."""
        begun = time.perf_counter()
        if self.taken == self.run.see:
            self.optimisers = self._fresh_optimisers()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss = self.see_loss() if self.lesson == "see" else self.answer_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.rate()
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
        self.taken += 1
        self.seconds += time.perf_counter() - begun
        if self.taken % 100 == 0:
            self.log.append({"step": self.taken, "loss": round(loss.item(), 4), "seconds": round(self.seconds, 1)})
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "progress": {k: getattr(self, k) for k in ("taken", "seconds", "log")},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()` of the same run."""
        self.__dict__.update(state["progress"])
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        before, self.taken = self.taken, max(self.taken - 1, 0)  # the lesson whose optimisers were saved
        self.optimisers, self.taken = self._fresh_optimisers(), before
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def pixel_values(pictures: Sequence[Picture]) -> torch.Tensor:
    """Return pictures as the processor does, `[pictures, 3, 32, 32]` from -1 to 1."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).float() / 127.5 - 1.0
    return pixels.permute(0, 3, 1, 2)


def train(out: Path, run: VisionRun) -> None:
    """Train the model into `out`. A run that was stopped goes on from its checkpoint; Ctrl-C saves one first.

    Raises:
        ValueError: `out` holds another run.
    """
    if run.seed >= HELD_OUT:
        raise ValueError(f"the seed should be below {HELD_OUT}, so that pictures to test with stay unseen")
    recipe = {"seed": run.seed, "see": run.see, "answer": run.answer, "batches": BATCHES, "rate": LEARNING_RATE}
    done = job.read_record(out / RECORD)
    if done is not None and {key: done[key] for key in recipe} == recipe:
        console.print(f"done already, in {out}")
        return
    torch.set_num_threads(run.threads)
    trainer = Trainer(run)
    job.claim(out, recipe)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
    console.print(f"{trainer.model.num_parameters():,} parameters, step {trainer.taken} of {run.see + run.answer}")
    take_steps(trainer, "vision", run.see + run.answer, checkpoint, console)
    _export(trainer, out, recipe)
    checkpoint.unlink(missing_ok=True)
    job.release(out)


def _export(trainer: Trainer, folder: Path, recipe: dict[str, Any]) -> None:
    """Write the model and processor as transformers loads them, and how they came about."""
    trainer.model.generation_config.eos_token_id = trainer.tokens.eos_token_id
    trainer.model.generation_config.pad_token_id = trainer.tokens.pad_token_id
    trainer.model.eval().save_pretrained(folder)
    trainer.processor.save_pretrained(folder)
    record = {
        "parameters": trainer.model.num_parameters(),
        **recipe,
        "seconds": round(trainer.seconds),
        "machine": f"cpu, {platform.machine()}, {trainer.run.threads} thread(s)",
        "torch": torch.__version__,
        "context_length": CONTEXT_LENGTH,
        "log": trainer.log,
    }
    text = json.dumps(record, indent=1) + "\n"
    job.replace_file(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
