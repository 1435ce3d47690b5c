"""A process that writes to a collection until it is killed: replaces everything, state after state.

Each state is one transaction over several documents, so a collection is always in exactly one of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.retrieval.conftest import prepared
from waver.retrieval.faiss_store import FaissStore

DOCUMENTS, CHUNKS = 6, 40


def write(folder: Path, seed: int, staged: bool) -> None:
    store = FaissStore(folder)
    with store.writing() as writer:
        documents = [prepared(f"d{i}", seed, CHUNKS) for i in range(DOCUMENTS)]
        if staged:
            for each in documents:
                writer.stage([each])
            writer.publish([each.document.id for each in documents])
        else:
            writer.add(documents)
        writer.compact()
    store.close()


if __name__ == "__main__":
    begin = int(sys.argv[2])
    print("ready", flush=True)
    for seed in range(begin, begin + 10_000):
        write(Path(sys.argv[1]), seed, staged=seed % 2 == 0)
        print(seed, flush=True)
