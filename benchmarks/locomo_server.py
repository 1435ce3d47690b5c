"""Bring LoCoMo's conversations to a server over HTTP, and ask it what it remembers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from waver.benchmarks.asked import START
from waver.benchmarks.locomo_data import Conversation, session_of

DEPTH = 50
"""Turns, and sessions, of a ranking."""
QUIET = 20.0
"""Seconds without a new memory after which a conversation has been read."""


class Remembered:
    """A server's memories of conversations."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def bring(self, conversation: Conversation, user: str, policy: Mapping[str, Any]) -> dict[str, float]:
        """Bring a conversation, session by session, and wait until it has been read.

        Returns:
            `kept`: memories, or episodes, that were made. `seconds`: time from the first request until then, for each
            turn.
        """
        began = time.perf_counter()
        for number in dict.fromkeys(turn.session for turn in conversation.turns):
            said = [
                {"speaker": turn.speaker, "text": turn.text, "time": turn.time.isoformat(), "source": turn.id}
                for turn in conversation.turns
                if turn.session == number
            ]
            body = {"turns": said, "user": user, "conversation": f"session {number}", "policy": {**policy, "idle": 0.0}}
            self._post("/v1/memories", body)
        kept, ended = self._settled(user)
        return {"kept": kept, "seconds": (ended - began) / len(conversation.turns)}

    def _settled(self, user: str) -> tuple[int, float]:
        """Wait until no memory has come for a while; return how many there are, and when the last one was seen.

        Raises:
            TimeoutError: none has come at all.
        """
        count, since = 0, time.perf_counter()
        while not count or time.perf_counter() - since < QUIET:
            if not count and time.perf_counter() - since > START:
                raise TimeoutError(f"nothing of {user} was remembered within {START:.0f} s")
            lines = self._http.get("/v1/memories", params={"user": user}).raise_for_status().text.splitlines()
            now = sum(json.loads(line)["object"] in ("memory", "episode") for line in lines)
            if now != count:
                count, since = now, time.perf_counter()
            time.sleep(0.5)
        return count, since

    def turns(self, question: str, user: str) -> list[str]:
        """Return the turns that a question recalls, best first."""
        return [source for each in self._find(question, user, "memories") for source in each.get("sources", ())]

    def sessions(self, question: str, user: str) -> list[int]:
        """Return the sessions that a question recalls, best first."""
        found = self._find(question, user, "episodes")
        return [session_of(each["turns"][0]["source"]) for each in found]

    def _find(self, question: str, user: str, kind: str) -> list[dict[str, Any]]:
        body = {"query": question, "top_k": DEPTH, "user": user, "kind": kind}
        found: list[dict[str, Any]] = self._post("/v1/memories/search", body)["memories"]
        return found

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._http.post(path, json=body).raise_for_status().json()
