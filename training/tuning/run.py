"""Run `waver tune`: train chosen tensors of a model, or LoRA adapters on chosen layers, on texts.

The folder holds `model/` (to serve; with LoRA the adapters are merged), `adapter/` with LoRA, `selection.json` (which
tensors were trained), `kappas.json`, `metrics.jsonl`, `information.jsonl`, `report.json` (losses before and after, what
activations and attention came to) and `run.json`. The same command in the same folder goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, Trainer

from waver import job
from waver.extras import how_to_install
from waver.training import checkpoints
from waver.training.selection.epiplexity.logger import EpiplexityLogger
from waver.training.texts import Text, mean_loss, padded, read_texts
from waver.training.tuning import crrelu, guided, selection, trainer
from waver.training.tuning.entropy_sft import HardTokensTrainer
from waver.training.tuning.kappatune import Candidate
from waver.training.tuning.options import TuneRun

RATE, LORA_RATE = 5e-5, 2e-4

console = Console()


def tune(data: Path, held_out: Path | None, run: TuneRun, out: Path, threads: int = 1) -> dict[str, Any]:
    """Tune, or go on; returns the report.

    Args:
        data: texts to learn. held_out: texts of what the model must not forget.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. OSError: a file cannot be read.
    """
    selection.check(run)
    if run.rank and find_spec("peft") is None:
        raise ValueError(f"LoRA needs peft: {how_to_install('train')}")
    torch.set_num_threads(threads)
    model, tokens = checkpoints.load(run.model)
    texts = {"learned": read_texts(data, tokens, run.length)}
    if held_out is not None:
        texts["held_out"] = read_texts(held_out, tokens, run.length)
    files = {name: checkpoints.sha256(file) for name, file in (("data", data), ("held_out", held_out)) if file}
    job.claim(out, asdict(run) | files)
    if (done := job.read_record(out / "report.json")) is not None:
        console.print(f"done already: the model is in {out / 'model'}")
        return done
    losses = {name: {"before": mean_loss(model, found)} for name, found in texts.items()}
    attention = {"before": guided.layer_fractions(model, texts["learned"])} if run.guide else {}
    chosen = _chosen(model, run, out)
    if run.rank:
        trained, rank = selection.adapted(model, chosen, run)
        count = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    else:
        trained, rank, count = model, 0, selection.train_only(model, chosen)
    _write(out / "selection.json", _listed(chosen, count, rank))
    console.print(f"training {count:,} parameters in {len(chosen)} tensors" + (f", LoRA of rank {rank}" * bool(rank)))
    points = guided.attach(model, run) if run.guide else None
    _train(trained, texts["learned"], run, out)
    if points is not None:
        guided.detach(model)
        attention["after"] = guided.layer_fractions(model, texts["learned"])
    report = {"parameters": count, "tensors": len(chosen), "rank": rank, "losses": losses}
    if run.rank:
        model = _written_adapter(trained.eval(), run, out, texts, report)
    for name, found in texts.items():
        losses[name]["after"] = mean_loss(model, found)
    if points is not None:
        report["attention"] = attention | {"points": points.thresholds.tolist()}
    if run.activation:
        report["activations"] = [asdict(each) for each in crrelu.learned(model, texts["learned"])]
    routes = "routing" in report
    if not routes:
        checkpoints.save(out / "model", model, tokens, checkpoints.stored_dtype(run.model))
    _write(out / "report.json", report)
    trainer.drop_checkpoints(out)
    for name, loss in losses.items():
        console.print(f"{name}: loss {loss['before']:.4f} before, {loss['after']:.4f} after")
    made = "an engine of model and adapter is in" if routes else "The model is in"
    console.print(f"{made} {out / ('engine.yaml' if routes else 'model')}.")
    return report


def _written_adapter(
    trained: Any, run: TuneRun, out: Path, texts: dict[str, list[Text]], report: dict[str, Any]
) -> PreTrainedModel:
    """Write an adapter; returns the model with it, merged where that is exact. Where it is not, the report gets what
    routers do, and the folder an engine that serves both."""
    job.replace_folder(out / "adapter", trained.save_pretrained)
    if run.adapter == "lora" or trained.base_model.mergeable:
        merged: PreTrainedModel = trained.merge_and_unload()
        return merged
    from waver.training.tuning.routed import usage_on

    report["routing"] = {name: asdict(usage_on(trained, found)) for name, found in texts.items()}
    engine = {"model": str(Path(run.model).resolve()) if Path(run.model).is_dir() else run.model}
    engine |= {"backend": "transformers", "adapter": str((out / "adapter").resolve())}
    text = yaml.safe_dump({"engines": {"tuned": engine}}, sort_keys=False)
    job.replace_file(out / "engine.yaml", partial(Path.write_text, data=text, encoding="utf-8"))
    served: PreTrainedModel = trained
    return served


def _chosen(model: PreTrainedModel, run: TuneRun, out: Path) -> list[Candidate]:
    """Choose what is trained: by the run's selection or, with another activation, the MLPs that it is put into."""
    if run.activation is not None:
        names = crrelu.swap(model)
        named = [(name, weight) for name, weight in model.named_parameters() if name in names]
        return [Candidate(name, math.nan, tuple(weight.shape)) for name, weight in named]
    console.print("computing condition numbers")
    return selection.select(model, run, out / "kappas.json")


def _train(model: nn.Module, texts: Sequence[Text], run: TuneRun, out: Path) -> None:
    rate = run.learning_rate if run.learning_rate is not None else (LORA_RATE if run.rank else RATE)
    schedule = trainer.Schedule(run.steps, run.batch, rate, run.every, run.seed)
    if run.adapter != "lora":
        from waver.training.tuning.routed import routed

        kind: Any = routed(Trainer)
    else:
        kind = _plain(run)
    if run.guide:
        kind = partial(guided.GuidedTrainer, guide=run.guide)
    # The loss of chosen tokens, or with another one added to it, is no code length.
    plain = run.keep == 1 and not run.guide and run.adapter != "dynmole"
    information = [EpiplexityLogger(out / "information.jsonl")] if plain else []
    made = kind(
        model,
        trainer.arguments(out, schedule),
        data_collator=lambda rows: padded([row["value"] for row in rows]),
        train_dataset=trainer.as_rows(texts),
        callbacks=[trainer.Watch(out / "metrics.jsonl", console), *information],
        optimizers=(crrelu.optimizer(model, rate) if run.activation else None, None),
    )
    trainer.run(made, out, console)


def _plain(run: TuneRun) -> Any:
    return Trainer if run.keep == 1 else partial(HardTokensTrainer, share=run.keep, weight=run.entropy_weight)


def _listed(chosen: Sequence[Candidate], count: int, rank: int) -> dict[str, Any]:
    tensors = [
        {"name": each.name, "kappa": each.kappa if math.isfinite(each.kappa) else None, "shape": each.shape}
        for each in chosen
    ]
    return {"parameters": count, "rank": rank, "tensors": tensors}


def _write(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    job.replace_file(file, partial(Path.write_text, data=text, encoding="utf-8"))
