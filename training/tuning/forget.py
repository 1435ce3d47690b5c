"""Run `waver forget`: make a model forget texts, and measure what is left of them and of everything else.

The folder holds `model/` (to serve), `demoted.jsonl` (which tokens of each text were demoted), `metrics.jsonl`,
`report.json` and `run.json`. The same command in the same folder goes on from the last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, Trainer

from waver import job
from waver.engines.tokens import TokenText
from waver.stats import auroc
from waver.training import checkpoints
from waver.training.texts import Text, mean_loss, padded, read_texts
from waver.training.tuning import shred, trainer, unlearning
from waver.training.tuning.options import ForgetRun
from waver.training.tuning.shred import SATURATED, Demotion, Lesson, geometric_mean, token_probabilities

METHODS = ("shred", "npo", "ascent")

console = Console()


class Forgetting(Trainer):
    """Trains on batches of lessons, by the loss of the run's method."""

    method = "shred"
    frozen: PreTrainedModel | None = None
    """The model of before, which NPO compares with."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        logits = model(**asked, use_cache=False).logits
        if self.method == "shred":
            return shred.loss(logits, inputs)
        logprob = unlearning.sequence_logprob(logits, inputs["labels"])
        if self.method == "ascent":
            return unlearning.ascent_loss(logprob, inputs["labels"])
        assert self.frozen is not None
        with torch.no_grad():
            before = unlearning.sequence_logprob(self.frozen(**asked, use_cache=False).logits, inputs["labels"])
        return unlearning.npo_loss(logprob, before)


def forget(
    model: str,
    texts: Path,
    run: ForgetRun,
    out: Path,
    held_out: Path | None = None,
    unseen: Path | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Forget, or go on; returns the report.

    Args:
        texts: to be forgotten. held_out: texts of what the model must still know; they are only measured.
        unseen: texts like those to be forgotten that the model never saw, for the membership attack.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. OSError: a file cannot be read.
    """
    if run.method not in METHODS:
        raise ValueError(f"there is no method {run.method!r}; there are {', '.join(METHODS)}")
    torch.set_num_threads(threads)
    loaded, tokens = checkpoints.load(model)
    given = {"texts": texts, "held_out": held_out, "unseen": unseen}
    files = {name: file for name, file in given.items() if file is not None}
    read = {name: read_texts(file, tokens, run.length, chunks=True) for name, file in files.items()}
    job.claim(out, asdict(run) | {"model": model} | {name: checkpoints.sha256(file) for name, file in files.items()})
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the model is in {out / 'model'}")
        return done
    reference = checkpoints.load(run.reference)[0] if run.reference is not None else None
    made = shred.lessons(loaded, read["texts"], Demotion(run.share, run.skip, run.top, run.nucleus), reference)
    if not any(bool(lesson.demoted.any()) for lesson in made):
        raise ValueError("no token is to be demoted: raise --share, or lower --skip for documents as short as these")
    _write_demoted(out / "demoted.jsonl", made, tokens)
    report: dict[str, Any] = {"texts": len(made), "before": _measured(loaded, made, read)}
    _warn(made, run)
    _train(loaded, made, run, out, checkpoints.load(model)[0] if run.method == "npo" else None)
    report["after"] = _measured(loaded, made, read)
    checkpoints.save(out / "model", loaded, tokens, checkpoints.stored_dtype(model))
    if run.relearn:
        report["relearned"] = _attack(loaded, made, run)
    content = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", partial(Path.write_text, data=content, encoding="utf-8"))
    trainer.drop_checkpoints(out)
    for name, before in report["before"].items():
        console.print(f"{name}: {before:.4f} before, {report['after'][name]:.4f} after")
    console.print(f"The model is in {out / 'model'}.")
    return report


def _train(
    model: PreTrainedModel, made: Sequence[Lesson], run: ForgetRun, out: Path, frozen: PreTrainedModel | None
) -> None:
    """Train until the demoted tokens are unlikely, or the steps are used up."""

    def enough(step: int) -> dict[str, Any]:
        if step % run.check:
            return {}
        model.eval()
        left = _left(model, made)
        model.train()
        return {"probability": left, "stop": left <= run.stop}

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lessons = [row["value"] for row in rows]
        return shred.batch_of(lessons) if run.method == "shred" else padded([lesson.text for lesson in lessons])

    schedule = trainer.Schedule(run.steps, run.batch, run.learning_rate, run.every, run.seed)
    made_trainer = Forgetting(
        model,
        trainer.arguments(out, schedule),
        data_collator=collate,
        train_dataset=trainer.as_rows(made),
        callbacks=[trainer.Watch(out / "metrics.jsonl", console, enough)],
    )
    made_trainer.method = run.method
    made_trainer.frozen = frozen
    trainer.run(made_trainer, out, console)
    model.eval()


def _left(model: PreTrainedModel, made: Sequence[Lesson]) -> float:
    """Return the geometric mean of the probabilities of the demoted tokens."""
    found = token_probabilities(model, [lesson.text for lesson in made])
    return geometric_mean(found, [lesson.demoted for lesson in made])


def _measured(model: PreTrainedModel, made: Sequence[Lesson], read: Mapping[str, Sequence[Text]]) -> dict[str, float]:
    """Return what is left of the texts, and of others: `demoted` and `other_tokens` are geometric means of their
    probabilities, `held_out_loss` is in nats, `membership` the AUC of an attack by Min-K% Prob."""
    found = token_probabilities(model, [lesson.text for lesson in made])
    result = {"demoted": geometric_mean(found, [lesson.demoted for lesson in made])}
    rest = [~lesson.demoted for lesson in made]
    if any(bool(each.any()) for each in rest):
        result["other_tokens"] = geometric_mean(found, rest)
    if "held_out" in read:
        result["held_out_loss"] = mean_loss(model, read["held_out"])
    if "unseen" in read:
        others = token_probabilities(model, read["unseen"])
        scores = [unlearning.min_k(each) for each in (*found, *others)]
        told = auroc(scores, [True] * len(found) + [False] * len(others))
        assert told is not None  # both sides have texts
        result["membership"] = told
    return result


def _attack(model: PreTrainedModel, made: Sequence[Lesson], run: ForgetRun) -> dict[str, float]:
    """Train on every second text again; return what comes back of those and, the test of forgetting, of the others."""
    sides = {"trained": made[::2], "others": made[1::2] or made}
    unlearning.relearn(model, [lesson.text for lesson in sides["trained"]], run.relearn, run.learning_rate, run.batch)
    return {name: _left(model, side) for name, side in sides.items()}


def _warn(made: Sequence[Lesson], run: ForgetRun) -> None:
    mean = float(torch.cat([lesson.probability for lesson in made]).mean())
    if run.method == "shred" and run.reference is None and mean > SATURATED:
        console.print(
            f"The model knows these texts by heart (mean probability {mean:.2f}), so that it does not tell what is "
            "specific to them: give a --reference that never saw them.",
            soft_wrap=True,
        )


def _write_demoted(file: Path, made: Sequence[Lesson], tokens: TokenText) -> None:
    rows = [
        {"text": tokens.decode(lesson.text.ids), "demoted": shred.words(lesson, tokens.token_str)} for lesson in made
    ]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    job.replace_file(file, partial(Path.write_text, data=content, encoding="utf-8"))
