"""A router: which kind of request a text is, by a projector that learns new kinds from a few examples (Mamba-FSCIL,
arXiv 2407.06136).

It is a folder with `router.safetensors` (weights, the fixed simplex and the mean map of each kind) and `router.json`
(the `Record`). A text is cut into `PIECES` pieces, whose sentence embeddings are the tokens of its feature map; a
router fits one embedder and is refused by others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from waver.engines.base import reason
from waver.engines.selective import Projector, Shape, cosines

PIECES = 4
CAPACITY = 64
"""Kinds that a router can ever learn; the simplex has a place for each from the start."""
SHARPNESS = 16.0
"""Factor of cosines before their softmax; the paper has no probabilities."""
WORD = re.compile(r"\S+")


def pieces(text: str) -> list[str]:
    """Cut a text into `PIECES` runs of words, as even as they come; a text of fewer words is repeated whole."""
    words = [match.span() for match in WORD.finditer(text)]
    if len(words) < PIECES:
        return [text] * PIECES
    ends = [round(i * len(words) / PIECES) for i in range(PIECES + 1)]
    return [text[words[a][0] : words[b - 1][1]] for a, b in pairwise(ends)]


def as_maps(vectors: Any) -> torch.Tensor:
    """Turn the embeddings of the pieces of several texts, `[texts * PIECES, channels]`, into feature maps `[texts,
    PIECES, channels]` whose entries have a mean square of about 1."""
    flat = torch.as_tensor(vectors, dtype=torch.float32)
    return flat.reshape(-1, PIECES, flat.shape[-1]) * math.sqrt(flat.shape[-1])


class Record(BaseModel):
    """The purpose of a router and what it has learned.

    `kinds` are the names in the order of the simplex, of which the first `base` were learned in the first session.
    `embedder` and `fingerprint` name the model that made its maps. `learned` has the SHA-256 of each file of examples.
    """

    model_config = ConfigDict(extra="forbid")

    kinds: tuple[str, ...]
    base: int
    embedder: str
    fingerprint: str
    channels: int
    width: int
    learned: tuple[str, ...] = ()
    about: dict[str, Any] = {}


@dataclass(frozen=True)
class Choice:
    """The kind of a text, the probability of each kind, and their entropy as a share of the largest possible."""

    kind: str
    probabilities: dict[str, float]
    entropy: float


@dataclass(frozen=True)
class Router:
    """A projector with its simplex `[width, CAPACITY]` and the mean map of each kind `[kinds, PIECES, channels]`."""

    projector: Projector
    classifier: torch.Tensor
    means: torch.Tensor
    record: Record

    @torch.inference_mode()
    def cosines(self, maps: torch.Tensor) -> torch.Tensor:
        """Compute the cosines with the kinds, `[texts, kinds]`."""
        return cosines(self.projector(maps)[0], self.classifier, len(self.record.kinds))

    def __call__(self, maps: torch.Tensor) -> list[Choice]:
        """Choose a kind for each feature map."""
        found = []
        for row in (SHARPNESS * self.cosines(maps)).softmax(-1):
            entropy = float(-(row * row.clamp(min=1e-12).log()).sum()) / math.log(max(len(row), 2))
            named = dict(zip(self.record.kinds, row.tolist(), strict=True))
            found.append(Choice(self.record.kinds[int(row.argmax())], named, entropy))
        return found

    def save(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {**self.projector.state_dict(), "classifier": self.classifier, "means": self.means}
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "router.safetensors")
        (folder / "router.json").write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Read a folder.

        Raises:
            ValueError: there is no router, or it is damaged.
        """
        try:
            record = Record.model_validate_json((folder / "router.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "router.safetensors")
            classifier, means = tensors.pop("classifier"), tensors.pop("means")
            projector = Projector(shape_of(record.channels, record.width))
            if any(name.startswith("new.") for name in tensors):
                projector.begin_increments()
            projector.load_state_dict(tensors)
        except FileNotFoundError as error:
            raise ValueError(f"{folder} holds no router: {Path(error.filename).name} is missing") from error
        except (ValidationError, SafetensorError, KeyError, RuntimeError, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"the router in {folder} cannot be read: {reason(error)}") from error
        shapes = (record.width, CAPACITY), (len(record.kinds), PIECES, record.channels)
        if (tuple(classifier.shape), tuple(means.shape)) != shapes or not 0 < record.base <= len(record.kinds):
            raise ValueError(f"the router in {folder} cannot be read: its parts do not fit together")
        return cls(projector.eval(), classifier, means, record)

    def misfit(self, embedder: str, fingerprint: str) -> str | None:
        """Explain why an embedder does not fit; None where it does."""
        if self.record.fingerprint != fingerprint:
            return f"this router was trained with the embedder {self.record.embedder!r}, and {embedder!r} is another"
        return None


def shape_of(channels: int, width: int = CAPACITY) -> Shape:
    """Return the sizes of a router's projector: one row of pieces, scanned forwards and backwards."""
    return Shape(channels, 1, PIECES, width)


def texts_of(texts: Sequence[str]) -> list[str]:
    """List the pieces of several texts, `PIECES` of each."""
    return [piece for text in texts for piece in pieces(text)]
