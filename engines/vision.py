"""The pictures of a vision-language model: where they stand in a prompt, and what the model reads of them.

A chat template leaves one placeholder for each picture. The model's own processor says which tokens it stands for; they
take its place, so that a prompt's length, its context and its cost count them.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from waver.engines.base import Unsupported, reason
from waver.engines.pictures import Picture
from waver.engines.tokens import TokenText

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

KEPT = 2**28
"""Bytes of processed pictures that are kept, for later segments and choices of their prompts."""
PLACEHOLDERS = ("image_token", "boi_token")
"""Names that processors have for the token that stands for a picture in a template's text."""
PROBE = "qxjz"


@runtime_checkable
class Seeing(Protocol):
    """An engine whose model may take pictures."""

    vision: Vision | None


def vision_of(engine: object) -> Vision | None:
    """Return what an engine reads pictures with; None where its model takes none."""
    return engine.vision if isinstance(engine, Seeing) else None


def takes_pictures(model: str, **options: Any) -> bool:
    """Return whether transformers knows a model (a directory or hub id) as one of images and texts.

    Raises:
        Exception: its configuration cannot be read.
    """
    config = AutoConfig.from_pretrained(model, **options)
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return known and not config.is_encoder_decoder and config.get_text_config() is not config


def model_class(model: str, **options: Any) -> Any:
    """Choose the class that loads a model.

    Raises:
        Exception: its configuration cannot be read.
    """
    return AutoModelForImageTextToText if takes_pictures(model, **options) else AutoModelForCausalLM


class Vision:
    """A processor of images and texts, with the tokens of its prompts.

    Raises:
        ValueError: the chat template has no place for a picture.
    """

    def __init__(self, processor: Any, tokens: TokenText) -> None:
        self._processor = processor
        if not tokens.tokenizer.chat_template:
            tokens.tokenizer.chat_template = processor.chat_template
        self.placeholder, self._text = _placeholder(processor, tokens)
        own = getattr(processor, "image_token_id", None)
        self.image_token: int = self.placeholder if own is None else int(own)
        self._turn = threading.Lock()
        self._known: OrderedDict[tuple[str, ...], dict[str, torch.Tensor]] = OrderedDict()
        self._size = 0

    @classmethod
    def load(cls, model: str, tokens: TokenText, **options: Any) -> Vision | None:
        """Load the processor of a model; None, and a warning, where there is none that works here."""
        try:
            # Pillow resizes as the models were trained; torchvision's way differs, and may not be there.
            return cls(AutoProcessor.from_pretrained(model, backend="pil", **options), tokens)
        except Exception as error:  # processors miss packages, files and each other in many ways
            log.warning("%s is served without pictures: its processor cannot be used: %s", model, reason(error))
            return None

    def with_tokens(self, tokens: TokenText) -> Vision:
        """Return the same with another chat template.

        Raises:
            ValueError: it has no place for a picture.
        """
        return Vision(self._processor, tokens)

    def place(self, ids: Sequence[int], pictures: Sequence[Picture]) -> tuple[list[int], tuple[Picture, ...]]:
        """Put the tokens of pictures in the places that a chat template left for them; blocks.

        Raises:
            Unsupported: the template has not as many places, or the processor refuses a picture.
        """
        places = [i for i, token in enumerate(ids) if token == self.placeholder]
        if len(places) != len(pictures):
            raise Unsupported(
                f"the chat template has {len(places)} places for {len(pictures)} pictures in this conversation",
                "messages",
            )
        placed = tuple(replace(picture, tokens=self._tokens(picture)) for picture in pictures)
        out: list[int] = []
        done = 0
        for at, picture in zip(places, placed, strict=True):
            out += [*ids[done:at], *picture.tokens]
            done = at + 1
        return [*out, *ids[done:]], placed

    def check(self, ids: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Check that the tokens of pictures in a prompt are those of its pictures.

        Raises:
            Unsupported: they are not.
        """
        count = _count(ids, self.marks)
        if count != sum(_count(picture.tokens, self.marks) for picture in pictures):
            raise Unsupported(
                "the prompt has tokens that stand for pictures, which are not there: this policy does not take the "
                "pictures along"
                if not pictures
                else "the prompt has other pictures than the request",
                "messages",
            )

    @property
    def marks(self) -> tuple[int, ...]:
        """The ids that stand for pictures, and for nothing else."""
        return tuple({self.placeholder, self.image_token})

    def collapse(self, ids: Sequence[int], pictures: Sequence[Picture]) -> list[int]:
        """Undo `place`: one placeholder for each picture."""
        out: list[int] = []
        done = 0
        for start, picture in zip(self.starts(ids, pictures), pictures, strict=True):
            out += [*ids[done:start], self.placeholder]
            done = start + len(picture.tokens)
        return [*out, *ids[done:]]

    def starts(self, ids: Sequence[int], pictures: Sequence[Picture]) -> list[int]:
        """Find where the tokens of each picture begin.

        Raises:
            Unsupported: those of one are not there.
        """
        found: list[int] = []
        ids, at = list(ids), 0
        for picture in pictures:
            own = list(picture.tokens)
            try:
                at = ids.index(own[0], at)
                while ids[at : at + len(own)] != own:
                    at = ids.index(own[0], at + 1)
            except ValueError:
                raise Unsupported("a picture's tokens are not in the prompt", "messages") from None
            found.append(at)
            at += len(own)
        return found

    def inputs(self, ids: Sequence[int], pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """Make what the model reads beside a prompt's ids: pixels, and marks `[1, tokens]` of which tokens are whose;
        blocks.

        Raises:
            Unsupported: the processor refuses the pictures.
        """
        key = tuple(picture.digest for picture in pictures)
        made = self._processed(key, pictures)
        length = made["input_ids"].shape[1]
        out = {}
        for name, value in made.items():
            if name in ("input_ids", "attention_mask"):
                continue
            if value.shape == (1, length):  # a number for each token, of the pictures' tokens alone
                whole, done = torch.zeros(1, len(ids), dtype=value.dtype), 0
                for start, picture in zip(self.starts(ids, pictures), pictures, strict=True):
                    size = len(picture.tokens)
                    whole[:, start : start + size] = value[:, done : done + size]
                    done += size
                value = whole
            out[name] = value
        return out

    def _tokens(self, picture: Picture) -> tuple[int, ...]:
        """Find the tokens that stand for a picture."""
        return tuple(self._processed((picture.digest,), [picture])["input_ids"][0].tolist())

    def _processed(self, key: tuple[str, ...], pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """Process pictures, or find those of this key processed already."""
        with self._turn:
            found = self._known.pop(key, None)
            if found is None:
                found = self._process([image(picture) for picture in pictures])
                self._size += _bytes(found)
            self._known[key] = found
            while self._size > KEPT and len(self._known) > 1:
                self._size -= _bytes(self._known.popitem(last=False)[1])
            return found

    def _process(self, images: list[Image]) -> dict[str, torch.Tensor]:
        try:
            made = self._processor(
                text=[self._text * len(images)], images=images, return_tensors="pt", add_special_tokens=False
            )
        except ValueError as error:  # an aspect ratio beyond what it takes, say
            raise Unsupported(f"the model's processor refuses a picture: {reason(error)}", "messages") from error
        return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}


def image(picture: Picture) -> Image:
    """Make Pillow's image of a picture."""
    from PIL import Image

    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(each.nbytes for each in tensors.values())


def _count(ids: Sequence[int], marks: Sequence[int]) -> int:
    return sum(ids.count(mark) for mark in marks)


def _placeholder(processor: Any, tokens: TokenText) -> tuple[int, str]:
    """Find the token that the chat template leaves for a picture, and its text. Tells the tokenizer, too, whether the
    template wants every content as a list of parts.

    Raises:
        ValueError: the template leaves none.
    """
    tokens.content_as_parts = PROBE not in tokens.decode(tokens.chat([{"role": "user", "content": PROBE}]))
    parts = [{"type": "image"}, {"type": "text", "text": PROBE}]
    ids = tokens.chat([{"role": "user", "content": parts}])
    for name in PLACEHOLDERS:
        text = getattr(processor, name, None)
        token = tokens.tokenizer.convert_tokens_to_ids(text) if isinstance(text, str) else None
        if isinstance(token, int) and ids.count(token) == 1 and PROBE in tokens.decode(ids):
            return token, str(text)
    raise ValueError("its chat template leaves no place for a picture")
