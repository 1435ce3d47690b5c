"""Write requirements/licences.md: the licence of each package that the image `waver` holds, as its metadata says.

python requirements/licences.py          # write it, from what is installed here
python requirements/licences.py --check  # say what is missing or outdated, or under a licence that is not allowed
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from install import export, find_uv, locked

FILE = Path(__file__).with_name("licences.md")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)(.*)$", re.M)
ROW = re.compile(r"^\| (\S+) \| (\S+) \| (.+) \|$", re.M)
ALLOWED = frozenset(
    (
        "0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python HPND ISC MIT MIT-CMU MPL-2.0 PSF-2.0 "
        "Unlicense Zlib"
    ).split()
)
"""Licences that let everybody use, change and pass on the whole: permissive ones, and the MPL, which binds only its own
files."""
NAMES = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "BSD-3": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "The MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSF": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "ISC License (ISCL)": "ISC",
}
"""Identifiers of SPDX for what older metadata says."""
SAID: dict[str, tuple[str, str]] = {"setuptools": ("MIT", "its file LICENSE")}
"""Licences of packages whose metadata has none, by name, with where it stands."""
EXCEPTIONS: dict[str, str] = {}
"""Packages under another licence than those above, with the reason for which they are there all the same."""


def image() -> dict[str, str]:
    """Return the packages of the image, by name, with their versions as uv.lock pins them; torch is the CPU build
    there, and what only its CUDA build brings is left out."""
    text = export(find_uv(), ["--extra=retrieval"], with_torch=False)
    found = {each["name"]: each["version"] for each in locked() if each["name"] == "torch"}
    for name, version, marker in PINNED.findall(text):
        if "platform" not in marker or "linux" in marker:
            found[name.lower()] = version.split("+")[0]
    return dict(sorted(found.items()))


def licence(name: str) -> str:
    """Return the licence of an installed package: its SPDX expression, else its classifiers, else what it calls it."""
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        return "not installed here"
    if name in SAID:
        return SAID[name][0]
    if expression := metadata["License-Expression"]:
        return str(expression)
    classifiers = [each.rsplit(" :: ", 1)[1] for each in metadata.get_all("Classifier") or () if "License ::" in each]
    named = [each for each in classifiers if each != "OSI Approved"]
    if not named and (text := metadata["License"]):
        named = [str(text).splitlines()[0]]
    return " OR ".join(sorted({NAMES.get(each, each) for each in named})) or "unknown"


def known() -> dict[str, tuple[str, str]]:
    """Return the versions and licences of the list, by name."""
    text = FILE.read_text(encoding="utf-8")
    return {name: (version, under) for name, version, under in ROW.findall(text) if name not in ("package", "---")}


def allowed(expression: str) -> bool:
    """Return whether a licence is allowed: of alternatives one has to be, of several that all hold each."""
    alternatives = re.split(r"\s+OR\s+", expression.replace("(", "").replace(")", ""))
    parts = [re.split(r"\s+AND\s+", each) for each in alternatives]
    return any(all(re.split(r"\s+WITH\s+", one.strip())[0] in ALLOWED for one in each) for each in parts)


def problems() -> list[str]:
    """Say what is wrong with the list, a sentence for each package."""
    listed, pinned, found = known(), image(), []
    for name, version in pinned.items():
        if name not in listed:
            found.append(f"{name} {version} is not in requirements/licences.md: run python requirements/licences.py.")
        elif listed[name][0] != version:
            found.append(f"{name} is listed as {listed[name][0]} and pinned as {version}: write the list again.")
        elif not allowed(listed[name][1]) and name not in EXCEPTIONS:
            found.append(f"{name} is under {listed[name][1]}, which is not among the licences that are allowed.")
    return found + [f"{name} is listed, and not in the image." for name in listed.keys() - pinned.keys()]


def write() -> None:
    """Write the list. Packages that are not installed here keep what the list says of the same version."""
    before = known() if FILE.exists() else {}
    rows = []
    for name, version in image().items():
        under = licence(name)
        if under == "not installed here" and before.get(name, ("",))[0] == version:
            under = before[name][1]
        rows.append(f"| {name} | {version} | {under} |")
    lines = [
        "# Licences of what the image `waver` holds",
        "",
        "<!-- Written by requirements/licences.py, from the packages' own metadata. -->",
        "",
        "| package | version | licence |",
        "| --- | --- | --- |",
        *rows,
    ]
    if EXCEPTIONS:
        lines += ["", *(f"- {name}: {reason}" for name, reason in sorted(EXCEPTIONS.items()))]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say what is wrong; ends with 1 where something is")
    if not parser.parse_args().check:
        write()
    if found := problems():
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
