"""Hold a guard: rules in a tree, known harmless requests, and a projector. A folder that `waver train guard`
writes from reviewed files; no request changes it.

Files: `guard.json` (the `Record`), `rules.jsonl` (a rule pair with its example, and its cluster, in each line),
`vectors.safetensors` (`rules [n, dimension]`, `centres [clusters, dimension]`, `benign [m, dimension]`: unit vectors),
`projector.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from waver.engines.projector import Projector
from waver.policies.guard import gate
from waver.policies.guard.tree import RuleTree

FORMAT = 1
Floats = npt.NDArray[np.float32]
Line = Annotated[str, Field(min_length=1, max_length=1000)]


class Rule(BaseModel):
    """A pair of rules for a family of requests: what is forbidden, and which neighbouring use is fine; and an example
    of a forbidden request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: Annotated[str, Field(min_length=1, max_length=64)]
    forbid: Line
    allow: Line
    example: Line


class Record(BaseModel):
    """The origin of a guard. `low` and `high` are its thresholds of S_harm and S_benign; `about` is for people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    embedder: str
    fingerprint: str
    low: float = Field(default=gate.LOW, ge=0, le=1)
    high: float = Field(default=gate.HIGH, ge=-1, le=1)
    about: dict[str, Any] = {}


@dataclass(frozen=True)
class Guard:
    """A guard in memory. `clusters` names the cluster of each rule."""

    record: Record
    projector: Projector
    rules: Sequence[Rule]
    clusters: Sequence[int]
    vectors: Mapping[str, Floats]

    def scores(self, vectors: Floats) -> tuple[float, float]:
        """Return the largest S_harm, and the smallest S_benign, of the parts of a request `[n, dimension]`."""
        harm = self.projector.harm(torch.from_numpy(np.ascontiguousarray(vectors)))
        return float(harm.max()), float(gate.similarity(vectors, self.vectors["benign"]).min())

    def nearest(self, vectors: Floats, count: int) -> list[Rule]:
        """Return the rules of the `count` clusters that are the nearest to any part of a request: of each cluster the
        one whose example is the nearest."""
        to_centres = (vectors @ self.vectors["centres"].T).max(axis=0)
        to_rules = (vectors @ self.vectors["rules"].T).max(axis=0)
        found = []
        for cluster in np.argsort(-to_centres, kind="stable")[:count]:
            leaves = [i for i, each in enumerate(self.clusters) if each == cluster]
            found.append(self.rules[max(leaves, key=lambda i: to_rules[i])])
        return found

    def save(self, folder: Path) -> None:
        """Write all files."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(rule.model_dump() | {"cluster": cluster}, ensure_ascii=False) + "\n"
            for rule, cluster in zip(self.rules, self.clusters, strict=True)
        ]
        (folder / "rules.jsonl").write_text("".join(lines), encoding="utf-8")
        save_file({name: np.ascontiguousarray(v, np.float32) for name, v in self.vectors.items()},
                  folder / "vectors.safetensors")  # fmt: skip
        self.projector.save(folder / "projector.safetensors")
        (folder / "guard.json").write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Guard:
        """Read a guard.

        Raises:
            ValueError: the folder holds none, or its files do not fit together.
        """
        try:
            record = Record.model_validate_json((folder / "guard.json").read_text(encoding="utf-8"))
            rows = [json.loads(line) for line in (folder / "rules.jsonl").read_text(encoding="utf-8").splitlines()]
            clusters = [int(row.pop("cluster")) for row in rows]
            rules = [Rule.model_validate(row) for row in rows]
            vectors = load_file(folder / "vectors.safetensors")
            projector = Projector.load(folder / "projector.safetensors")
            made = cls(record, projector, rules, clusters, vectors)
            made._check()
        except (OSError, KeyError, TypeError, ValueError, ValidationError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no guard: {str(error).splitlines()[0]}") from error
        return made

    def _check(self) -> None:
        """Check that the files fit together.

        Raises:
            ValueError: they do not.
        """
        if self.record.format != FORMAT:
            raise ValueError(f"it is of format {self.record.format}, not {FORMAT}")
        dimension, v = self.projector.dimension, self.vectors
        if any(v[name].ndim != 2 or v[name].shape[1] != dimension for name in ("rules", "centres", "benign")):
            raise ValueError(f"its vectors do not have the {dimension} dimensions of its projector")
        if not self.rules or set(self.clusters) != set(range(len(v["centres"]))) or len(v["rules"]) != len(self.rules):
            raise ValueError("its rules, clusters and vectors are not of one number")


def grown(
    record: Record, projector: Projector, rules: Sequence[Rule], vectors: Floats, benign: Floats, tree: RuleTree
) -> Guard:
    """Grow a guard: put the rules into an empty tree by the unit vectors of their examples, in their order."""
    for number, (rule, vector) in enumerate(zip(rules, vectors, strict=True)):
        tree.add(rule.category, vector.astype(np.float64), number)
    clusters = [0] * len(rules)
    for place, cluster in enumerate(tree.clusters):
        for leaf in cluster.leaves:
            clusters[leaf] = place
    centres = np.stack([each.centre / np.linalg.norm(each.centre) for each in tree.clusters]).astype(np.float32)
    return Guard(record, projector, rules, clusters, {"rules": vectors, "centres": centres, "benign": benign})
