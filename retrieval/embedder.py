"""Embed texts as unit vectors with any sentence-transformers model, loaded on first use."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
BATCH_TOKENS = 2048
"""Tokens of a batch, padding included: a question waits for one batch of documents at most."""
CHARACTERS_A_TOKEN = 64
AT_ONCE = 2**17
"""Characters that are tokenised at once: what the tokenizer made of them is freed under the interpreter's lock, which
for 8 MB of short tokens is noticed in every stream."""
Precision = Literal["float32", "bfloat16"]
Role = Literal["query", "document"]
PROMPTS: dict[Role | None, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage"), None: ()}
"""Names under which a model may keep the words that it wants in front of a question or of a document."""
LONG_WORD = 64
_LETTER = "0-9A-Za-z\u00c0-\u024f\u0370-\u052f"
_LONG = re.compile(f"[{_LETTER}]{{{LONG_WORD}}}(?=[{_LETTER}])")


def uncut(tokenizer: Any) -> Any:
    """Copy the backend of a tokenizer that neither cuts nor pads: where one cuts is part of its state."""
    plain = copy.deepcopy(tokenizer.backend_tokenizer)
    plain.no_truncation()
    plain.no_padding()
    return plain


def missing(error: ImportError) -> Unavailable:
    """Return the error that says which package retrieval lacks and how to install it."""
    return Unavailable(f"Retrieval needs packages that are not installed ({error.name}): {how_to_install('retrieval')}")


class Embedder:
    """A sentence-transformers model under its configured name. Every method may be called from any thread.

    Raises:
        Unavailable: on first use; it cannot be loaded.
    """

    def __init__(self, name: str, device: str = "cpu", precision: Precision = "float32") -> None:
        self.name = name
        self._device, self._precision = device, precision
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
                self._plain = uncut(model.tokenizer)
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
        """Return how many tokens of a text the model reads, without its special tokens and its prompt."""
        tokenizer: Any = self.model.tokenizer
        length = self.model.max_seq_length or tokenizer.model_max_length
        prompts = [self._prompt(role) for role in PROMPTS]
        prompt = max(self.count(prompts)) if any(prompts) else 0
        return int(length) - int(tokenizer.num_special_tokens_to_add()) - prompt

    @property
    def most_characters(self) -> int:
        """Return how many characters of a text are tokenised: more than its tokens cover, except for very long
        words."""
        return CHARACTERS_A_TOKEN * self.most_tokens

    def offsets(self, texts: Sequence[str]) -> list[Offsets]:
        """Return the character ranges of each text's tokens, `[tokens, 2]`, for `waver.retrieval.chunking`."""
        assert self.model
        return [
            np.array(each.offsets, np.int64).reshape(-1, 2)
            for some in portions(texts, AT_ONCE)
            for each in self._plain.encode_batch(some, add_special_tokens=False)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without special tokens."""
        return [len(spans) for spans in self.offsets([broken(text) for text in texts])]

    def unread(self, text: str) -> int:
        """Return how many tokens of a question are beyond what the model reads."""
        if len(text) <= self.most_tokens:
            return 0
        return max(self.count([text])[0] - self.most_tokens, 0)

    def _prompt(self, role: Role | None) -> str:
        known: Mapping[str, str | None] = self.model.prompts or {}
        return next((prompt for name in PROMPTS[role] if (prompt := known.get(name))), "")

    def embed(
        self,
        texts: Sequence[str],
        token: CancelToken | None = None,
        role: Role | None = None,
        done: Callable[[int], None] | None = None,
    ) -> Vectors:
        """Return unit vectors `[texts, dimension]`. Text beyond `most_tokens` is ignored.

        Args:
            role: what the texts are, for models that want to be told.
            done: called after each batch with the number of its texts.

        Raises:
            Cancelled: `token` was, before the last batch.
        """
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        model, most, prompt = self.model, self.most_characters, self._prompt(role)
        places: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            places.setdefault(broken(text[:most]), []).append(i)  # the same text is embedded once
        distinct = list(places)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for batch in batches([len(spans) for spans in self.offsets(distinct)], self.most_tokens):
            if token is not None:
                token.check()
            with self._running, self._rounding():
                found = model.encode(
                    [distinct[i] for i in batch],
                    prompt=prompt,
                    batch_size=len(batch),
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )
            for i, vector in zip(batch, found, strict=True):
                vectors[places[distinct[i]]] = vector
            if done is not None:
                done(sum(len(places[distinct[i]]) for i in batch))
        return vectors

    def _rounding(self) -> AbstractContextManager[object]:
        """Return the context in which matrices are multiplied in the embedder's precision."""
        if self._precision == "float32":
            return nullcontext()
        import torch

        return torch.autocast(torch.device(self._device).type, dtype=torch.bfloat16)

    def forget(self) -> None:
        """Forget the questions whose vectors are remembered."""
        self._asked.clear()

    def question(self, text: str) -> Vectors:
        """Return the unit vector `[dimension]` of a question; recent ones are cached."""
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        try:
            self._asked.move_to_end(key)
            return self._asked[key]
        except KeyError:
            vector: Vectors = self.embed([text], role="query")[0]
            vector.flags.writeable = False
        self._asked[key] = vector
        while len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        return vector


def broken(text: str) -> str:
    """Return a text with very long words in parts: some tokenizers read each of them as one unknown word."""
    return _LONG.sub(r"\g<0> ", text)


def portions(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    """Yield the texts in order, some at a time: of at most so many characters together, or a single longer one."""
    some: list[str] = []
    length = 0
    for text in texts:
        if some and length + len(text) > most:
            yield some
            some, length = [], 0
        some.append(text)
        length += len(text)
    if some:
        yield some


def batches(lengths: Sequence[int], most: int, budget: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Yield the texts of each batch, by length, the longest first, so that little of a batch is padding.

    Args:
        lengths: tokens of each text.
        most: tokens of a text that are read.
        budget: tokens of a batch, all padded to its longest.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * max(1, min(lengths[batch[0]], most)) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def quietly(name: str, folder: Path, kind: str) -> Iterator[None]:
    """Load a model without a progress bar.

    Raises:
        Unavailable: it cannot be loaded, or what it needs is not installed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import sentence_transformers  # noqa: F401
        from transformers.utils import logging
    except ImportError as error:
        raise missing(error) from error
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(str(folder), folder.name)
        raise Unavailable(f"The {kind} '{name}' cannot be loaded: {reason}") from error
    finally:
        if bar:
            logging.enable_progress_bar()


def _load(folder: Path, name: str, device: str) -> SentenceTransformer:
    with quietly(name, folder, "embedder"):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        raise Unavailable(f"The embedder '{name}' has no fast tokenizer, which chunking needs.")
    return model.eval()
