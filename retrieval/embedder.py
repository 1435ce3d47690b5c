"""Embed texts as unit vectors with any sentence-transformers model, loaded on first use."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from waver.extras import how_to_install
from waver.retrieval.base import Unavailable, Vectors
from waver.retrieval.cancellation import CancelToken
from waver.retrieval.chunking import Offsets
from waver.retrieval.weights import check, locate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

REMEMBERED = 4096
"""Questions whose vectors are kept: 6 MiB at 384 dimensions."""
BATCH = 16
CHARACTERS_A_TOKEN = 64


def missing(error: ImportError) -> Unavailable:
    """Return the error that says which package retrieval lacks and how to install it."""
    return Unavailable(f"Retrieval needs packages that are not installed ({error.name}): {how_to_install('retrieval')}")


class Embedder:
    """A sentence-transformers model under its configured name. Every method may be called from any thread.

    Raises:
        Unavailable: on first use; it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self._device = device
        self._model: SentenceTransformer | None = None
        self._plain: Any = None
        self._fingerprint = ""
        self._loading, self._running = threading.Lock(), threading.Lock()
        self._asked: OrderedDict[bytes, Vectors] = OrderedDict()
        """Vectors of questions by their hashes: a question may be as long as its sender likes."""

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> SentenceTransformer:
        with self._loading:
            if self._model is None:
                folder = locate(self.name)
                self._fingerprint = check(folder, self.name)
                model = _load(folder, self.name, self._device)
                # A copy that never cuts: where a tokenizer cuts is part of its state.
                self._plain = copy.deepcopy(model.tokenizer.backend_tokenizer)
                self._plain.no_truncation()
                self._plain.no_padding()
                self._model = model
            return self._model

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights."""
        assert self.model
        return self._fingerprint

    @property
    def dimension(self) -> int:
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def most_tokens(self) -> int:
        """Return how many tokens of a text the model reads, without its special tokens."""
        tokenizer: Any = self.model.tokenizer
        length = self.model.max_seq_length or tokenizer.model_max_length
        return int(length) - int(tokenizer.num_special_tokens_to_add())

    @property
    def most_characters(self) -> int:
        """Return how many characters of a text are tokenised: more than its tokens cover, except for very long
        words."""
        return CHARACTERS_A_TOKEN * self.most_tokens

    def offsets(self, texts: Sequence[str]) -> list[Offsets]:
        """Return the character ranges of each text's tokens, `[tokens, 2]`, for `waver.retrieval.chunking`."""
        assert self.model
        found = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(each.offsets, np.int64).reshape(-1, 2) for each in found]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without special tokens."""
        return [len(spans) for spans in self.offsets(texts)]

    def embed(self, texts: Sequence[str], token: CancelToken | None = None) -> Vectors:
        """Return unit vectors `[texts, dimension]`. Text beyond `most_tokens` is ignored.

        Raises:
            Cancelled: `token` was, before the last batch.
        """
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        model, most = self.model, self.most_characters
        # By length, so that little is padding; batch by batch, so that a question need not wait for a whole document.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            if token is not None:
                token.check()
            with self._running:
                vectors[some] = model.encode(
                    [texts[i][:most] for i in some],
                    batch_size=BATCH,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
        return vectors

    def question(self, text: str) -> Vectors:
        """Return the unit vector `[dimension]` of a question; recent ones are cached."""
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        try:
            self._asked.move_to_end(key)
            return self._asked[key]
        except KeyError:
            vector: Vectors = self.embed([text])[0]
            vector.flags.writeable = False
        self._asked[key] = vector
        while len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        return vector


def _load(folder: Path, name: str, device: str) -> SentenceTransformer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise missing(error) from error
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(str(folder), folder.name)
        raise Unavailable(f"The embedder '{name}' cannot be loaded: {reason}") from error
    finally:
        if bar:
            logging.enable_progress_bar()
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        raise Unavailable(f"The embedder '{name}' has no fast tokenizer, which chunking needs.")
    return model.eval()
