"""Make preference pairs from which DPO learns an update that a first round of tuning has shown.

The reference answers each question several times. Half of its answers stay as they are; the others are resampled with
weights `(ref / tuned)^beta` for rejected answers, or `(tuned / ref)^beta` for chosen ones, so that the pairs obey the
power law of arXiv 2505.23761 with the tuned model in the place of the optimum, which nobody has.
"""

from __future__ import annotations

import hashlib
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
from waver.training.lines import json_lines
from waver.training.preferences import did
from waver.training.preferences.likelihood import draw, log_likelihoods
from waver.training.preferences.options import Made
from waver.training.preferences.pairs import Answer, Pair, as_row

console = Console()


def make_pairs(questions: Path, tuned: str, made: Made, out: Path, threads: int = 1) -> dict[str, Any]:
    """Draw, resample and write `pairs.jsonl`, or go on; returns the report.

    Raises:
        ValueError: it cannot be done like this, or `out` holds another run. OSError: a file cannot be read.
    """
    if made.side not in ("rejected", "chosen"):
        raise ValueError(f"there is no side {made.side!r}; there are `rejected` and `chosen`")
    if made.pairs > made.candidates // 2:
        raise ValueError(f"{made.pairs} pairs of a question need {2 * made.pairs} --candidates")
    torch.set_num_threads(threads)
    prompts = read_questions(questions)
    reference, tokens = checkpoints.load(made.model)
    other, theirs = checkpoints.load(tuned)
    if theirs.tokenizer.get_vocab() != tokens.tokenizer.get_vocab():
        raise ValueError(f"{tuned} and {made.model} have different tokenizers")
    job.claim(out, asdict(made) | {"tuned": tuned, "questions": checkpoints.sha256(questions)})
    lines = job.read_lines(out / "drawn.jsonl")
    with counted(console) as bar:
        task = bar.add_task("drawing", total=len(prompts), completed=len(lines))
        for place in range(len(lines), len(prompts)):
            line = _of_question(prompts[place], place, reference, other, tokens, made)
            job.append_line(out / "drawn.jsonl", line)
            lines.append(line)
            bar.advance(task)
    rows = [row for line in lines for row in line["pairs"]]
    if not rows:
        raise ValueError("every pair has the same answer twice: the questions leave nothing to choose")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    job.replace_file(out / "pairs.jsonl", lambda path: path.write_text(text, encoding="utf-8"))
    report = {
        "pairs": len(rows),
        "same": len(prompts) * made.pairs - len(rows),
        "effective": sum(line["effective"] for line in lines) / len(lines),
        "of": made.candidates // 2,
    }
    job.replace_file(out / "report.json", lambda path: path.write_text(json.dumps(report) + "\n", encoding="utf-8"))
    console.print(
        f"{report['pairs']} pairs are in {out / 'pairs.jsonl'}; {report['same']} with the same answer twice were left "
        f"out. Resampling kept {report['effective']:.1f} effective of {report['of']} answers to a question.",
        soft_wrap=True,
    )
    return report


def read_questions(file: Path) -> list[str]:
    """Read the `question` of every line of a JSONL file.

    Raises:
        ValueError: a line has none. OSError: the file cannot be read.
    """
    found = []
    for where, row in json_lines(file):
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise ValueError(f"{where}: an object is needed with `question`")
        found.append(row["question"])
    if not found:
        raise ValueError(f"{file} holds no questions")
    return found


def _of_question(
    question: str, place: int, reference: PreTrainedModel, tuned: PreTrainedModel, tokens: TokenText, made: Made
) -> dict[str, Any]:
    """Draw answers to a question and pair them."""
    prompt = tuple(tokens.chat([{"role": "user", "content": question}]))
    seed = seed_of(made.seed, place)
    answers = draw(reference, prompt, made.candidates, made.max_tokens, tokens.eos_ids, seed)
    plain, pool = answers[: len(answers) // 2], answers[len(answers) // 2 :]
    asked = [(prompt, answer) for answer in pool]
    likely = [log_likelihoods(model, asked) for model in (reference, tuned)]
    sign = 1 if made.side == "rejected" else -1
    weights = did.resampling_weights(likely[0], likely[1], sign * made.beta)
    generator = torch.Generator().manual_seed(seed)
    picked = torch.multinomial(weights, made.pairs, replacement=True, generator=generator).tolist()
    pairs = paired(prompt, plain[: made.pairs], [pool[each] for each in picked], made.side)
    return {"pairs": [as_row(each) for each in pairs], "effective": did.effective(weights)}


def paired(prompt: tuple[int, ...], plain: Sequence[Answer], resampled: Sequence[Answer], side: str) -> list[Pair]:
    """Put resampled answers on their side; pairs of equal answers are left out, as they have no gradient."""
    both = zip(plain, resampled, strict=True) if side == "rejected" else zip(resampled, plain, strict=True)
    return [Pair(prompt, chosen, rejected) for chosen, rejected in both if chosen.ids != rejected.ids]


def seed_of(seed: int, *parts: int) -> int:
    """Make a seed of its own for each place of a run."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:7])
