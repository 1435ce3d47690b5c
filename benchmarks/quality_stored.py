"""Keep a run's answers beside its results, and make the results anew from them."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from waver.benchmarks.quality_asking import Known
from waver.benchmarks.quality_choice import Wanted, choose, found_of
from waver.benchmarks.quality_peers import Family, Names, Peer
from waver.benchmarks.quality_tables import Numbers
from waver.benchmarks.quality_tasks import Item

ENDING = ".answers.jsonl.xz"


def kept_of(wanted: Wanted) -> dict[str, Any]:
    """Return what a result says of its peers and questions, enough to make it anew."""
    return {
        "families": [asdict(family) for family in wanted.families],
        "draws": {name: [item.line for item in items] for name, items in _draws(wanted).items()},
        "names": asdict(wanted.names),
    }


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a page may show them: of folders that are nobody else's business, the name alone."""
    kept = {key: value for key, value in settings.items() if key != "questions"}
    for key, value in kept.items():
        if isinstance(value, Path) and value.is_absolute():
            kept[key] = Path(value.name)
    kept["peer"] = [_short(each) for each in settings["peer"]]
    return kept


def _short(peer: str) -> str:
    name, sign, folder = peer.partition("@")
    return f"{name}{sign}{Path(folder).name}" if folder.startswith("/") else peer


def write(file: Path, picked: Sequence[Family], wanted: Wanted, known: Known) -> None:
    """Write the answers that the result was made of, compressed."""
    settings = {peer.key for family in wanted.families for peer in family.peers}
    reported = {peer.key for family in picked for peer in family.peers}
    used = {(key, item.line) for key in settings for item in wanted.calibration}
    used |= {(key, item.line) for key in reported for item in wanted.test}
    lines = [json.dumps(known[place], ensure_ascii=False) for place in sorted(used) if place in known]
    with lzma.open(file, "wt", encoding="utf-8") as out:
        out.write("".join(f"{line}\n" for line in lines))


def again(found: Mapping[str, Any], file: Path) -> Numbers:
    """Return a result made anew from its answers."""
    wanted = _wanted(found)
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        known = {(line["peer"], line["line"]): line for line in map(json.loads, lines)}
    picked, chosen = choose(wanted, known)
    return {**found, **found_of(picked, wanted, known), "chosen": chosen}


def _wanted(found: Mapping[str, Any]) -> Wanted:
    families = [
        Family(**{**family, "peers": tuple(_peer(peer) for peer in family["peers"])}) for family in found["families"]
    ]
    draws = {name: [Item(line, "", (), "") for line in lines] for name, lines in found["draws"].items()}
    settings = found["settings"]
    return Wanted(
        families, draws["calibration"], draws["test"], settings["within"], Names(**found["names"]), settings["every"]
    )


def _peer(told: Mapping[str, Any]) -> Peer:
    return Peer(**{**told, "policy": None if told["policy"] is None else tuple(told["policy"])})


def _draws(wanted: Wanted) -> dict[str, Sequence[Item]]:
    return {"calibration": wanted.calibration, "test": wanted.test}
