"""Tell whether a text follows from another, by any model of transformers that was trained on entailment (NLI)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 16
LONGEST = 512
"""Tokens of a pair that are read at most."""
Pair = tuple[str, str]
"""A text, and what may follow from it."""


class Entailment:
    """A model for sequence classification, one of whose classes is entailment. Pairs are read in a thread, those of one
    caller at a time."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Take a model and its tokenizer.

        Raises:
            ValueError: no class of the model, or more than one, is called entailment.
        """
        labels = {int(i): str(name).lower() for i, name in (model.config.id2label or {}).items()}
        found = [i for i, name in labels.items() if name.startswith("entail")]
        if len(found) != 1:
            raise ValueError(f"one of its classes should be called entailment; they are {', '.join(labels.values())}")
        self._model, self._tokenizer, self._class = model.eval(), tokenizer, found[0]
        most = getattr(model.config, "max_position_embeddings", None) or LONGEST
        self._most = min(LONGEST, most, getattr(tokenizer, "model_max_length", LONGEST))
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="entailment")

    @classmethod
    def load(cls, folder: str) -> Entailment:
        """Read a folder with weights as safetensors; blocks.

        Raises:
            ValueError: there is no such model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            if not Path(folder).is_dir():
                raise ValueError(f"{folder} is no folder")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="float32"
            )
            return cls(model, tokenizer)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"the model cannot be used: {str(error).splitlines()[0]}") from error

    async def probabilities(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return how probably the second text of each pair follows from the first, `[pairs]`. Who no longer waits ends
        it behind the batch that is being read."""
        stop = threading.Event()
        running = asyncio.get_running_loop().run_in_executor(self._threads, self.read, pairs, stop)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({running})
            raise

    def read(self, pairs: Sequence[Pair], stop: threading.Event | None = None) -> NDArray[np.float64]:
        """Do the same in the calling thread; `stop` ends it early, with 0 for the rest."""
        import torch

        out = np.zeros(len(pairs))
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        for start in range(0, len(order), BATCH):
            if stop is not None and stop.is_set():
                break
            places = order[start : start + BATCH]
            first, second = ([pairs[i][side] for i in places] for side in (0, 1))
            given = self._tokenizer(
                first, second, padding=True, truncation=True, max_length=self._most, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self._model(**given).logits
            out[places] = logits.double().softmax(-1)[:, self._class].numpy()
        return out
