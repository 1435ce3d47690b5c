"""Measure a set of preference pairs: the information they carry, and whether DPO's reward is the optimal one for them.

All measures are of a policy, tuned or aimed at, against its reference (arXiv 2505.23761). None of them gates anything:
the entropy of the DID over whole answers has a huge variance on real lengths, which `effective` shows; the mean entropy
of the DID over the vocabulary at each token is exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from waver import job
from waver.engines.tokens import TokenText
from waver.progress import counted
from waver.training import checkpoints
from waver.training.preferences import did
from waver.training.preferences.likelihood import Asked, draw, log_likelihoods, token_entropies
from waver.training.preferences.options import Measured
from waver.training.preferences.pairs import Pair, read_pairs
from waver.training.preferences.sampler import seed_of

BATCH = 8

console = Console()


def measure(pairs: Path, policy: str, measured: Measured, out: Path, threads: int = 1) -> dict[str, Any]:
    """Measure, or go on, and write `report.json`; returns it.

    Raises:
        ValueError: it cannot be done like this, or `out` holds another run. OSError: a file cannot be read.
    """
    torch.set_num_threads(threads)
    reference, tokens = checkpoints.load(measured.model)
    models = {"reference": reference, "policy": _alike(policy, tokens)}
    if measured.rejected_by is not None:
        models["rejected_by"] = _alike(measured.rejected_by, tokens)
    if measured.chosen_by is not None:
        models["chosen_by"] = _alike(measured.chosen_by, tokens)
    rows = read_pairs(pairs, tokens, measured.length)
    job.claim(out, asdict(measured) | {"policy": policy, "pairs": checkpoints.sha256(pairs)})
    lines = _of_pairs(rows, models, out / "measured.jsonl")
    report = summary(lines, fitted=measured.rejected_by is not None)
    prompts = list(dict.fromkeys(row.prompt for row in rows))[: measured.prompts]
    if prompts:
        report["did"] = _entropies(prompts, models, tokens, measured, out / "drawn.jsonl")
    text = json.dumps(report, indent=1) + "\n"
    job.replace_file(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    _tell(report)
    return report


def _alike(name: str, tokens: TokenText) -> PreTrainedModel:
    model, own = checkpoints.load(name)
    if own.tokenizer.get_vocab() != tokens.tokenizer.get_vocab():
        raise ValueError(f"{name} has another tokenizer than the reference")
    return model


def _of_pairs(rows: Sequence[Pair], models: dict[str, PreTrainedModel], file: Path) -> list[dict[str, Any]]:
    """Return, for each pair, the log-likelihoods of both answers under every model, and the DID's token entropy."""
    lines = job.read_lines(file)
    with counted(console) as bar:
        task = bar.add_task("measuring", total=len(rows), completed=len(lines))
        while len(lines) < len(rows):
            some = rows[len(lines) : len(lines) + BATCH]
            asked: list[Asked] = [(row.prompt, answer) for row in some for answer in (row.chosen, row.rejected)]
            found = {name: log_likelihoods(model, asked, 2 * BATCH).view(-1, 2) for name, model in models.items()}
            entropies = token_entropies(models["policy"], models["reference"], asked, 2 * BATCH).view(-1, 2)
            for place in range(len(some)):
                line = {name: values[place].tolist() for name, values in found.items()}
                lines.append(line | {"entropy": entropies[place].tolist()})
                job.append_line(file, lines[-1])
            bar.advance(task, len(some))
    return lines


def summary(lines: Sequence[dict[str, Any]], fitted: bool) -> dict[str, Any]:
    """Sum up log-likelihoods of pairs, each a list of the chosen and the rejected answer's, by model.

    Args:
        fitted: fit the power law, to `rejected_by` and `chosen_by`, in whose place the reference may stand.
    """
    table = {name: torch.tensor([line[name] for line in lines], dtype=torch.float64) for name in lines[0]}
    change = table["policy"] - table["reference"]
    margin = {name: values[:, 0] - values[:, 1] for name, values in table.items()}
    update = margin["policy"] - margin["reference"]
    report: dict[str, Any] = {
        "pairs": len(lines),
        "chosen_change": float(change[:, 0].mean()),
        "rejected_change": float(change[:, 1].mean()),
        "margin_change": float(update.mean()),
        "agreement": float((update > 0).double().mean()),
        "token_entropy": {
            "chosen": float(table["entropy"][:, 0].mean()),
            "rejected": float(table["entropy"][:, 1].mean()),
        },
        "alarm": bool(change[:, 0].mean() < 0 and change[:, 1].mean() >= change[:, 0].mean()),
    }
    if fitted:
        chosen = margin.get("chosen_by", margin["reference"])
        report["power_law"] = asdict(
            did.power_law(chosen, margin["rejected_by"], margin["policy"], margin["reference"])
        )
    return report


def _entropies(
    prompts: Sequence[tuple[int, ...]],
    models: dict[str, PreTrainedModel],
    tokens: TokenText,
    measured: Measured,
    file: Path,
) -> dict[str, float]:
    """Estimate the entropy of the DID on answers of the policy; means over prompts."""
    lines = job.read_lines(file)
    policy, reference = models["policy"], models["reference"]
    with counted(console) as bar:
        task = bar.add_task("drawing", total=len(prompts), completed=len(lines))
        for place in range(len(lines), len(prompts)):
            seed = seed_of(measured.seed, place)
            prompt = prompts[place]
            answers = draw(policy, prompt, measured.samples, measured.max_tokens, tokens.eos_ids, seed)
            asked: list[Asked] = [(prompt, answer) for answer in answers]
            found = did.estimate_entropy(*(log_likelihoods(model, asked) for model in (policy, reference)))
            tokens_mean = float(token_entropies(policy, reference, asked).mean())
            lines.append({"entropy": found.entropy, "effective": found.effective, "token_entropy": tokens_mean})
            job.append_line(file, lines[-1])
            bar.advance(task)
    return {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]} | {"samples": measured.samples}


def _tell(report: dict[str, Any]) -> None:
    say = [
        f"{report['pairs']} pairs: the policy agrees with {report['agreement']:.1%}.",
        f"Log-likelihood, from reference to policy: chosen {report['chosen_change']:+.3f}, rejected "
        f"{report['rejected_change']:+.3f} nats.",
        f"Entropy of the DID at a token: {report['token_entropy']['chosen']:.3f} nats on chosen answers, "
        f"{report['token_entropy']['rejected']:.3f} on rejected ones.",
    ]
    if report["alarm"]:
        say.append("Chosen answers fall, and rejected ones do not fall faster: the pairs do not carry this update.")
    if "power_law" in report:
        law = report["power_law"]
        say.append(
            f"Power law: beta {law['beta']:.4f} leaves {law['unexplained']:.1%} of the squared margins unexplained; "
            "DPO's reward is the optimal one at that beta as far as nothing is left."
        )
    if "did" in report:
        found = report["did"]
        say.append(
            f"Entropy of the DID over whole answers: {found['entropy']:.2f} nats, from {found['effective']:.1f} "
            f"effective of {found['samples']} answers a prompt; at a token of theirs {found['token_entropy']:.3f}."
        )
    for line in say:
        console.print(line, soft_wrap=True)
