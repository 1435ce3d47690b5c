"""Write to the stores of one folder for one owner until killed: the writer of `memory_kills.py`, in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from waver.retrieval.base import Vectors
from waver.retrieval.memory.config import MemoryConfig
from waver.retrieval.memory.episode import Episode, Utterance
from waver.retrieval.memory.episodes import Episodes, Linking
from waver.retrieval.memory.facts import Facts, Statement
from waver.retrieval.memory.memories import Memories
from waver.retrieval.memory.turns import Turn
from waver.retrieval.memory.unit import Unit

ERASED_EVERY = 20
"""Rounds after which an owner's memories are erased."""
NOW = 1_800_000_000.0


class Hashed:
    """An embedder of hashed words, which takes no model."""

    dimension, loaded, fingerprint = 64, True, "hashed"

    @property
    def model(self) -> Any:
        return self

    def embed(self, texts: Sequence[str]) -> Vectors:
        out = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % self.dimension] += 1
            row /= max(float(np.linalg.norm(row)), 1e-9)
        return out

    def question(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text])[0]
        return vector


class Stores:
    """The three stores of a folder."""

    def __init__(self, folder: Path) -> None:
        embedder: Any = Hashed()
        config = MemoryConfig()
        self.memories = Memories(folder, config, lambda: embedder, lambda: NOW)
        self.episodes = Episodes(folder, config, lambda: embedder, lambda: NOW)
        self.facts = Facts(folder, config.max_facts, config.lock_seconds, lambda: embedder, lambda: NOW)

    @property
    def each(self) -> tuple[Memories, Episodes, Facts]:
        return self.memories, self.episodes, self.facts

    def close(self) -> None:
        for store in self.each:
            store.close()


async def write(folder: Path, owner: str, start: int, done: Connection) -> None:
    """Write round after round, and tell the number of each once all of it has been acknowledged.

    A round is a memory and its twin, which belong into one transaction; two turns of a conversation; an episode; a fact
    in place of the one before; and now and then the erasure of all memories.
    """
    stores = Stores(folder)
    memories, episodes, facts = stores.memories.of(owner), stores.episodes.of(owner), stores.facts.of(owner)
    done.send(-1)
    for i in range(start, start + 100_000):
        await memories.add([Unit(content=f"{owner} fact {i}"), Unit(content=f"{owner} twin {i}")])
        said = [Turn(owner, f"{owner} says {i}", NOW), Turn("assistant", f"{owner} hears {i}", NOW)]
        await memories.say(said, {"engine": owner}, 2, 0)
        turns = tuple(Utterance(speaker=each.speaker, text=each.text) for each in said)
        await episodes.add([Episode(turns=turns)], Linking())
        await facts.add([Statement(text=f"{owner} is at {i}", subject=owner, relation="place")])
        if i % ERASED_EVERY == ERASED_EVERY - 1:
            await memories.erase()
        done.send(i)


def run(folder: str, owner: str, start: int, done: Connection, statement: int | None) -> None:
    """Write until killed; by its own hand before SQL statement number `statement`, if that is given."""
    if statement is not None:
        _die_at(statement)
    asyncio.run(write(Path(folder), owner, start, done))


def _die_at(statement: int) -> None:
    """Kill this process with SIGKILL when SQLite begins so many statements."""
    count, connect = [0], sqlite3.connect

    def begun(_: str) -> None:
        count[0] += 1
        if count[0] == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*arguments, **options)
        db.set_trace_callback(begun)
        return db

    sqlite3.connect = traced  # type: ignore[assignment]
