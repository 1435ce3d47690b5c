"""Score images against labels by a model with an image and a text encoder (CLIP and its relatives)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from waver.engines.base import reason
from waver.entropy.debiased import Array

TEMPLATE = "a photo of a {}."


class ZeroShot:
    """A zero-shot image classifier with its labels.

    Args:
        model: a folder, or a name. labels: their words. templates: sentences with `{}` for the label; a label's vector
            is the mean of theirs.

    Raises:
        ValueError: it cannot be loaded, or is another kind of model; the message says why.
    """

    def __init__(self, model: str, labels: Sequence[str], templates: Sequence[str] = ()) -> None:
        disable_progress_bar()
        local: dict[str, Any] = {"local_files_only": Path(model).is_dir()}
        try:
            self.model = AutoModelForZeroShotImageClassification.from_pretrained(model, use_safetensors=True, **local)
            self.processor = AutoImageProcessor.from_pretrained(model, backend="pil", **local)
            tokenizer = AutoTokenizer.from_pretrained(model, **local)
        except Exception as error:  # transformers, safetensors and the tokenizers each raise their own kinds
            raise ValueError(f"cannot load {model!r} as a zero-shot image classifier: {reason(error)}") from error
        if not hasattr(self.model, "logit_scale"):
            raise ValueError(f"{model!r} has no logit_scale: it is no model of CLIP's kind")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval()
        self.size = _size(self.processor)
        self.text = self._text(tokenizer, labels, templates or (TEMPLATE,))

    @torch.inference_mode()
    def _text(self, tokenizer: Any, labels: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Compute the labels' vectors, `[labels, width]`, each of length 1."""
        found = []
        for label in labels:
            words = tokenizer([each.replace("{}", label) for each in templates], padding=True, return_tensors="pt")
            own = _pooled(self.model.get_text_features(**words.to(self.device)))
            found.append((own / own.norm(dim=-1, keepdim=True)).mean(0))
        return torch.nn.functional.normalize(torch.stack(found), dim=-1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Any], batch: int = 64) -> Array:
        """Compute logits `[images, labels]`: cosines times the model's own scale (100 for CLIP)."""
        found = []
        for place in range(0, len(images), batch):
            made = self.processor(images=list(images[place : place + batch]), return_tensors="pt").to(self.device)
            own = _pooled(self.model.get_image_features(pixel_values=made["pixel_values"]))
            cosines = (own / own.norm(dim=-1, keepdim=True)) @ self.text.T
            found.append((cosines * self.model.logit_scale.exp()).double().cpu().numpy())
        return np.concatenate(found)


def _pooled(found: Any) -> torch.Tensor:
    """Return the projected vectors, which transformers 5 wraps in an output object."""
    made: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
    return made


def _size(processor: Any) -> int:
    """Return the side of the images that the model takes, in pixels."""
    crop = getattr(processor, "crop_size", None) or processor.size
    return int(crop.get("height") or crop.get("shortest_edge"))
