"""Choose the settings of sweeps on the calibration draw, and gather what the chosen ones did on the test draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from waver.benchmarks.quality_asking import Known, busy
from waver.benchmarks.quality_peers import Family, Names, Peer, at_rate
from waver.benchmarks.quality_tables import Numbers, Told, full, numbers, share
from waver.benchmarks.quality_tasks import Item
from waver.clients.questions import Refused
from waver.stats import wilson

FOLLOWED = ("ead", "route", "cascade", "learned_route")
"""Policies whose share of tokens on the large model chance can have too."""


@dataclass(frozen=True)
class Wanted:
    """The peers, the questions of both draws, and how settings are chosen."""

    families: Sequence[Family]
    calibration: Sequence[Item]
    test: Sequence[Item]
    within: float
    names: Names
    every: bool


def needing_choice(found: Sequence[Family]) -> list[Family]:
    """List the families of which something is decided on the calibration draw."""
    tied = [shares_with(found)] if any(family.same_share for family in found) else []
    return [family for family in found if len(family.peers) > 1 or family in tied]


def shares_with(found: Sequence[Family]) -> Family:
    """Return the family whose share of the large model `random` takes: the first policy that switches.

    Raises:
        Refused: there is none.
    """
    switching = [
        family
        for family in found
        if not family.same_share and family.peers[0].policy and family.peers[0].policy[0]["name"] in FOLLOWED
    ]
    if not switching:
        raise Refused("--peer random takes the share of tokens of a switching policy: name one, or random={rate: 0.3}.")
    return min(switching, key=lambda family: family.baseline)


def choose(wanted: Wanted, known: Known) -> tuple[list[Family], list[Numbers]]:
    """Return the families as they are measured on the test draw, and a row for each setting that was compared."""
    reference = next(each for each in wanted.families if each.name == "large").peers[0]
    chosen: dict[str, Peer] = {}
    rows: list[Numbers] = []
    for family in needing_choice(wanted.families):
        own = [_compared(peer, reference, wanted.calibration, known) for peer in family.peers]
        base = _compared(reference, reference, wanted.calibration, known)["accuracy"]
        fit = [i for i, each in enumerate(own) if each["accuracy"] >= base - wanted.within - 1e-9]
        best = (
            min(fit, key=lambda i: (own[i]["cost"] if own[i]["cost"] is not None else own[i]["wall"], i))
            if fit
            else max(range(len(own)), key=lambda i: (own[i]["accuracy"], -i))
        )
        chosen[family.name] = family.peers[best]
        if len(family.peers) > 1:
            rows += [each | {"chosen": i == best} for i, each in enumerate(own)]
    made = []
    for family in wanted.families:
        if family.same_share:
            followed = chosen[shares_with(wanted.families).name]
            lines = [known[followed.key, item.line] for item in wanted.calibration]
            made.append(at_rate(family, share(lines, wanted.names.large)))
        elif family.name in chosen and not wanted.every:
            made.append(Family(family.name, (chosen[family.name],), family.baseline))
        else:
            made.append(family)
    return made, rows


def _compared(peer: Peer, reference: Peer, items: Sequence[Item], known: Known) -> Numbers:
    """Raises:
    Refused: an answer is not there."""
    try:
        own, other = ([known[each.key, item.line] for item in items] for each in (peer, reference))
    except KeyError:
        raise Refused("The settings cannot be chosen: answers of the calibration draw are missing.") from None
    right = sum(line["right"] for line in own)
    costs, others = [full(line) for line in own], [full(line) for line in other]
    told = None not in costs and None not in others
    return {
        "name": peer.name,
        "accuracy": right / len(items),
        "accuracy_interval": wilson(right, len(items)),
        "cost": sum(filter(None, costs)) / max(sum(filter(None, others)), 1e-9) if told else None,
        "wall": busy(own) / max(busy(other), 1e-9),
    }


def found_of(picked: Sequence[Family], wanted: Wanted, known: Known) -> Numbers:
    """Return the numbers of the test draw, over the questions that every peer has answered.

    Raises:
        Refused: there are none.
    """
    peers = [(family, peer) for family in picked for peer in family.peers]
    items = [item for item in wanted.test if all((peer.key, item.line) in known for _, peer in peers)]
    if len(items) < 2:
        raise Refused("Fewer than two questions have been answered by every peer: let it run longer.")
    told = [
        Told(peer.name, family.name, family.baseline, [known[peer.key, item.line] for item in items])
        for family, peer in peers
    ]
    found = numbers(told, "large", wanted.names.large)
    servers = sorted({str(line.get("server")) for each in told for line in each.lines})
    settings = {peer.name: {"model": peer.model, "policy": peer.policy, **peer.options} for _, peer in peers}
    missing = len(wanted.test) - len(items)
    return found | {"reference": "large", "servers": servers, "peers": settings, "missing": missing}
