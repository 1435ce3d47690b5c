"""Fill a disk of 1 MiB with a collection, then look at it read-only; prints what came of each step, one JSON line each.

To be run where it may mount: `unshare --map-root-user --mount python -m tests.retrieval.small_disk FOLDER`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.retrieval.conftest import new_store, prepared, spec, unit
from waver.retrieval.base import RetrievalError
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.faiss_store import FaissStore
from waver.retrieval.library import FaissBackend


def step(name: str, work: Callable[[], object]) -> None:
    try:
        print(json.dumps([name, work()]))
    except RetrievalError as error:
        print(json.dumps([name, type(error).__name__, str(error)]))


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def main() -> None:
    disk, same = Path(sys.argv[1]) / "disk", Path(sys.argv[1]) / "same"
    disk.mkdir()
    same.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
    store, backend = new_store(disk), FaissBackend(RetrievalConfig(path=disk))

    def add(name: str, chunks: int) -> int:
        with store.writing() as writer:
            writer.add([prepared(name, 1, chunks)])
        return store.info().documents

    step("small", lambda: add("small", 5))
    step("large", lambda: add("large", 20_000))
    step("small again", lambda: add("again", 5))
    with (disk / "full").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    step("full", lambda: add("more", 500))
    step("find", lambda: len(store.find(unit(1)[0], "part3", 5, {})[0]))
    step("make", lambda: backend.create(spec("other")))
    (disk / "full").unlink()
    store.close()

    mount("--bind", disk, same)
    mount("-o", "remount,bind,ro", same)
    backend = FaissBackend(RetrievalConfig(path=same))
    step("open read-only", lambda: FaissStore(same / "notes").info().documents)
    step("make read-only", lambda: backend.create(spec("other")))
    step("delete read-only", lambda: backend.delete("notes", 0.1))


if __name__ == "__main__":
    main()
