"""Run `waver route learn`: teach a router kinds of requests from texts, many at first and then a few of each new kind.

OUT is a link to the folder of the newest router; a run that is killed leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from waver import job
from waver.engines.router import CAPACITY, Record, Router, as_maps, shape_of, texts_of
from waver.engines.selective import Projector, simplex
from waver.progress import counted
from waver.training.adaptation.fscil import Examples, Teaching, accuracies, shares, teach_base, teach_more

console = Console()
Embed = Callable[[Sequence[str]], Any]
"""From texts to vectors `[texts, channels]`."""


@dataclass(frozen=True)
class Source:
    """The embedder of texts: its name and fingerprint, and how to call it."""

    name: str
    fingerprint: str
    embed: Embed


def read_examples(file: Path) -> dict[str, list[str]]:
    """Read JSONL with `text` and `kind`: the texts of each kind, in the order in which kinds come first.

    Raises:
        ValueError: a line has another form; the message names it. OSError: the file cannot be read.
    """
    found: dict[str, list[str]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError(f"{file}, line {number}: not JSON") from None
        words = [str(row.get(key) or "").strip() if isinstance(row, Mapping) else "" for key in ("kind", "text")]
        if not all(words):
            raise ValueError(f"{file}, line {number}: an object is needed with `text` and `kind`")
        found.setdefault(words[0], []).append(words[1])
    if not found:
        raise ValueError(f"{file} holds no examples")
    return found


def learn(file: Path, out: Path, source: Source, how: Teaching, test: Path | None = None, seed: int = 1) -> Router:
    """Teach the router in `out` the kinds of a file, or begin one; a file that was learned already changes nothing.

    Raises:
        ValueError: a kind is known already, there is no room for more, or the router has another embedder.
        OSError: a file cannot be read.
    """
    given, digest = read_examples(file), hashlib.sha256(file.read_bytes()).hexdigest()
    before = Router.load(out) if (out / "router.json").exists() else None
    if before is not None and digest in before.record.learned:
        console.print(f"{file} was learned already; the router is in {out}")
        return before
    _check(given, before, source)
    tests = None if test is None else read_examples(test)
    kinds = [*(before.record.kinds if before else ()), *given]
    if tests is not None and (unknown := set(tests) - set(kinds)):
        raise ValueError(f"{test} has the kind {min(unknown)!r}, which the router does not know")
    with counted(console) as bar:
        task = bar.add_task("learning", total=how.steps if before else how.base_steps)
        examples = _examples(given, kinds, source)
        made = _taught(before, examples, kinds, source, how, seed, lambda: bar.advance(task))
    about: dict[str, Any] = {
        "seed": seed,
        "teaching": asdict(how),
        "examples": {kind: len(texts) for kind, texts in given.items()},
    }
    if tests is not None:
        scores = compare(made, _examples(tests, kinds, source), examples, before)
        about["accuracy"] = scores
        for name, found in scores.items():
            console.print(f"{name}: " + ", ".join(f"{share:.3f} right of {group}" for group, share in found.items()))
    learned = (*(before.record.learned if before else ()), digest)
    made = Router(
        made.projector, made.classifier, made.means, made.record.model_copy(update={"learned": learned, "about": about})
    )
    job.replace_folder(out, made.save)
    console.print(f"The router knows {len(kinds)} kinds; it is in {out}.")
    return made


def _check(given: Mapping[str, Sequence[str]], before: Router | None, source: Source) -> None:
    known = before.record.kinds if before else ()
    if twice := [kind for kind in given if kind in known]:
        raise ValueError(f"the kind {twice[0]!r} is known already: an increment brings new kinds")
    if before is None and len(given) < 2:
        raise ValueError("a router begins with at least two kinds")
    if len(known) + len(given) > CAPACITY:
        raise ValueError(f"a router has room for {CAPACITY} kinds, and these would be {len(known) + len(given)}")
    if before is not None and (reason := before.misfit(source.name, source.fingerprint)):
        raise ValueError(reason)


def _examples(given: Mapping[str, Sequence[str]], kinds: Sequence[str], source: Source) -> Examples:
    texts = [text for own in given.values() for text in own]
    labels = [kinds.index(kind) for kind, own in given.items() for _ in own]
    return Examples(as_maps(source.embed(texts_of(texts))), torch.tensor(labels))


def _taught(
    before: Router | None,
    given: Examples,
    kinds: Sequence[str],
    source: Source,
    how: Teaching,
    seed: int,
    tick: Callable[[], None],
) -> Router:
    means = given.means()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + len(kinds))
        if before is None:
            projector = Projector(shape_of(given.maps.shape[-1]))
            classifier = simplex(CAPACITY, CAPACITY, torch.Generator().manual_seed(seed)).float()
            teach_base(projector, classifier, given, how, seed, tick)
            record = Record(
                kinds=tuple(kinds),
                base=len(kinds),
                embedder=source.name,
                fingerprint=source.fingerprint,
                channels=given.maps.shape[-1],
                width=CAPACITY,
            )
            return Router(projector, classifier, means.maps, record)
        projector, classifier = before.projector, before.classifier
        old = Examples(before.means, torch.arange(len(before.means)))
        teach_more(projector, classifier, given, old, before.record.base, how, seed + len(kinds), tick)
    record = before.record.model_copy(update={"kinds": tuple(kinds)})
    return Router(projector, classifier, torch.cat([before.means, means.maps]), record)


def compare(router: Router, tests: Examples, given: Examples, before: Router | None) -> dict[str, dict[str, float]]:
    """Score the router beside the nearest mean and a linear probe, which get what the router gets: all examples of the
    first session, then the new examples and the mean of each earlier kind."""
    base, count = router.record.base, len(router.record.kinds)
    found = {"router": accuracies(router.projector, router.classifier, tests, count, base)}
    flat = tests.maps.mean(1)
    nearest = torch.cdist(flat, router.means.mean(1)).argmin(-1)
    found["nearest mean"] = shares(nearest == tests.labels, tests.labels, base)
    pool = given if before is None else given.joined(Examples(before.means, torch.arange(len(before.means))))
    if len(Counter(pool.labels.tolist())) > 1:
        from sklearn.linear_model import LogisticRegression

        probe = LogisticRegression(max_iter=1000, class_weight="balanced")
        probe.fit(pool.maps.mean(1).numpy(), pool.labels.numpy())
        said = torch.from_numpy(probe.predict(flat.numpy()))
        found["linear probe"] = shares(said == tests.labels, tests.labels, base)
    return found
