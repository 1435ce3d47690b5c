"""Write the pages that list things: `python docs/generate.py`, or with `--check` say which are out of date.

`papers.md` comes from `systems.yaml`, `modules.md` from the first sentence of every module's docstring, what lists
policies from their own modules, the options of the configuration from the models that read it, and `results.md` from
the committed results.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api_reference
import option_tables
import policy_tables
import sizing_tables
import yaml

from waver.benchmarks import summary

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGES = "entropy engines policies retrieval server clients training waver benchmarks".split()
FIELDS = {"system", "title", "arxiv", "code", "test", "command", "measured", "deviations"}
NOTICE = "<!-- Written by docs/generate.py. -->"


def systems() -> list[dict[str, Any]]:
    """Read the systems of the mission, in the order of the page.

    Raises:
        ValueError: an entry has unknown or missing fields.
    """
    entries: list[dict[str, Any]] = yaml.safe_load((DOCS / "systems.yaml").read_text(encoding="utf-8"))
    for entry in entries:
        wanted = FIELDS if "code" in entry else {"system", "title", "arxiv"}
        if set(entry) != wanted:
            raise ValueError(f"{entry.get('system')}: {sorted(set(entry) ^ wanted)} missing or unknown")
    return entries


def papers() -> str:
    """Make the page of papers: a row for each system that works, and a list of those to come."""
    entries = systems()
    built = [entry for entry in entries if "code" in entry]
    rows = [
        f"| `{each['system']}` | {_paper(each)} | [{each['code']}](../{each['code']}) | [{Path(each['test']).name}]"
        f"(../{each['test']}) | {_code(each['command'])} | {each['measured']} | {each['deviations']} |"
        for each in built
    ]
    coming = [f"- `{each['system']}`: {_paper(each)}" for each in entries if "code" not in each]
    return "\n".join(
        [
            "# Papers",
            "",
            NOTICE,
            "",
            f"{len(built)} of {len(entries)} systems work. Figures on toys and on the bundled pair say that a method "
            "does what it is for, not what it is worth on a large model.",
            "",
            "| system | paper | file | test | command | what we measured | where we deviate |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## To come",
            "",
            *coming,
            "",
        ]
    )


def clients() -> str:
    """Make the page of clients: how they are pointed at a server, and what runs of them found."""
    about = (DOCS / "clients_intro.md").read_text(encoding="utf-8")
    parts = [f"# Clients\n\n{NOTICE}\n\n{about}"]
    for run in ("client_matrix", "client_matrix_pair", "client_matrix_beside"):
        file = ROOT / "benchmarks" / "results" / f"{run}.md"
        if file.exists():
            parts.append(f"#{file.read_text(encoding='utf-8')}")  # one level below the page's own title
    return "\n".join(parts)


def modules() -> str:
    """Make the page of modules: for each package a table of files and what each is for."""
    parts = ["# Modules", "", NOTICE]
    for package in PACKAGES:
        rows = [f"| [{path}](../{path}) | {summary} |" for path, summary in _summaries(package)]
        about = _summary(ROOT / package / "__init__.py")
        parts += ["", f"## {package}", "", f"{about}.", "", "| file | what it is for |", "| --- | --- |", *rows]
    return "\n".join([*parts, ""])


def _summaries(package: str) -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / package).rglob("*.py")):
        summary = _summary(file)
        if summary and file != ROOT / package / "__init__.py":
            yield file.relative_to(ROOT).as_posix(), summary.replace("|", "\\|")


def _summary(file: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def _paper(entry: dict[str, Any]) -> str:
    return f"{entry['title']}, [arXiv {entry['arxiv']}](https://arxiv.org/abs/{entry['arxiv']})"


def _code(commands: str) -> str:
    return "; ".join(f"`{command.strip()}`" for command in commands.split("; "))


def pages() -> dict[Path, str]:
    """Make every generated file, by its path."""
    return {
        DOCS / "papers.md": papers(),
        DOCS / "clients.md": clients(),
        DOCS / "modules.md": modules(),
        DOCS / "sizing.md": sizing_tables.page(),
        DOCS / "api.md": api_reference.page(),
        summary.PAGE: summary.page(summary.RESULTS, "../benchmarks/results"),
        **policy_tables.pages(),
        **option_tables.pages(),
    }


def main(arguments: list[str]) -> int:
    """Write the files that are out of date, or with `--check` name them and return 1."""
    stale = {file: text for file, text in pages().items() if not _holds(file, text)}
    for file, text in stale.items():
        if arguments != ["--check"]:
            file.write_text(text, encoding="utf-8")
        print(f"{file.relative_to(ROOT)} {'is out of date' if arguments == ['--check'] else 'written'}")
    return int(bool(stale) and arguments == ["--check"])


def _holds(file: Path, text: str) -> bool:
    return file.exists() and file.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
