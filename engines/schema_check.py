"""Check in a process that can be killed whether a JSON schema can be enforced.

A compiled grammar cannot leave the process that made it. So that process only checks that a schema compiles, and that
masks can be made for the first tokens, within bounds on time and memory; a schema that passes is compiled again where
it is needed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waver.engines.tokens import TokenText
from waver.isolation import Exhausted, Overdue, Workers

WORKER = Path(__file__).with_name("schema_check_worker.py")
REMEMBERED = 512
"""Schemas whose result is kept, good or bad."""
DOUBTED = 30.0
"""Seconds for which a schema is refused that took too much time or memory: the machine may just have been busy."""


class SchemaChecker:
    """Checks schemas with one tokenizer. Every method may be called from any thread, and blocks.

    Args:
        seconds: for one schema. memory: address space of the process, in bytes.
    """

    def __init__(self, tokens: TokenText, seconds: float, memory: int) -> None:
        self._tokens, self._seconds = tokens, seconds
        self._workers = Workers(WORKER, memory, at_once=2, opening=self._opening)
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        """Error messages by a schema's hash, and until when each holds."""
        self._trying: dict[bytes, threading.Lock] = {}
        self._lock = threading.Lock()

    def _opening(self) -> tuple[Mapping[str, Any], bytes]:
        backend = getattr(self._tokens.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("this model's tokenizer cannot be guided")
        plain = copy.copy(backend)
        plain.no_padding()
        plain.no_truncation()
        header = {"open": True, "vocabulary": self._tokens.vocab_size, "eos": list(self._tokens.eos_ids)}
        return header, plain.to_str().encode()

    def known(self, schema: str) -> str | None:
        """Look up the error message of a schema that was checked lately: empty if it passed; None if it was not
        checked."""
        return self._recall(digest(schema))

    def _recall(self, key: bytes) -> str | None:
        with self._lock:
            complaint, until = self._known.get(key, ("", 0.0))
            if time.monotonic() >= until:
                return None
            self._known.move_to_end(key)
            return complaint

    def complaint(self, schema: str) -> str:
        """Check a schema, and return an error message; empty if it passes. Concurrent calls check it once."""
        key = digest(schema)
        with self._lock:
            turn = self._trying.setdefault(key, threading.Lock())
        with turn:
            found = self._recall(key)
            if found is None:
                found, lasting = self._try(schema)
                with self._lock:
                    self._known[key] = found, math.inf if lasting else time.monotonic() + DOUBTED
                    while len(self._known) > REMEMBERED:
                        self._known.popitem(last=False)
        with self._lock:
            self._trying.pop(key, None)
        return found

    def _try(self, schema: str) -> tuple[str, bool]:
        """Check a schema in a worker; the error message, and whether it would be the same another time."""
        try:
            return str(self._workers.ask({}, schema.encode(), self._seconds)[0]["complaint"]), True
        except Overdue:
            return f"it takes longer than {self._seconds:g} s to compile; simplify it", False
        except Exhausted:
            return "it takes more memory to compile than is allowed; simplify it", False
        except ValueError as error:
            return str(error), True

    def warm(self) -> None:
        """Start a worker, so that the first request does not wait for one. Where none can be started, requests are
        refused with the reason."""
        self.complaint(json.dumps({"type": "object"}))

    def close(self) -> None:
        """End the workers."""
        self._workers.close()


def digest(schema: str) -> bytes:
    """Hash a schema: results are kept by it, as a schema may be large."""
    return hashlib.blake2b(schema.encode(), digest_size=16).digest()
