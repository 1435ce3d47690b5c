"""Name what is compared: models, presets, policies with parameters, sweeps of them, and the baselines.

`--peer` takes
- a baseline by name (`BASELINES`), with parameters after `=`: `route`, `random={rate: 0.3}`;
- any policy with parameters, where a list is a sweep: `ead={threshold: [0.1, 0.3], monitor: small}`;
- an engine or a preset: `large`, `waver/frugal`; an engine with policies: `small=[{name: ead, threshold: 0.3}]`;
- the folder that `waver calibrate policy` has written: `@tuned`.

A name for the tables may stand before a colon: `mine: ead={threshold: 0.3}`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from waver.clients.arms import read_arm
from waver.clients.questions import Refused
from waver.clients.searching import VARIED

RANDOM = "random_switch"
LABEL = re.compile(r"([\w .-]{1,60}): +(?=\S)")
MOST = 64
SAMPLED = {"temperature": 0.7}


@dataclass(frozen=True)
class Peer:
    """One way to answer: a model, with policies or with its own (None), and fields of requests that differ.

    Attributes:
        name: what tables say. family: the name of the sweep that it is a setting of.
    """

    name: str
    family: str
    model: str
    policy: tuple[Mapping[str, Any], ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A digest that tells it from others, whatever it is called."""
        own = [self.model, None if self.policy is None else list(self.policy), dict(self.options)]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def body(self) -> dict[str, Any]:
        """Fields of a request that the `openai` package does not know: the policies, and a salt, so that no peer finds
        prompts in an engine's cache that another one has read."""
        return {} if self.policy is None else {"policy": [dict(each) for each in self.policy], "cache_salt": self.key}


@dataclass(frozen=True)
class Family:
    """Peers of which one is chosen on the calibration draw; of a single one there is nothing to choose.

    `same_share`: it is `random_switch` at the share of the large model that another family has, which is known later.
    `baseline`: what a user would pick without Waver, or a control.
    """

    name: str
    peers: tuple[Peer, ...]
    baseline: bool = False
    same_share: bool = False


@dataclass(frozen=True)
class Names:
    """Names on the server that baselines are made of."""

    small: str = "small"
    large: str = "large"
    collection: str | None = None


@dataclass(frozen=True)
class _Baseline:
    help: str
    policies: tuple[Mapping[str, Any], ...] = ()
    """One for each setting."""
    on: str = "small"
    options: Mapping[str, Any] = field(default_factory=dict)


BASELINES: Mapping[str, _Baseline] = {
    "small": _Baseline("the small model alone"),
    "large": _Baseline("the large model alone", on="large"),
    "random": _Baseline(
        "`random_switch`: chance decides who writes each token, at the share of tokens on the large model that the "
        "first switching policy has (on the calibration draw), or at a given `rate`",
        ({"name": RANDOM},),
    ),
    "route": _Baseline("`route`: the whole request goes to the one model or the other", ({"name": "route"},)),
    "cascade": _Baseline(
        "`cascade`: the large model answers again where the small model's answer wavers", ({"name": "cascade"},)
    ),
    "speculative": _Baseline(
        "an engine of that name: vLLM with the small model as draft (docs/benchmarks.md)", on="speculative"
    ),
    "self_consistency": _Baseline(
        "five answers of the large model at temperature 0.7, and a vote (arXiv 2203.11171)",
        ({"name": "entropy_judger", "select": "vote", "samples": 5},), "large", SAMPLED,
    ),
    "self_consistency_small": _Baseline(
        "the same of the small model", ({"name": "entropy_judger", "select": "vote", "samples": 5},), "small", SAMPLED
    ),
    "easy": _Baseline("`diffadapt` with the strategy `easy` for all", ({"name": "diffadapt", "strategy": "easy"},),
                      "large"),
    "normal": _Baseline("`diffadapt` with the strategy `normal` for all",
                        ({"name": "diffadapt", "strategy": "normal"},), "large"),
    "hard": _Baseline("`diffadapt` with the strategy `hard` for all", ({"name": "diffadapt", "strategy": "hard"},),
                      "large"),
    "always_retrieve": _Baseline("`l_rag` that always looks up", ({"name": "l_rag", "gate": "always"},), "large"),
    "never_retrieve": _Baseline("`l_rag` that never does", ({"name": "l_rag", "gate": "never"},), "large"),
}  # fmt: skip
"""The rivals of a policy by name: a setting that a user would pick instead, or a control."""
SWITCHING = ("ead", RANDOM, "route", "cascade")
"""Policies that go over both engines, and take their names as `small` and `large`."""


def families(texts: Iterable[str], names: Names) -> list[Family]:
    """Read what `--peer` says, and put the reference first.

    Raises:
        Refused: one cannot be read, or stands there twice.
    """
    found = [read(text, names) for text in texts]
    reference = read("large", names)
    if reference.name not in [each.name for each in found]:
        found.insert(0, reference)
    doubled = [each.name for i, each in enumerate(found) if each.name in [other.name for other in found[:i]]]
    if doubled:
        raise Refused(f"--peer {doubled[0]} is there twice: write `NAME: {doubled[0]}…` to tell two apart.")
    return found


def read(text: str, names: Names) -> Family:
    """Read one `--peer`.

    Raises:
        Refused: it cannot be read.
    """
    labelled = LABEL.match(text)
    label, rest = (labelled[1], text[labelled.end() :]) if labelled else (None, text)
    if rest.startswith("@"):
        return _calibrated(Path(rest[1:]), label, names)
    name, sign, given = rest.partition("=")
    if sign and given.lstrip().startswith("["):
        arm = read_arm(rest)
        return Family(label or rest, (Peer(label or rest, label or rest, arm.model, tuple(arm.policy or ())),))
    parameters = _parameters(rest, given) if sign else {}
    baseline = BASELINES.get(name)
    if baseline is None and not sign and name not in VARIED:
        return Family(label or name, (Peer(label or name, label or name, name),))
    return _swept(label or name, name, baseline, parameters, names)


def _swept(
    label: str, name: str, baseline: _Baseline | None, parameters: Mapping[str, Any], names: Names
) -> Family:  # fmt: skip
    """Make a family of a baseline, or of a policy, and its parameters; a list of values is a sweep."""
    on = baseline.on if baseline else "small"
    model = {"small": names.small, "large": names.large}.get(on, on)
    if baseline and not baseline.policies:
        if parameters:
            raise Refused(f"--peer {name} takes no parameters.")
        return Family(label, (Peer(label, label, model, ()),), True)
    base = dict(baseline.policies[0]) if baseline else {"name": name}
    if base["name"] in SWITCHING:
        base |= {"small": names.small, "large": names.large}
    if base["name"] == "l_rag":
        if not (names.collection or "collection" in parameters):
            raise Refused(f"--peer {name} needs --collection.")
        base |= {"collection": names.collection} if names.collection else {}
    own = VARIED.get(base["name"], {})
    usual = {} if parameters else {key: values for key, values in own.items() if key not in base}
    swept = {key: value if isinstance(value, list) else [value] for key, value in parameters.items()}
    varied = {key: list(values) for key, values in usual.items()} | swept
    settings = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    if len(settings) > MOST:
        raise Refused(f"--peer {label}: {len(settings)} settings are too many, at most {MOST}.")
    shown = [key for key, values in varied.items() if len(values) > 1]
    peers = [
        Peer(_named(label, setting, shown), label, model, ({**base, **setting},), baseline.options if baseline else {})
        for setting in settings
    ]
    same_share = base["name"] == RANDOM and "rate" not in parameters
    return Family(label, tuple(peers), baseline is not None, same_share)


def _named(label: str, setting: Mapping[str, Any], shown: Sequence[str]) -> str:
    return f"{label} {', '.join(f'{key} {setting[key]}' for key in shown)}".strip()


def at_rate(family: Family, rate: float) -> Family:
    """Return `random_switch` at a share of the large model."""
    (peer,) = family.peers
    assert peer.policy is not None
    made = replace(peer, policy=({**peer.policy[0], "rate": round(rate, 4)},), name=f"{family.name} at {rate:.1%}")
    return replace(family, peers=(made,), same_share=False)


def _calibrated(folder: Path, label: str | None, names: Names) -> Family:
    """Read the setting that `waver calibrate policy` has chosen."""
    file = folder / "report.json"
    try:
        preset = json.loads(file.read_text(encoding="utf-8")).get("preset")
    except (OSError, ValueError) as error:
        raise Refused(f"--peer @{folder}: {file} cannot be read: {error}.") from None
    if not preset:
        raise Refused(f"--peer @{folder}: the calibration has chosen no setting; use the large model alone.")
    name = label or f"{preset['name']} calibrated"
    return Family(name, (Peer(name, name, names.small, (preset,)),))


def _parameters(text: str, given: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise Refused(f"--peer {text}: the parameters cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise Refused(f"--peer {text}: write NAME={{key: value}}, as ead={{threshold: 0.3}}.")
    return found
