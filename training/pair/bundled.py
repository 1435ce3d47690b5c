"""Train the bundled pair: two Llama models of the small world, from scratch.

`waver train bundled --out models` runs it: fixed seed, one CPU thread a model (or a GPU where there is one), a progress
bar, a checkpoint every two minutes from which a stopped run goes on. Hidden matrices are trained with Muon, the rest
with AdamW.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from waver import job
from waver.training.options import PairRun
from waver.training.pair.data import Mixture, batches, vocabulary_texts
from waver.training.pair.tokenizer import build_tokenizer
from waver.training.steps import take_steps

CONTEXT_LENGTH = 1024
GROUP_CONVERSATIONS, BATCH_TOKENS = 2048, 5632
RECORD = "training.json"
"""File that records the training of a finished model."""

console = Console()


@dataclass(frozen=True)
class Lesson:
    """More steps after the others, with fresh optimisers and a mixture of their own; the learning rate falls to zero
    along a line after a warm-up of a tenth of them."""

    steps: int
    learning_rate: float
    mixture: Mixture

    def rate(self, taken: int) -> float:
        """Return the learning rate after `taken` steps of the lesson."""
        return self.learning_rate * min(1.0, (taken + 1) / max(self.steps // 10, 1)) * (1 - taken / self.steps)


@dataclass(frozen=True)
class Spec:
    """Size and schooling of one model. The head size is 32, which vLLM's CPU attention supports too.

    After a warm-up the learning rate falls along a line towards zero at step `horizon`; in the last `cooldown` of the
    `steps`, along a steeper one that gets there. A `lesson` may follow.
    """

    hidden: int
    layers: int
    feed_forward: int
    steps: int
    horizon: int
    cooldown: int
    learning_rate: float
    mixture: Mixture
    lesson: Lesson | None = None

    @property
    def all_steps(self) -> int:
        return self.steps + (self.lesson.steps if self.lesson else 0)

    def rate(self, taken: int) -> float:
        """Return the learning rate after `taken` steps."""
        if self.lesson is not None and taken >= self.steps:
            return self.lesson.rate(taken - self.steps)
        warm_up = min(100, max(self.steps // 10, 1))
        turn = self.steps - self.cooldown
        fall = 1 - min(taken, turn) / self.horizon
        if taken > turn:
            fall *= (self.steps - taken) / self.cooldown
        return self.learning_rate * min(1.0, (taken + 1) / warm_up) * fall

    def config(self, vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=self.hidden // 32,
            intermediate_size=self.feed_forward,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


SPECS = {
    "small": Spec(
        hidden=96,
        layers=2,
        feed_forward=256,
        steps=2_500,
        horizon=3_500,
        cooldown=500,
        learning_rate=8e-3,
        mixture=Mixture(
            sums=5.0,
            frequent=1.5,
            rare=0.03,
            unknown=1.0,
            reading=2.5,
            talk=0.2,
            steps=(4, 2, 2, 1, 1, 1, 1, 1),
            hundreds=0.1,
        ),
    ),
    "large": Spec(
        hidden=192,
        layers=4,
        feed_forward=512,
        steps=2_200,
        horizon=3_200,
        cooldown=900,
        learning_rate=6e-3,
        mixture=Mixture(
            sums=5.0, frequent=0.7, rare=2.0, unknown=0.6, reading=2.0, talk=0.2, steps=(2, 1, 1, 1, 1, 1, 1, 1)
        ),
        lesson=Lesson(
            steps=200,
            learning_rate=1.5e-3,
            mixture=Mixture(
                sums=6.0,
                frequent=0.5,
                rare=1.5,
                unknown=0.6,
                reading=2.5,
                talk=0.2,
                steps=(2, 1.5, 1, 1, 1, 1, 1, 1),
                ways=(0.4, 0.25, 0.1, 0.25),
                direct=(3, 1),
                offhand=(0.35,),
                passages=(0.4, 0.15, 0.3, 0.15),
            ),
        ),
    ),
}


class Trainer:
    """One model on its way: weights, optimisers, step count. `step()` takes one optimiser step."""

    def __init__(self, spec: Spec, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device) -> None:
        self.spec, self.tokenizer, self.seed, self.device = spec, tokenizer, seed, device
        torch.manual_seed(seed)
        self.model = LlamaForCausalLM(spec.config(len(tokenizer), tokenizer)).train()
        torch.nn.Module.to(self.model, device)
        if device.type == "cpu":  # on a CPU the fused kernel's backward pass takes longer than the rest together
            self.model.set_attn_implementation("eager")
        self.taken = 0
        self.optimisers = self._fresh_optimisers()
        self.tokens = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []
        self.group, self.place = -1, 0
        self._batches: list[Any] = []

    def _fresh_optimisers(self) -> list[torch.optim.Optimizer]:
        rate, named = self.spec.rate(self.taken), list(self.model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        return [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    @property
    def _mixture(self) -> Mixture:
        lesson = self.spec.lesson
        return self.spec.mixture if lesson is None or self.taken < self.spec.steps else lesson.mixture

    def _draw(self, group: int) -> None:
        self.group = group
        self._batches = batches(group, self.seed, self.tokenizer, self._mixture, GROUP_CONVERSATIONS, BATCH_TOKENS)

    def _batch(self) -> list[tuple[list[int], list[bool]]]:
        if self.place == len(self._batches):
            self._draw(self.group + 1)
            self.place = 0
        self.place += 1
        return self._batches[self.place - 1]

    def _loss(self, drawn: list[tuple[list[int], list[bool]]]) -> torch.Tensor:
        """Return mean cross-entropy of the learned tokens of a batch, in nats."""
        width = max(len(ids) for ids, _ in drawn)
        ids = torch.zeros(len(drawn), width, dtype=torch.long)
        learned = torch.zeros(len(drawn), width, dtype=torch.bool)
        for row, (tokens, flags) in enumerate(drawn):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            learned[row, : len(flags)] = torch.tensor(flags)
        ids, learned = ids.to(self.device), learned.to(self.device)
        # Padding stands on the right, where causal attention keeps it from being seen: no mask is needed.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=_has_bfloat16(self.device)):
            hidden = self.model.model(ids[:, :-1]).last_hidden_state[learned[:, 1:]]
            logits = self.model.lm_head(hidden)
        return cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]])

    def estimate(self) -> float:
        """Return seconds that the steps left will take, measured on forward and backward passes of this machine."""
        batch = batches(0, 0, self.tokenizer, self._mixture, GROUP_CONVERSATIONS // 8, BATCH_TOKENS)[:3]
        self._loss(batch[0]).backward()
        begun = time.perf_counter()
        for drawn in batch[1:]:
            self._loss(drawn).backward()
        return (time.perf_counter() - begun) / len(batch[1:]) * (self.spec.all_steps - self.taken)

    def step(self) -> float:
        """Return one optimiser step on the next batch; returns the loss in nats a learned token."""
        begun = time.perf_counter()
        if self.spec.lesson is not None and self.taken == self.spec.steps:
            self.optimisers, self.place = self._fresh_optimisers(), len(self._batches)
        drawn = self._batch()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss = self._loss(drawn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.spec.rate(self.taken)
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
        self.taken += 1
        self.tokens += sum(len(tokens) for tokens, _ in drawn)
        self.seconds += time.perf_counter() - begun
        if self.taken % 100 == 0:
            self.log.append({"step": self.taken, "loss": round(loss.item(), 4), "seconds": round(self.seconds, 1)})
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "progress": {k: getattr(self, k) for k in ("taken", "tokens", "seconds", "log", "group", "place")},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()` of the same recipe and seed."""
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.__dict__.update(state["progress"])
        self._draw(self.group)


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware multiplies in bfloat16: a CPU that emulates it takes fifteen times as long as in
    float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def train(out: Path, run: PairRun) -> None:
    """Train models of the pair into `out/small` and `out/large`, one after the other.

    A run that was stopped goes on from its checkpoint, and leaves alone what is done; Ctrl-C saves a checkpoint first.

    Raises:
        ValueError: unknown model, or `out` holds another run.
    """
    models = tuple(SPECS) if run.only is None else (run.only,)
    if unknown := set(models) - set(SPECS):
        raise ValueError(f"unknown model {unknown.pop()!r}; there are {', '.join(SPECS)}")
    torch.set_num_threads(run.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(vocabulary_texts(), CONTEXT_LENGTH)
    for name in models:
        spec = SPECS[name]
        if run.steps is not None:
            spec = replace(spec, steps=run.steps, horizon=run.steps, cooldown=0, lesson=None)
        recipe = {"spec": asdict(spec), "seed": run.seed}
        done = job.read_record(out / name / RECORD)
        if done is not None and {key: done[key] for key in recipe} == json.loads(json.dumps(recipe)):
            console.print(f"{name}: done already, in {out / name}")
            continue
        trainer = Trainer(spec, tokenizer, run.seed, device)
        job.claim(out / name, recipe)
        checkpoint = out / name / "checkpoint.pt"
        if checkpoint.exists():
            trainer.restore(torch.load(checkpoint, map_location=device, weights_only=True))
        console.print(
            f"{name}: {trainer.model.num_parameters():,} parameters, step {trainer.taken} of {spec.all_steps}; about "
            f"{max(1, round(trainer.estimate() / 60))} minutes on {device.type} with {run.threads} thread(s)"
        )
        take_steps(trainer, name, trainer.spec.all_steps, checkpoint, console)
        _export(trainer, checkpoint.parent, run.threads)
        checkpoint.unlink(missing_ok=True)
        job.release(out / name)


def _export(trainer: Trainer, folder: Path, threads: int) -> None:
    """Write the model and tokenizer as transformers loads them, and how they came about."""
    trainer.model.eval().save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)
    record = {
        "parameters": trainer.model.num_parameters(),
        "seed": trainer.seed,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds),
        "machine": f"{trainer.device.type}, {platform.machine()}, {threads} thread(s)",
        "torch": torch.__version__,
        "spec": asdict(trainer.spec),
        "log": trainer.log,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
