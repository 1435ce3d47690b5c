"""Reward Verilog: does the response hold a design, does it compile, does it fit the testbench, is it right.

For `earl` (arXiv 2511.12033, whose rewards are not public: the steps are reconstructed from what the public projects
do). Icarus Verilog runs as a subprocess; it is no Python package (`apt-get install iverilog`).

    0              no design, a forbidden construct, or a syntax error
    0.1            it compiles
    0.1 + 0.4 f    it fits the testbench, which finds it right in a share f < 1 of the samples
    1              it is right in all of them

The testbench is in VerilogEval's form: a module that instantiates the design and the reference and ends by printing
`Mismatches: N in M samples`. What compiles alone but not with it has the wrong name or ports.

Designs are code by a model that is paid for passing. They run in a folder of their own, in a process group that is
killed when its time is up, with limits on CPU time, memory and file size. They may call no system task that is not
arithmetic, include nothing and name nothing inside the testbench. Network and user are not this module's to take
away: train in a container without a network, as an unprivileged user.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from waver.training.strict import Strict

SHORTEST = 20
"""Characters, below which a text is no design."""
ALLOWED = {
    "signed",
    "unsigned",
    "clog2",
    "bits",
    "size",
    "high",
    "low",
    "left",
    "right",
    "countones",
    "onehot",
    "onehot0",
}
"""System functions that a design may call."""
COMMENT = re.compile(r"//[^\n]*|/\*(?:.*?\*/|.*)", re.S)
"""One that is not closed goes on to the end, as for the compiler."""
FENCED = re.compile(r"```[ \t]*(?:system)?verilog[ \t]*\n(.*?)```", re.S | re.I)
MODULE = re.compile(r"\b(?:end)?module\b")
SYSTEM = re.compile(r"(?<![\w$])\$(\w*)")
INDEX = re.compile(r"\[[^\[\]]*+\]")
DEEPEST_INDEX = 16
DOTTED = re.compile(r"(?<![\w$])(?:(?![A-Za-z_])[\w$])*+([A-Za-z_][\w$]*+)\s*+\.\s*+\\?[A-Za-z_]")
WORD = re.compile(r"[A-Za-z_][\w$]*")
MISMATCHES = re.compile(r"^Mismatches: (\d+) in (\d+) samples\s*$", re.M)


class SimulatorMissing(OSError):
    """Icarus Verilog is not installed."""


class VerilogTask(Strict):
    """The testbench that judges a response."""

    testbench: str
    """Verilog, the reference design included; not the design."""
    top: str = "tb"
    """The testbench's module."""
    samples: int | None = None
    """Number of samples that the reference's own run counts; a run with another count fails. None: any."""


class Limits(Strict):
    """Of one compilation and one simulation."""

    compile_seconds: float = 5.0
    run_seconds: float = 30.0
    memory_mib: int = 2048
    file_mib: int = 16
    """The largest file that may be written, what is printed included."""
    design_characters: int = 100_000


class Verdict(Strict):
    """Result of judging a response: the last stage it passed, and its reward."""

    reward: float
    reason: str
    compiles: bool = False
    fits: bool = False
    right: float = 0.0
    """The share of samples without a mismatch."""


def extract(response: str) -> str | None:
    """Return the design: the last fenced block marked verilog, else a text that is a module, else the first module in
    it."""
    if blocks := FENCED.findall(response):
        code = blocks[-1]
    elif response.lstrip().startswith("module") and "endmodule" in response:
        code = response
    else:
        code = module(response) or ""
    code = code.strip()
    return code if len(code) >= SHORTEST and module(COMMENT.sub(" ", code)) else None


def module(text: str) -> str | None:
    """Return the first module in a text, from its first word to its last."""
    start = next((found.start() for found in MODULE.finditer(text) if found.group() == "module"), None)
    if start is None:
        return None
    end = next((found.end() for found in MODULE.finditer(text, start) if found.group() == "endmodule"), None)
    return None if end is None else text[start:end]


def forbidden(design: str, testbench: str = "") -> str | None:
    """Return what the design contains and may not, None if nothing: ways out of the simulator, and into the
    testbench."""
    code = COMMENT.sub(" ", design)
    for name in SYSTEM.findall(code):
        if name not in ALLOWED:
            return f"${name}"
    if "``" in code:
        return "token pasting"
    if found := re.search(r"`\s*include\b|\b(?:bind|force|release|defparam|import|export)\b", code):
        return found.group()
    inside = set(WORD.findall(COMMENT.sub(" ", testbench)))
    for _ in range(DEEPEST_INDEX):
        code, found_any = INDEX.subn(" ", code)
        if not found_any:
            break
    else:
        return f"an index nested deeper than {DEEPEST_INDEX} levels"
    for name in DOTTED.findall(code):
        if name in inside:
            return f"a reference into {name}"
    return None


def judge(response: str, task: VerilogTask, limits: Limits | None = None) -> Verdict:
    """Extract, compile, simulate.

    Raises:
        SimulatorMissing: `iverilog` or `vvp` is not on the path.
    """
    limits = limits or Limits()
    compiler, simulator = (_program(name) for name in ("iverilog", "vvp"))
    design = extract(response)
    if design is None:
        return Verdict(reward=0.0, reason="no design")
    if len(design) > limits.design_characters:
        return Verdict(reward=0.0, reason="too long a design")
    if (found := forbidden(design, task.testbench)) is not None:
        return Verdict(reward=0.0, reason=f"forbidden: {found}")
    with tempfile.TemporaryDirectory(prefix="waver-verilog-") as name:
        folder = Path(name)
        (folder / "design.sv").write_text(design)
        (folder / "testbench.sv").write_text(task.testbench)
        compiled, _ = _run([compiler, "-g2012", "-t", "null", "design.sv"], folder, limits.compile_seconds, limits)
        if not compiled:
            return Verdict(reward=0.0, reason="does not compile")
        command = [compiler, "-Wall", "-Winfloop", "-Wno-timescale", "-g2012", "-s", task.top, "-o", "x.vvp"]
        fits, _ = _run([*command, "testbench.sv", "design.sv"], folder, limits.compile_seconds, limits)
        if not fits:
            return Verdict(reward=0.1, reason="does not fit the testbench", compiles=True)
        ended, said = _run([simulator, "-n", "x.vvp"], folder, limits.run_seconds, limits)
    lines = MISMATCHES.findall(said)
    if not ended or len(lines) != 1 or "TIMEOUT" in said:
        return Verdict(reward=0.1, reason="no result", compiles=True, fits=True)
    wrong, samples = map(int, lines[0])
    if samples == 0 or wrong > samples or samples != (task.samples or samples):
        return Verdict(reward=0.1, reason="a wrong number of samples", compiles=True, fits=True)
    right = 1 - wrong / samples
    reason = f"{wrong} mismatches in {samples} samples"
    return Verdict(reward=0.1 + 0.4 * right if wrong else 1.0, reason=reason, compiles=True, fits=True, right=right)


def rewards(
    responses: Sequence[str], tasks: Sequence[VerilogTask], limits: Limits | None = None, at_once: int = 4
) -> list[float]:
    """Return the reward of every response by its task, so many simulators at a time; equal ones are judged once.

    Raises:
        SimulatorMissing: `iverilog` or `vvp` is not on the path.
    """
    pairs = list(zip(responses, tasks, strict=True))
    different = list(dict.fromkeys(pairs))
    with ThreadPoolExecutor(at_once) as pool:
        verdicts = pool.map(lambda pair: judge(pair[0], pair[1], limits), different)
        found = dict(zip(different, verdicts, strict=True))
    return [found[pair].reward for pair in pairs]


def need_simulator() -> None:
    """Raises:
    SimulatorMissing: `iverilog` or `vvp` is not on the path."""
    for name in ("iverilog", "vvp"):
        _program(name)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SimulatorMissing(
            f"`{name}` is not on the path: rewards for Verilog need Icarus Verilog (apt-get install iverilog)"
        )
    return path


def _run(command: Sequence[str], folder: Path, seconds: float, limits: Limits) -> tuple[bool, str]:
    """Tell whether it ended well within its limits, and what it printed. Nothing of it is left running."""
    ulimits = f"ulimit -t {int(seconds) + 1} -v {limits.memory_mib * 1024} -f {limits.file_mib * 2048} -c 0"
    shell = " && ".join(f"ulimit {part}" for part in re.findall(r"-\w \d+", ulimits))
    said = folder / "said.txt"
    with said.open("wb") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'{shell} && exec "$@"', "sh", *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder)},
            start_new_session=True,
        )
        try:
            ended = process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return ended, said.read_text(errors="replace")
