"""Install Waver from a checkout into the environment of the interpreter that runs this: versions and hashes of uv.lock.

    python requirements/install.py [EXTRA_OR_GROUP ...] [--torch auto|cpu|cuda]

It needs nothing but Python and pip: uv is fetched where it is missing. On Linux without a GPU the CPU build of torch is
taken, from torch's own index (`TORCH_INDEX`); the public index has none, and its build brings 2.7 GB of CUDA packages.
A torch of the locked version that is there already stays, whatever its build.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OLDEST_UV = (0, 9)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CPU_MB = 190
"""Size of the CPU build of torch, which uv.lock does not know."""
PROBE_SECONDS = 6.0
ACCELERATOR = re.compile(r"(torch|triton)$|nvidia-|cuda-")
"""torch, and what its CUDA build brings."""
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def main() -> None:
    extras, groups = names()
    parser = argparse.ArgumentParser(description="Install Waver with the versions and hashes of uv.lock.")
    parser.add_argument("what", nargs="*", metavar="EXTRA", help=f"any of {', '.join([*extras, *groups])}")
    parser.add_argument("--torch", choices=["auto", "cpu", "cuda"], default=os.environ.get("TORCH") or "auto")
    parser.add_argument("--only", action="store_true", help="the named groups alone, without Waver and what it needs")
    parser.add_argument("--only-torch", action="store_true", help="torch alone")
    parser.add_argument("--no-project", action="store_true", help="what Waver needs, without Waver")
    asked = parser.parse_args()
    if unknown := [name for name in asked.what if name not in extras | groups]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(extras | groups))}")

    started = time.monotonic()
    uv, env = find_uv(), uv_environment()
    if asked.only:
        install_locked(uv, env, export(uv, [f"--only-group={name}" for name in asked.what]))
        return
    if asked.only_torch:
        torch = choose_torch(uv, env, asked.torch)
        wanted = torch.cpu or ([f"torch=={locked_torch()}"] if torch.locked else [])
        if wanted:
            run(uv, "pip", "install", "--python", sys.executable, *wanted, env=env)
        return
    selection = [f"--extra={name}" if name in extras else f"--group={name}" for name in asked.what]
    selection += [] if asked.no_project else ["--group=build"]
    torch = choose_torch(uv, env, asked.torch)
    requirements = export(uv, selection, torch.locked)
    size = announce(uv, env, requirements, torch)
    install_locked(uv, env, requirements)
    if torch.cpu is not None:
        run(uv, "pip", "install", "--python", sys.executable, "--no-deps", *torch.cpu, env=env)
    if not asked.no_project:
        command = ["pip", "install", "--python", sys.executable, "--quiet", "--no-deps", "--no-build-isolation"]
        run(uv, *command, "--editable", str(ROOT), env=env)
    run(sys.executable, str(HERE / "vllm_name.py"))
    say(f"Installed in {time.monotonic() - started:.0f} s; up to {size / 1e6:.0f} MB were downloaded.")


def names() -> tuple[set[str], set[str]]:
    """Return the extras and the dependency groups of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return set(project["project"]["optional-dependencies"]), set(project["dependency-groups"])


def find_uv() -> str:
    """Return the path of uv: the environment's own, one on the PATH that is new enough, or one that pip fetches."""
    own = Path(sys.executable).parent / "uv"
    for candidate in (str(own), shutil.which("uv")):
        if candidate and Path(candidate).exists() and uv_version(candidate) >= OLDEST_UV:
            return candidate
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
    run(*command, "--requirement", str(HERE / "uv.txt"))
    return str(own)


def uv_version(uv: str) -> tuple[int, ...]:
    said = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2]))


def uv_environment() -> dict[str, str]:
    """Return the environment for uv, which does not read pip's configuration: its indexes, links and certificate."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^(:env:|global|install|download)\.([\w-]+)=(.*)$", listed, re.M)
    out = dict(os.environ)
    # Variables last: they go over the files.
    for _, key, value in sorted(found, key=lambda line: line[0] == ":env:"):
        if key in PIP_TO_UV and PIP_TO_UV[key] not in os.environ:
            separator = "," if key == "find-links" else " "
            out[PIP_TO_UV[key]] = separator.join(ast.literal_eval(value).split())
    if "UV_INDEX" in out:
        # As pip does: the best of all indexes. The hashes say what is wanted.
        out.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return out


def locked_torch() -> str:
    (found,) = {package["version"] for package in locked() if package["name"] == "torch"}
    return str(found)


def locked() -> list[dict]:
    return tomllib.loads((ROOT / "uv.lock").read_text())["package"]


class Torch(NamedTuple):
    """The build of torch to install: `locked` from the public index, or a CPU build by uv's arguments `cpu`, or
    none."""

    locked: bool
    cpu: list[str] | None = None


def choose_torch(uv: str, env: dict[str, str], build: str) -> Torch:
    """Choose the build of torch; one of the locked version that is there stays.

    The CPU build is looked for in the configured indexes and links first, then in torch's own index.
    """
    wanted = locked_torch()
    try:
        if version("torch").partition("+")[0] == wanted:
            return Torch(locked=False)
    except PackageNotFoundError:
        pass
    if sys.platform != "linux" or build == "cuda" or (build == "auto" and has_gpu()):
        return Torch(locked=True)
    cpu = f"torch=={wanted}+cpu"
    command = [uv, "pip", "install", "--python", sys.executable, "--no-deps", "--dry-run", cpu]
    if subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0:
        return Torch(locked=False, cpu=[cpu])
    index = os.environ.get("TORCH_INDEX") or TORCH_INDEX
    if answers(f"{index}/torch/"):
        return Torch(locked=False, cpu=[cpu, "--default-index", index])
    if build == "cpu":
        sys.exit(f"The CPU build of torch cannot be had: {index} does not answer. Name another index in TORCH_INDEX.")
    say(
        f"torch's CPU index {index} does not answer: taking the build of the public index instead, which works without "
        "a GPU too but brings some 2.7 GB of CUDA packages. TORCH_INDEX names another index of CPU builds."
    )
    return Torch(locked=True)


def has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU with its driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def answers(url: str) -> bool:
    """Return whether a page can be fetched within `PROBE_SECONDS`, name resolution included."""
    fetched: list[bool] = []

    def fetch() -> None:
        try:
            with urlopen(url, timeout=PROBE_SECONDS) as response:
                fetched.append(response.status == 200)
        except OSError:
            pass

    probe = threading.Thread(target=fetch, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return fetched == [True]


def export(uv: str, selection: list[str], with_torch: bool = True) -> str:
    """Return what uv.lock holds for a selection, in the format of a requirements file with hashes.

    Without torch, what only its CUDA build brings is left out as well.
    """
    command = [uv, "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--no-header"]
    if not with_torch:
        others = exported_names(output(*command, *selection, "--prune=torch"))
        accelerators = {package["name"] for package in locked() if ACCELERATOR.match(package["name"])}
        command += [f"--no-emit-package={name}" for name in sorted(accelerators - others)]
    return output(*command, *selection)


def exported_names(requirements: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", requirements, re.M))


def announce(uv: str, env: dict[str, str], requirements: str, torch: Torch) -> int:
    """Say how much there is to download. Returns the bytes, of which what uv has in its cache is not fetched again."""
    planned = install_locked(uv, env, requirements, "--dry-run")
    wanted = set(re.findall(r"^ \+ ([\w.-]+)==(\S+)", planned, re.M))
    size = sum(wheel_size(package) for package in locked() if (package["name"], package.get("version")) in wanted)
    size += 0 if torch.cpu is None else TORCH_CPU_MB * 10**6
    if size:
        say(
            f"{len(wanted) + (torch.cpu is not None)} packages to install, up to {size / 1e6:.0f} MB to download: "
            f"{size / 6.25e6 / 60:.1f} minutes at 50 Mbit/s."
        )
    return size


def wheel_size(package: dict) -> int:
    """Return the bytes of the wheel that fits this interpreter and machine: the largest, where there are several."""
    here = re.compile(
        rf"-(py3|py2\.py3|cp{sys.version_info.major}{sys.version_info.minor}|cp3\d+-abi3)[-.].*"
        rf"({'macosx' if sys.platform == 'darwin' else 'linux'}\S*{os.uname().machine}|any)"
    )
    return max((w.get("size", 0) for w in package.get("wheels", []) if here.search(w["url"])), default=0)


def install_locked(uv: str, env: dict[str, str], requirements: str, *options: str) -> str:
    """Install what is listed, and nothing else. Returns what uv said, where it was asked to make a plan only."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command = [uv, "pip", "install", "--python", sys.executable, "--no-deps", "--require-hashes", *options]
        command += ["--requirement", file.name]
        if options:
            return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stderr
        run(*command, env=env)
        return ""


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command, and end with its status where it fails: it has said why."""
    if status := subprocess.run(command, cwd=ROOT, env=env, check=False).returncode:
        sys.exit(status)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
