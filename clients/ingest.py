"""Run `waver ingest`: files into a collection, here or through a server, with a line for whatever was skipped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from rich.console import Console

from waver.progress import counted

PATIENCE = 120.0
"""Seconds for which a busy server is asked again."""
PARTLY = 3
"""The exit status where some of what was given was not taken in."""


class Outcome(Protocol):
    """The result for one file: `state` is `added`, `unchanged` or `skipped`; `warnings` say what was lost of it."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def chunks(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def warnings(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Uploaded:
    """An `Outcome` at a server."""

    id: str
    state: str
    chunks: int = 0
    bytes: int = 0
    reason: str = ""
    warnings: Sequence[str] = ()


class Refused(Exception):
    """The server cannot be used as asked; the message is for the user."""


def upload(
    files: Sequence[tuple[str, Path]], base_url: str, api_key: str | None, collection: str, metadata: str
) -> Iterator[Uploaded]:
    """Bring files, named as in `files`, into a server's collection, which is made if it is not there.

    Args:
        metadata: a JSON object that every document carries.

    Raises:
        Refused: the server does not answer, or refuses more than a single file.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=f"{base_url.rstrip('/')}/", headers=headers, timeout=600) as http:
        made = _send(http, "collections", json={"name": collection})
        if made.status_code not in (200, 409):
            raise Refused(_message(made))
        for name, file in files:
            try:
                name.encode()
                data = file.read_bytes()
            except UnicodeEncodeError:
                yield Uploaded(name, "skipped", reason="its name is not UTF-8")
                continue
            except OSError as error:
                yield Uploaded(name, "skipped", reason=error.strerror or "it cannot be read")
                continue
            part = {"file": (name, data, "application/octet-stream")}
            answer = _send(http, f"collections/{collection}/documents", files=part, data={"metadata": metadata})
            if answer.status_code in (400, 413):
                yield Uploaded(name, "skipped", reason=_message(answer))
            elif answer.status_code != 200:
                raise Refused(_message(answer))
            else:
                (taken,) = answer.json()["documents"]
                state = "unchanged" if taken.get("unchanged") else "added"
                yield Uploaded(name, state, taken["chunks"], len(data), warnings=taken.get("warnings", ()))


def _send(http: httpx.Client, path: str, **content: object) -> httpx.Response:
    """Send a POST, again and again while the server is busy."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answer = http.post(path, **content)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise Refused(f"{http.base_url} does not answer: {error}.") from error
        if answer.status_code not in (429, 503) or time.monotonic() > deadline:
            return answer
        time.sleep(min(float(answer.headers.get("retry-after", 1)), 10))


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers {answer.status_code}."


def show(outcomes: Iterable[Outcome], total: int, collection: str, as_json: bool = False) -> int:
    """Show progress on standard error and a summary at the end; `as_json`: that on standard output, as JSON.

    Returns:
        The exit status: 0 if all was taken in whole, 1 if every file was skipped, 3 if some were or lost something.
    """
    console = Console(stderr=True)
    counts = {"added": 0, "unchanged": 0, "skipped": 0}
    chunks = size = 0
    partly = False
    skipped: list[dict[str, str]] = []
    warned: list[dict[str, str]] = []
    begun = time.perf_counter()
    with counted(console) as progress:
        task = progress.add_task(f"into {collection}", total=total)
        for each in outcomes:
            counts[each.state] += 1
            chunks, size = chunks + each.chunks, size + each.bytes
            skipped += [{"id": each.id, "reason": each.reason}] * (each.state == "skipped")
            warned += [{"id": each.id, "warning": warning} for warning in each.warnings]
            partly = partly or each.state == "skipped" or bool(each.warnings)
            for line in [f"skipped {each.id}: {each.reason}"] * (each.state == "skipped") + [
                f"warning {each.id}: {warning}" for warning in each.warnings
            ]:
                printable = line.encode("utf-8", "backslashreplace").decode()
                console.print(printable, markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "added")
    seconds = time.perf_counter() - begun
    if as_json:
        made = {"collection": collection, **counts, "chunks": chunks, "bytes": size, "seconds": round(seconds, 3)}
        print(json.dumps({**made, "skipped_files": skipped, "warnings": warned}))  # ASCII: whatever a name holds
    console.print(f"{collection}: {said}; {chunks} chunks, {size / 1e6:.1f} MB in {seconds:.1f} s", highlight=False)
    return 1 if counts["skipped"] == total else PARTLY if partly else 0
