"""Write docs/results.md: per policy what was measured, its rivals, the conditions and the commands, and a verdict.

Everything comes from the results that are there. Those of `waver bench quality` are made anew from their stored answers
first. `--quick` measures all of it with the bundled pair on a few questions.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.benchmarks import quality_stored, report
from waver.benchmarks.quality_tables import page as quality_page
from waver.benchmarks.summary_sections import READERS, Section

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
OPENING = """# Results

Written by `waver bench summary` from [the committed results](../benchmarks/results): per policy the verdict, its rivals
in the same run, conditions and commands. A result of the bundled pair is a **toy**: it shows that a method works, and
not what it is worth on other models; measure yours with [`waver bench quality`](benchmarks.md). Where a baseline wins,
the verdict says so.
"""
SETTINGS = "ead={threshold: [0.01, 0.1], window: 1, min_tokens: 1, monitor: small}"
QUICK: Mapping[str, str] = {
    "quality": "arithmetic --n 40 --calibration 20 --max-tokens 200 --at-once 16 --peer small --peer large "
    "--peer random --peer 'route={threshold: [0.001, 0.01]}' --peer 'cascade={threshold: [0.003, 0.03]}' "
    f"--peer easy --peer hard --peer '{SETTINGS}'",
    "speed": "arithmetic --runs 2 --max-tokens 64 --client own "
    "--peer small --peer large --peer 'ead={threshold: 0.01, window: 1, min_tokens: 1, monitor: small}'",
    "frontier": "--n 60 --calibration-n 40",
    "l-rag": "--n 60 --calibration 40 --distractors 300 --runs 1",
    "diffadapt": "--n 60 --longer 4 --timed 4",
    "truncation": "--n 20 --repeated 4",
}
"""Options of a short run of each benchmark."""
RESUMABLE = ("quality", "speed")

app = report.command()


def results(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the results of a folder, with their files, those with a verdict first in the order of `READERS`."""
    found = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    order = list(READERS)
    for file, told in sorted(found, key=lambda each: order.index(kind(each[1])) if kind(each[1]) in order else 99):
        if "command" in told:
            yield file, told


def kind(found: Mapping[str, Any]) -> str:
    """Return the benchmark that made a result."""
    words = str(found.get("command", "")).split()
    return words[2] if len(words) > 2 else ""


def renew(folder: Path) -> list[str]:
    """Make the results of `quality` anew from their stored answers; returns their names."""
    from waver.benchmarks.quality_figure import plot

    made = []
    for file in sorted(folder.glob(f"*{quality_stored.ENDING}")):
        name = file.name.removesuffix(quality_stored.ENDING)
        stored = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        found = quality_stored.again(stored, file)
        plot(found, folder)
        report.save(folder, name, found, quality_page(found))
        made.append(name)
    return made


def page(folder: Path, base: str) -> str:
    """Write the page; `base` leads from it to the results."""
    sections: list[tuple[Section, Mapping[str, Any], str]] = []
    others: list[tuple[str, ...]] = []
    for file, found in results(folder):
        link = f"[{file.stem}]({base}/{file.stem}.md)"
        reader = READERS.get(kind(found))
        if reader is None:
            others.append((link, title(file), str(found["date"])))
        else:
            sections.append((reader(found, link), found, file.stem))
    parts = [OPENING.strip(), "## Verdicts"]
    parts += [
        "\n".join(
            f"- {section.policy} ([{stem}](#{anchor(stem)})): {section.verdict}"
            for section, _, stem in sorted(sections, key=lambda each: each[0].policy)
        )
    ]
    for section, shown, stem in sections:
        here = shown["machine"]
        toy = "The bundled pair, a toy. " if shown.get("toy", shown["settings"].get("models") is None) else ""
        conditions = f"{toy}{shown['date']}, {here['cores']} cores ({here['processor']}), {here['memory_gib']} GiB."
        parts += [f"## {stem}", section.verdict, *section.body, conditions, f"```sh\n{shown['command']}\n```"]
    if others:
        parts += ["## Other measurements", report.table(("result", "", "date"), others)]
    return "\n\n".join(parts) + "\n"


def anchor(stem: str) -> str:
    return stem.lower().replace(" ", "-")


def title(file: Path) -> str:
    """Return the title of a result's page."""
    written = file.with_suffix(".md")
    return written.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") if written.exists() else file.stem


def run_quickly(out: Path) -> None:
    """Run what has no result in `out` yet.

    Raises:
        typer.Exit: one of them failed; it has said why.
    """
    for place, (name, options) in enumerate(QUICK.items(), 1):
        if (out / f"{name.replace('-', '_')}.json").exists():
            continue
        report.console.print(f"{place} of {len(QUICK)}: waver bench {name}", highlight=False)
        work = ["--work", str(out / f"work-{name}")] if name in RESUMABLE else []
        command = [sys.executable, "-m", "waver", "bench", name, *shlex.split(options), *work, "--out", str(out)]
        ended = subprocess.run(command, check=False)
        if ended.returncode:
            report.console.print(f"waver bench {name} failed; the same command goes on.", style="red")
            raise typer.Exit(ended.returncode)


def write(folder: Path, file: Path, base: str) -> Sequence[str]:
    """Make everything anew from stored answers, and write the page."""
    made = renew(folder)
    file.write_text(page(folder, base), encoding="utf-8")
    return made


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure everything with the bundled pair on a few questions.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of results and page; benchmarks/results makes docs/results.md.")
    ] = report.RESULTS,
) -> None:
    """Write the page of results from stored answers: some seconds. With `--quick`, from nothing: some 15 minutes on two
    cores, into the folder `quick` of `--out`, where a stopped run goes on."""
    report.need_extra()
    folder = out / "quick" if quick else out
    if quick:
        folder.mkdir(parents=True, exist_ok=True)
        run_quickly(folder)
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}: a benchmark makes it, or --quick", param_hint="--out")
    file, base = (PAGE, "../benchmarks/results") if folder.resolve() == RESULTS else (folder / "results.md", ".")
    made = write(folder, file, base)
    report.console.print(f"Written to {file}; made anew from answers: {', '.join(made) or 'none'}.", markup=False)


if __name__ == "__main__":
    app()
