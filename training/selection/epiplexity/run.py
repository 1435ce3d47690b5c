"""Run `waver data epiplexity`: estimate S and H of corpora and orders under equal conditions, and rank them.

The folder holds `runs.jsonl` (a line for each estimate, from which a stopped run goes on), `report.json`, `README.md`,
and plots where matplotlib is installed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, PreTrainedModel

from waver import job
from waver.engines.base import reason
from waver.engines.tokens import TokenText
from waver.progress import counted
from waver.training import checkpoints
from waver.training.selection.epiplexity import report
from waver.training.selection.epiplexity.corpora import ORDERS, byte_tokens, first_token, ordered, read_corpus
from waver.training.selection.epiplexity.estimate import Settings, estimate
from waver.training.selection.epiplexity.language import (
    TextCoding,
    batches,
    fresh,
    plain_adam,
    scaled_adam,
    small_config,
)
from waver.training.selection.epiplexity.options import EpiplexityRun
from waver.training.texts import Text

RATE, TUNING_RATE = 3e-3, 5e-5
MOST = 1_000_000
FEW = 100
"""With fewer steps hardly anything is learned."""
console = Console()


@dataclass(frozen=True)
class Split:
    """Texts of one corpus, order and seed: to learn, and held out."""

    learned: tuple[Text, ...]
    held_out: tuple[Text, ...]

    @property
    def tokens(self) -> int:
        return sum(text.learned for text in self.learned)


def measure(files: Sequence[Path], run: EpiplexityRun, out: Path, threads: int = 1) -> dict[str, Any]:
    """Estimate every file in every order, or go on; returns the report.

    Raises:
        ValueError: what is asked for cannot be done, or `out` holds another run. OSError: a file cannot be read.
    """
    check(files, run)
    torch.set_num_threads(threads)
    tokens, start = _family(run)
    texts = {name: read_corpus(file, tokens, run.length, run.model is None) for name, file in _named(files).items()}
    seeds = range(run.seed, run.seed + run.seeds)
    splits = {
        (name, order, seed): _split(own, order, seed, run, first_token(tokens))
        for name, own in texts.items()
        for order in run.orders
        for seed in seeds
    }
    learned = _tokens(splits, run)
    files_told = {"files": {name: checkpoints.sha256(file) for name, file in _named(files).items()}}
    job.claim(out, asdict(run) | files_told | {"learned": learned})
    done = {_key(line): line for line in job.read_lines(out / "runs.jsonl")}
    sizes = run.sizes if run.model is None else (run.model,)
    wanted = [(*key, size) for key in splits for size in sizes]
    with counted(console) as bar:
        task = bar.add_task("estimating", total=len(wanted), completed=sum(key in done for key in wanted))
        for key in wanted:
            if key in done:
                continue
            name, order, seed, size = key
            bar.update(task, description=f"{name}, {order}, {size}")
            part = bar.add_task("  steps", total=None)
            show = partial(bar.update, part)
            line = _one(splits[name, order, seed], start(size, seed), run, seed, learned, show)
            done[key] = {"corpus": name, "order": order, "seed": seed, "size": size, **line}
            job.append_line(out / "runs.jsonl", done[key])
            bar.remove_task(part)
            bar.advance(task)
    found = report.summary([done[key] for key in wanted], run, learned)
    report.write(out, found)
    console.print(report.shown(found), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Tables and plots: {out / 'README.md'}", soft_wrap=True)
    return found


def check(files: Sequence[Path], run: EpiplexityRun) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: the message says why.
    """
    for order in run.orders:
        if order not in ORDERS:
            raise ValueError(f"there is no order {order!r}; there are {', '.join(ORDERS)}")
    for size in run.sizes:
        if re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,2}", size) is None or int(size.split("x")[0]) % 32:
            raise ValueError(f"--size is WIDTHxDEPTH with a width that 32 divides, such as 64x2, not {size!r}")
    if run.pretrained and run.model is None:
        raise ValueError("--pretrained starts at the weights of a --model: give one")
    if run.max_kl is not None and not run.requential:
        raise ValueError("--max-kl is for the student of --requential: give both")
    if run.budget is not None and len(run.sizes) < 2:
        raise ValueError("--budget chooses among models of several --size: give them")
    if len(_named(files)) != len(files):
        raise ValueError("a file is named twice")


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Name files shortly: by their own names where those differ, else by their paths."""
    short = [file.name for file in files]
    return {file.name if short.count(file.name) == 1 else str(file): file for file in files}


def _family(run: EpiplexityRun) -> tuple[TokenText, Callable[[str, int], PreTrainedModel]]:
    """Return the tokenizer, and what makes a model of a size and a seed at its start."""
    if run.model is None:
        tokens = byte_tokens()

        def small(size: str, seed: int) -> PreTrainedModel:
            width, depth = map(int, size.split("x"))
            return fresh(small_config(width, depth, tokens.vocab_size, run.length), seed)

        return tokens, small
    model, tokens = checkpoints.load(run.model)
    if run.pretrained:
        return tokens, lambda size, seed: checkpoints.load(size)[0]
    del model

    def untrained(size: str, seed: int) -> PreTrainedModel:
        try:
            config = AutoConfig.from_pretrained(size, local_files_only=Path(size).is_dir())
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load {size!r}: {reason(error)}") from error
        return fresh(config, seed)

    return tokens, untrained


def _split(texts: Sequence[Text], order: str, seed: int, run: EpiplexityRun, first: int) -> Split:
    """Hold out a tenth of the texts by chance and bring the rest into the order in which it is learned."""
    own = ordered(texts, order, first, seed)
    places = list(range(len(own)))
    random.Random(f"epiplexity:{seed}").shuffle(places)
    count = min(run.held_out, len(own) // 10)
    rest = sorted(places[count:]) if run.in_order else places[count:]
    return Split(tuple(own[i] for i in rest), tuple(own[i] for i in places[:count]))


def _key(line: dict[str, Any]) -> tuple[str, str, int, str]:
    return line["corpus"], line["order"], line["seed"], line["size"]


def _tokens(splits: dict[tuple[str, str, int], Split], run: EpiplexityRun) -> int:
    """Return how many tokens are learned of each corpus, in one pass.

    Raises:
        ValueError: one has too few.
    """
    smallest = min(splits, key=lambda key: splits[key].tokens)
    least = splits[smallest].tokens
    wanted = run.tokens if run.tokens is not None else min(least, MOST)
    name = smallest[0]
    if not splits[smallest].held_out:
        raise ValueError(f"{name} has fewer than ten texts of {run.length} tokens: bring more, or lower --length")
    if wanted > least:
        raise ValueError(f"{name} has {least:,} tokens to learn, --tokens asks for {wanted:,}: none is learned twice")
    if wanted < FEW * run.batch * (run.length - 1):
        steps = wanted // (run.batch * (run.length - 1))
        console.print(f"{wanted:,} tokens make {steps} steps: below {FEW} hardly anything is learned.", soft_wrap=True)
    return wanted


def _take(texts: Sequence[Text], tokens: int) -> list[Text]:
    """Return the first texts with so many learned tokens; the last of them is cut."""
    taken, left = [], tokens
    for text in texts:
        if left <= 0:
            break
        taken.append(Text(text.ids[: text.start + left], text.start))
        left -= taken[-1].learned
    return taken


def _one(
    split: Split,
    model: PreTrainedModel,
    run: EpiplexityRun,
    seed: int,
    learned: int,
    show: Callable[..., None],
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    rate = run.learning_rate if run.learning_rate is not None else (TUNING_RATE if run.pretrained else RATE)
    course = batches(_take(split.learned, learned), run.batch, device)
    settings = Settings(
        warmup=min(run.warmup, len(course) // 4), ema=run.ema, max_kl=run.max_kl, requential=run.requential, seed=seed
    )
    steps = [0]

    def advance() -> None:
        steps[0] += 1
        show(completed=steps[0], total=len(course))

    held_out = batches(split.held_out, run.batch, device)
    adam = plain_adam(rate) if run.pretrained else scaled_adam(rate)
    made = estimate(model, TextCoding(), course, held_out, adam, settings, advance)
    return report.line(made, run, learned, settings)
