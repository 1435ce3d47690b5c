"""Read the pictures of a conversation: data URLs, decoded in processes that can be killed. Nothing is ever fetched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from waver.engines.pictures import Picture
from waver.isolation import Exhausted, Overdue, Workers
from waver.server.chat_schemas import ImagePart, Message
from waver.server.errors import APIError, invalid
from waver.server.settings import ServerConfig

WORKER = Path(__file__).with_name("pictures_worker.py")
SECONDS = 10.0
MEMORY = 2 * 2**30
AT_ONCE = 2
TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif")
LONGEST_TYPE = 100
"""Characters of a data URL in front of its data."""


@dataclass(frozen=True)
class Sent:
    """A picture as it was sent: the numbers of its message and part, and its data URL."""

    message: int
    part: int
    url: str
    param: str = "messages"

    @property
    def place(self) -> str:
        return f"{self.param}[{self.message}].content[{self.part}]"


def sent(messages: Sequence[Message], param: str = "messages") -> list[Sent]:
    """List the pictures of a conversation."""
    return [
        Sent(i, j, part.url, param)
        for i, message in enumerate(messages)
        if isinstance(message.content, list)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def encoded(given: Sent, most: int) -> bytes:
    """Return the bytes of the file in a data URL.

    Raises:
        APIError: 400, it is none, of no such type, longer than `most` bytes, or not base64.
    """
    param = f"{given.place}.image_url"
    if not given.url[:5].lower() == "data:":
        raise invalid(
            f"{param}: pictures are never fetched, from any address: send the picture itself, as "
            "data:image/png;base64,...",
            param,
        )
    head, comma, data = given.url[5:].partition(",") if "," in given.url[: LONGEST_TYPE + 5] else ("", "", "")
    kind, *options = head.lower().split(";")
    if not comma or options[-1:] != ["base64"]:
        raise invalid(f"{param} should be a data URL in base64: data:image/png;base64,...", param)
    if kind not in TYPES:
        known = ", ".join(TYPES)
        raise invalid(f"{param}: pictures of the type '{kind[:40]}' are not read; there are: {known}.", param)
    if len(data) > 4 * -(-most // 3):
        raise invalid(f"{param}: the picture is larger than {most} bytes.", param)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{param}: the data is not base64.", param) from None


class Hold:
    """Stands for the memory of a picture, which is free again when this is gone."""


class Pictures:
    """Reader of pictures, bounded as the configuration says. Those of all requests share `max_total_image_bytes`."""

    def __init__(self, bounds: ServerConfig) -> None:
        self._bounds = bounds
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pictures")
        self._workers = Workers(WORKER, MEMORY, AT_ONCE)
        self._lock = threading.Lock()
        self.held = 0
        """Bytes of decoded pictures in memory."""

    async def read(self, given: Sequence[Sent]) -> tuple[Picture, ...]:
        """Decode the pictures of a request.

        Raises:
            APIError: 400, there are too many, or one cannot be read or is too large; 503, others' pictures take all the
                memory that there is for them.
        """
        most = self._bounds.max_images
        if len(given) > most:
            raise invalid(f"A request can have {most} pictures at most, not {len(given)}.", given[most].place)
        left = self._bounds.max_image_pixels
        found: list[Picture] = []
        for each in given:
            found.append(await asyncio.get_running_loop().run_in_executor(self._threads, self._read_one, each, left))
            left -= found[-1].width * found[-1].height
        return tuple(found)

    def _read_one(self, given: Sent, left: int) -> Picture:
        data = encoded(given, self._bounds.max_image_bytes)
        param = f"{given.place}.image_url"
        try:
            answer, pixels = self._workers.ask({"most": left}, data, SECONDS)
        except Overdue:
            raise invalid(f"{param}: the picture takes longer than {SECONDS:g} s to decode.", param) from None
        except Exhausted:
            raise invalid(f"{param}: the picture takes too much memory to decode.", param) from None
        if "pixels" in answer:
            most = self._bounds.max_image_pixels
            raise invalid(
                f"{param}: the picture {answer['flaw']}; the pictures of a request can have {most} together.", param
            )
        if "flaw" in answer:
            raise invalid(f"{param}: the picture {answer['flaw']}.", param)
        self._reserve(len(pixels))
        digest = hashlib.blake2b(pixels, digest_size=16, key=b"%d" % answer["width"]).hexdigest()
        hold = Hold()
        weakref.finalize(hold, self._release, len(pixels))
        return Picture(answer["width"], answer["height"], pixels, digest, hold=hold, url=given.url)

    def _reserve(self, size: int) -> None:
        with self._lock:
            if self.held + size > self._bounds.max_total_image_bytes:
                message = "Other requests' pictures take all the memory that there is for them; try again in a while."
                raise APIError(503, message, code="images_full", headers={"retry-after": "5"})
            self.held += size

    def _release(self, size: int) -> None:
        with self._lock:
            self.held -= size

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._workers.close()
