"""A process that hammers one store for one owner until it is killed: in each round a fact and its twin, which belong
into one transaction, a window of turns, and now and then an erasure of everything."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.retrieval.memory.test_memories import Clock, facts, opened, said


async def write(folder: Path, owner: str, start: int) -> None:
    memories = opened(folder, Clock())
    own = memories.of(owner)
    print("ready", flush=True)
    for i in range(start, start + 100_000):
        await own.add(facts(f"{owner} fact {i}", f"{owner} twin {i}"))
        await own.say(said(f"{owner} says {i}", f"{owner} hears {i}"), {"engine": owner}, 2, 0)
        if i % 20 == 19:
            await own.erase()
        print(i, flush=True)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
