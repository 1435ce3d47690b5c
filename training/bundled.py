"""The factory of the bundled pair: two Llama models of the small world, trained from scratch.

`waver train bundled --out models` runs it: fixed seed, one CPU thread a model (or a GPU where there is one), a progress
bar, a checkpoint every two minutes from which a stopped run goes on. Hidden matrices are trained with Muon, the rest
with AdamW; the learning rate falls linearly to zero after a short warm-up.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from training.data import Mixture, batches, vocabulary_texts
from training.tokenizer import build_tokenizer

CONTEXT_LENGTH = 1024
GROUP_CONVERSATIONS, BATCH_TOKENS = 2048, 5632
CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Spec:
    """Size and schooling of one model. The head size is 32, which vLLM's CPU attention supports too."""

    hidden: int
    layers: int
    feed_forward: int
    steps: int
    learning_rate: float
    mixture: Mixture

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
        steps=4_000,
        learning_rate=8e-3,
        mixture=Mixture(
            sums=5.0, frequent=1.5, rare=0.03, unknown=1.0, reading=2.5, talk=0.2, steps=(4, 2, 2, 1, 1, 1, 1, 1)
        ),
    ),
    "large": Spec(
        hidden=192,
        layers=4,
        feed_forward=512,
        steps=3_200,
        learning_rate=6e-3,
        mixture=Mixture(
            sums=5.0, frequent=0.7, rare=2.0, unknown=0.6, reading=2.0, talk=0.2, steps=(2, 1, 1, 1, 1, 1, 1, 1)
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
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=spec.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.taken = 0
        self.tokens = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []
        self.group, self.place = -1, 0
        self._batches: list[Any] = []

    def _draw(self, group: int) -> None:
        self.group = group
        self._batches = batches(group, self.seed, self.tokenizer, self.spec.mixture, GROUP_CONVERSATIONS, BATCH_TOKENS)

    def _batch(self) -> list[tuple[list[int], list[bool]]]:
        if self.place == len(self._batches):
            self._draw(self.group + 1)
            self.place = 0
        self.place += 1
        return self._batches[self.place - 1]

    def step(self) -> float:
        """One optimiser step on the next batch; returns the loss in nats a learned token."""
        begun = time.perf_counter()
        drawn = self._batch()
        width = max(len(ids) for ids, _ in drawn)
        ids = torch.zeros(len(drawn), width, dtype=torch.long)
        learned = torch.zeros(len(drawn), width, dtype=torch.bool)
        for row, (tokens, flags) in enumerate(drawn):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            learned[row, : len(flags)] = torch.tensor(flags)
        ids, learned = ids.to(self.device), learned.to(self.device)
        # Padding stands on the right, where causal attention keeps it from being seen: no mask is needed.
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            hidden = self.model.model(ids[:, :-1]).last_hidden_state[learned[:, 1:]]
            logits = self.model.lm_head(hidden)
        loss = cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]])
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.spec.learning_rate * min(1.0, (self.taken + 1) / 100) * (1 - self.taken / self.spec.steps)
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
            "spec": repr(self.spec),
            "seed": self.seed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            ValueError: the checkpoint is of another recipe or seed.
        """
        if (state["spec"], state["seed"]) != (repr(self.spec), self.seed):
            raise ValueError("the checkpoint was made by another recipe or seed; delete it or choose another --out")
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.__dict__.update(state["progress"])
        self._draw(self.group)


def train(name: str, out: Path, seed: int = 1, threads: int = 1, steps: int | None = None) -> Path:
    """Train one model of the pair into `out/name`; goes on from `out/name/checkpoint.pt` if there is one.

    Args:
        name: `small` or `large`. threads: CPU threads. steps: fewer steps than the recipe's, for a trial.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = SPECS[name]
    if steps is not None:
        spec = Spec(**{**spec.__dict__, "steps": steps})
    tokenizer = build_tokenizer(vocabulary_texts(), CONTEXT_LENGTH)
    trainer = Trainer(spec, tokenizer, seed, device)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, map_location=device, weights_only=True))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as bar:
        task = bar.add_task(name, total=spec.steps, completed=trainer.taken, loss=float("nan"))
        saved = time.monotonic()
        while trainer.taken < spec.steps:
            loss = trainer.step()
            bar.update(task, completed=trainer.taken, loss=loss)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(trainer.state(), checkpoint)
                saved = time.monotonic()
    trainer.model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "parameters": trainer.model.num_parameters(),
        "seed": seed,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds),
        "machine": f"{platform.processor() or platform.machine()}, {threads} thread(s), {device.type}",
        "torch": torch.__version__,
        "spec": asdict(spec),
        "log": trainer.log,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    with contextlib.suppress(FileNotFoundError):
        checkpoint.unlink()
    return folder


def _save(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)
