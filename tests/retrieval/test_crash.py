"""kill -9 at random points of an ingestion: the collection is before or after, never between, and answers.

WAVER_KILLS says how often; 50 were run before release.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.retrieval.conftest import new_store, prepared, unit
from tests.retrieval.writing import CHUNKS, DOCUMENTS, write
from waver.retrieval.faiss_store import FaissStore

KILLS = int(os.environ.get("WAVER_KILLS", "6"))
ROOT = Path(__file__).resolve().parents[2]


def state(store: FaissStore) -> int:
    """The one seed that all documents have, by meaning, by words and by count."""
    total = DOCUMENTS * CHUNKS
    assert (store.info().documents, store.info().chunks) == (DOCUMENTS, total)
    dense, lexical = store.find(unit(0)[0], "part3", total, {})
    seeds = {p.text.split()[1] for p in dense}
    assert len(dense) == total
    assert len(lexical) == DOCUMENTS
    assert {p.text.split()[1] for p in lexical} == seeds
    (seed,) = seeds
    return int(seed.removeprefix("seed"))


def test_killed_at_random_points(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store.folder, 0, staged=False)
    store.close()
    draw = random.Random()
    last, reached = 0, 0
    for _ in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.retrieval.writing", str(store.folder), str(last + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
            finished = [int(line) for line in process.stdout.read().split()]
        store = FaissStore(store.folder)
        before = finished[-1] if finished else last
        last = state(store)
        assert last in (before, before + 1)
        reached += len(finished)
        with store.writing() as writer:
            writer.add([prepared("extra", 1)])
            assert writer.remove("extra")
        assert state(store) == last
        with store.writing():
            left = {file.name for file in store.folder.glob("*.faiss")}
        with store.database.reading() as db:
            named = {row[0] for row in db.execute("SELECT file FROM segments")}
        assert left == named
        store.close()
    assert reached > 0
