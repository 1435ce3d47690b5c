"""Score pairs of texts with any cross-encoder of sentence-transformers, loaded on first use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from waver.retrieval.base import Unavailable
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.embedder import CHARACTERS_A_TOKEN, batches, broken, quietly, uncut
from waver.retrieval.weights import check_reranker, locate

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

HUB = "cross-encoder"
"""The owner of models that are named without one."""


@dataclass(frozen=True)
class Scored:
    """Scores `[pairs]`, the tokens that were read of all pairs, and how many pairs were longer than is read."""

    scores: npt.NDArray[np.float32]
    tokens: int
    cut: int


class Reranker:
    """A cross-encoder under its configured name. Every method may be called from any thread.

    Raises:
        Unavailable: on first use; it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self._device = device
        self._model: CrossEncoder | None = None
        self._plain: Any = None
        self._loading, self._running = threading.Lock(), threading.Lock()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> CrossEncoder:
        with self._loading:
            if self._model is None:
                folder = locate(self.name, HUB)
                check_reranker(folder, self.name)
                model = _load(folder, self.name, self._device)
                self._plain = uncut(model.tokenizer)
                self._model = model
            return self._model

    @property
    def most_tokens(self) -> int:
        """Return how many tokens of a pair the model reads, its special tokens included."""
        model = self.model
        return int(model.max_seq_length or model.tokenizer.model_max_length)

    def score(self, pairs: Sequence[tuple[str, str]], token: CancelToken | None = None) -> Scored:
        """Return how well the second text of each pair answers the first: higher is better, between 0 and 1 with the
        models' usual sigmoid. Of a pair beyond `most_tokens` the longer text is cut.

        Raises:
            Cancelled: `token` was, before the last batch.
        """
        if not pairs:
            return Scored(np.zeros(0, np.float32), 0, 0)
        model, most = self.model, self.most_tokens
        texts, lengths = self._measured(pairs)
        scores = np.empty(len(texts), np.float32)
        for batch in batches(lengths, most):
            if token is not None:
                token.check()
            with self._running:
                scores[batch] = model.predict([texts[i] for i in batch], batch_size=len(batch), show_progress_bar=False)
        return Scored(scores, sum(min(length, most) for length in lengths), sum(length > most for length in lengths))

    def count(self, pairs: Sequence[tuple[str, str]]) -> int:
        """Return how many tokens of pairs are read."""
        most = self.most_tokens
        return sum(min(length, most) for length in self._measured(pairs)[1])

    def _measured(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[int]]:
        """Return the texts of pairs as they are read, and the tokens of each pair."""
        characters = CHARACTERS_A_TOKEN * self.most_tokens
        texts = [(broken(a[:characters]), broken(b[:characters])) for a, b in pairs]
        return texts, [len(each.ids) for each in self._plain.encode_batch(texts)]


def _load(folder: Path, name: str, device: str) -> CrossEncoder:
    with quietly(name, folder, "reranker"):
        from sentence_transformers import CrossEncoder

        model: CrossEncoder = CrossEncoder(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        raise Unavailable(f"The reranker '{name}' has no fast tokenizer.")
    if model.num_labels != 1:
        raise Unavailable(f"The reranker '{name}' gives {model.num_labels} numbers to a pair; one is needed.")
    model.eval()
    return model
