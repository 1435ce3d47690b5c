"""The process in which `retrieval.parsing` reads documents: bytes in, text out, within bounds on memory and files.

A request is a line of JSON (`kind`, `bytes`, `most`) and the document's bytes; the answer is a line of JSON (`title`
and `bytes`, or `error` and `message`) and the text in UTF-8.
"""

from __future__ import annotations

import json
import sys
from typing import BinaryIO

from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.formats import READERS, clean


def bound(memory: int) -> None:
    """Let this process have so many bytes of address space, write no files and leave no core dump."""
    try:
        import resource
    except ImportError:  # Windows: the time limit is all there is
        return
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side closes, or until memory ran out once."""
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["bytes"])
        text, going_on = b"", True
        answer: dict[str, object]
        try:
            title, found = READERS[request["kind"]](data, request["most"])
            text = clean(found).encode("utf-8", "replace")
            if len(text) > request["most"]:
                raise TooLarge(f"its text is larger than {request['most']} bytes")
            answer = {"title": clean(title)[:500], "bytes": len(text)}
        except (BadDocument, TooLarge) as error:
            text, answer = b"", {"error": type(error).__name__, "message": str(error)}
        except (MemoryError, RecursionError):
            text, going_on = b"", False
            answer = {"error": "TooLarge", "message": "reading it takes more memory than is allowed"}
        answers.write(json.dumps(answer).encode() + b"\n" + text)
        answers.flush()
        if not going_on:
            return


def main() -> None:
    bound(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer)
