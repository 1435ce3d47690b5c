"""Two owners write to one store in two processes and are killed with SIGKILL at random points.

Nothing is half-written, nothing of one is in the other's, and what was acknowledged is there. WAVER_KILLS says how
often; 50 were run before release.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.retrieval.memory.test_memories import Clock, opened

KILLS = int(os.environ.get("WAVER_KILLS", "4"))
ROOT = Path(__file__).resolve().parents[3]
OWNERS = ("anna", "bob")


async def check(folder: Path, acknowledged: dict[str, int | None]) -> None:
    """Both owners' states are whole, and apart."""
    memories = opened(folder, Clock())
    try:
        with memories.file.changing() as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        for owner in OWNERS:
            own = memories.of(owner)
            contents = [each.unit.content for each in await own.page()]
            assert all(content.startswith(f"{owner} ") for content in contents)
            halves = [{int(c.split()[-1]) for c in contents if kind in c} for kind in ("fact", "twin")]
            assert halves[0] == halves[1]
            last = acknowledged[owner]
            if last is not None and last % 20 != 19 and halves[0]:
                assert last in halves[0]
            assert len((await own.index()).memories) == len(contents)
            assert all(str(turn["text"]).startswith(f"{owner} ") for turn in await own.waiting())
        while (work := await memories.claim()) is not None:
            assert work.settings == {"engine": work.owner_name}
            assert {turn.text.split()[0] for turn in work.turns} == {work.owner_name}
            assert len(work.turns) % 2 == 0
            await memories.finish(work, [], work.next + len(work.turns), work.next + len(work.turns), None, 0)
    finally:
        memories.close()


def killed(folder: Path, start: int, seconds: float) -> dict[str, list[int]]:
    """Let both owners write for so long, and kill them; return what was acknowledged to each."""
    with ExitStack() as stack:
        running = []
        for owner in OWNERS:
            command = [sys.executable, "-m", "tests.retrieval.memory.writing", str(folder), owner, str(start)]
            running.append(stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)))
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        said = {}
        for owner, process in zip(OWNERS, running, strict=True):
            process.kill()
            assert process.stdout is not None
            said[owner] = [int(line) for line in re.findall(r"^(\d+)\n", process.stdout.read(), re.M)]
    return said


def test_killed_at_random_points(tmp_path: Path) -> None:
    draw, reached = random.Random(), 0
    for round_ in range(KILLS):
        said = killed(tmp_path, round_ * 100_000, draw.uniform(0, 0.3))
        reached += sum(map(len, said.values()))
        asyncio.run(check(tmp_path, {owner: numbers[-1] if numbers else None for owner, numbers in said.items()}))
    assert reached > 0
