"""Keep the vectors of many examples in a file, a chunk at a time; a stopped run goes on behind the last chunk."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from waver import job
from waver.training.selection.instructions.pool import Pool
from waver.training.selection.instructions.representations import Representation, Role
from waver.training.selection.instructions.similarity import Floats


def encode(
    representation: Representation, pool: Pool, role: Role, file: Path, advance: Callable[[int], None]
) -> Floats:
    """Return the vectors of a pool, `[examples, checkpoints, dimensions]` in float16, as a map of `file`.

    Args:
        advance: called with the number of examples that are done.
    """
    shape = (len(pool), len(representation.weights), representation.dimensions)
    told = file.with_suffix(".json")
    past = job.read_record(told)
    done = int(past["done"]) if past is not None and past["shape"] == list(shape) and file.exists() else 0
    mode = "r+" if done else "w+"
    kept = np.lib.format.open_memmap(file, mode=mode, dtype=np.float16, shape=shape)
    advance(done)
    while done < len(pool):
        stop = min(len(pool), done + representation.chunk)
        kept[done:stop] = representation.encode(list(pool.at(range(done, stop))), role)
        kept.flush()
        record = json.dumps({"done": stop, "shape": shape})
        job.replace_file(told, partial(Path.write_text, data=record, encoding="utf-8"))
        advance(stop - done)
        done = stop
    found: Floats = np.lib.format.open_memmap(file, mode="r")
    return found
