"""Compare what documents are read as with what `pandoc` or a browser shows of the same files: which words are lost.

A word counts as lost where theirs has it more often than ours. Titles, front matter and alternative texts count as
read; a column's name that is repeated in every row is no loss.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from waver.benchmarks import report
from waver.retrieval.base import RetrievalError
from waver.retrieval.parsing import Parsers

SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html"}
SECONDS = 30
"""That pandoc or the browser has for a file."""
SHOWN, LISTED = 12, 30
"""Lost words that are listed of a file, and files that are listed."""
BLOCKS = frozenset(
    "Plain Para LineBlock CodeBlock Header BlockQuote OrderedList BulletList DefinitionList Table Div HorizontalRule "
    "Null Figure".split()
)
"""Elements of pandoc's tree that stand apart from what is beside them."""
BEFORE = {"Space": " ", "SoftBreak": " ", "LineBreak": " ", "Superscript": "^"}
"""Text that stands for an element or before it: an exponent is no part of the word that it follows."""
SHOWN_AT = {"Link": 1, "Image": 1, "Span": 1, "Div": 1, "Header": 2}
"""Place of the children of an element, where it has attributes as well."""

Reader = Callable[[Path, str], str]
app = report.command()


def words(text: str) -> Counter[str]:
    """Count the words of a text, without regard to case, compatibility forms and characters that cannot be seen."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return Counter(re.findall(r"[^\W_]+", "".join(c for c in plain if unicodedata.category(c) != "Cf")))


def ours(parsers: Parsers, file: Path) -> str:
    """Return all that is kept of a file: title, text and metadata.

    Raises:
        RetrievalError: it cannot be read.
    """
    found = parsers.parse(file.read_bytes(), file.name)
    return "\n".join([found.title, found.text, *map(str, found.metadata), *map(str, found.metadata.values())])


def pandoc(file: Path, kind: str) -> str:
    """Return the text of a file by pandoc; Markdown goes through HTML, so that pieces of HTML in it count.

    Footnotes are read where they stand: pandoc would repeat one at each mention."""
    content = file.read_bytes()
    if kind == "markdown":
        content = _pandoc(["-f", "gfm-footnotes", "-t", "html"], content)
    return "".join(pieces(json.loads(_pandoc(["-f", "html", "-t", "json"], content))["blocks"]))


def _pandoc(options: Sequence[str], content: bytes) -> bytes:
    done = subprocess.run(["pandoc", *options], input=content, capture_output=True, timeout=SECONDS, check=True)
    return done.stdout


def pandoc_version() -> str:
    return _pandoc(["--version"], b"").decode().split()[1]


def pieces(node: Any) -> Iterator[str]:
    """Yield the texts of pandoc's tree in order."""
    if isinstance(node, list):
        for each in node:
            yield from pieces(each)
    if not isinstance(node, dict):
        return
    kind, content = str(node.get("t")), cast(Any, node.get("c"))
    if kind == "Str":
        yield content
    elif kind in ("Code", "CodeBlock", "Math"):
        yield content[1]
    elif kind == "DefinitionList":
        for term, definitions in content:
            yield from pieces([*term, {"t": "LineBreak"}, *definitions])
    elif kind not in ("RawInline", "RawBlock"):
        yield BEFORE.get(kind, "")
        yield from pieces(content[SHOWN_AT[kind]] if kind in SHOWN_AT else content)
    if kind in BLOCKS:
        yield "\n"


@contextmanager
def browser() -> Iterator[Reader]:
    """Start a browser without a window; its reader returns the text that it shows of an HTML file."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--blink-settings=imagesEnabled=false",
    ):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(SECONDS)

        def read(file: Path, kind: str) -> str:
            driver.get(file.resolve().as_uri())
            return str(driver.execute_script("return document.body ? document.body.innerText : ''"))

        yield read
    finally:
        driver.quit()


def chosen(folders: Sequence[Path], kinds: Sequence[str], most: int, seed: int) -> list[tuple[str, Path, str]]:
    """Return files of the kinds below the folders as `(name, file, kind)`, without links and repeated content; at most
    `most` of each kind and folder, by chance."""
    found: list[tuple[str, Path, str]] = []
    seen: set[bytes] = set()
    for folder in folders:
        for kind in kinds:
            here = [f for f in sorted(folder.rglob("*")) if SUFFIXES.get(f.suffix.lower()) == kind and f.is_file()]
            random.Random(seed).shuffle(here)
            kept = 0
            for file in here:
                content = file.read_bytes()
                if kept < most and content.strip() and not file.is_symlink() and content not in seen:
                    seen.add(content)
                    kept += 1
                    found.append((str(file.relative_to(folder.parent)), file, kind))
    return sorted(found)


def compare(parsers: Parsers, theirs: Reader, name: str, file: Path, kind: str) -> dict[str, Any]:
    """Return how many words they show of a file, and which of them ours has not."""
    row: dict[str, Any] = {"file": name, "kind": kind}
    try:
        shown = words(theirs(file, kind))
    except (subprocess.SubprocessError, OSError, ValueError, RuntimeError) as error:
        return row | {"unread": type(error).__name__}
    try:
        lost = shown - words(ours(parsers, file))
    except RetrievalError as error:
        if not shown:
            return row | {"words": 0, "lost": 0, "examples": []}
        return row | {"words": shown.total(), "lost": shown.total(), "examples": [str(error)]}
    examples = [word for word, _ in lost.most_common(SHOWN)]
    return row | {"words": shown.total(), "lost": lost.total(), "examples": examples}


def page(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            kind,
            f"{read['files']:,}",
            f"{read['whole']:,}",
            f"{read['words']:,}",
            f"{read['lost']:,}",
            f"{100 * (1 - read['lost'] / max(read['words'], 1)):.4f} %",
        ]
        for kind, read in found["kinds"].items()
    ]
    against = found["settings"]["against"]
    out = [
        "# Words that are lost",
        f"Real files, read as `waver ingest` reads them, against what {against} shows of them. A word is lost where "
        "ours has it less often than theirs; case, compatibility forms and invisible characters do not count.",
        report.table(("format", "files", "without a loss", "words", "lost", "kept"), rows),
    ]
    if losses := found["losses"]:
        rows = [
            [row["file"], f"{row['lost']:,}", f"{row['words']:,}", " ".join(row["examples"])[:120]]
            for row in sorted(losses, key=lambda row: -row["lost"])[:LISTED]
        ]
        out += ["## Where words are lost", report.table(("file", "lost", "of", "such as"), rows)]
    if unread := found["unread"]:
        names = ", ".join(f"`{row['file']}` ({row['unread']})" for row in unread)
        out.append(f"Not compared, because {against} could not read them: {names}.")
    return out


def summed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return totals by kind, and the files that lost words or could not be compared."""
    kinds = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        read = [row for row in rows if row["kind"] == kind and "words" in row]
        kinds[kind] = {
            "files": len(read),
            "whole": sum(not row["lost"] for row in read),
            "words": sum(row["words"] for row in read),
            "lost": sum(row["lost"] for row in read),
        }
    return {
        "kinds": kinds,
        "losses": [row for row in rows if row.get("lost")],
        "unread": [row for row in rows if "unread" in row],
    }


@app.command()
def main(
    context: typer.Context,
    folder: Annotated[
        list[Path], typer.Option(exists=True, file_okay=False, help="A folder with files to read; repeatable.")
    ],
    against: Annotated[Literal["pandoc", "browser"], typer.Option(help="Whose text counts.")] = "pandoc",
    most: Annotated[int, typer.Option(min=1, help="Files of a kind that are taken from a folder.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the choice, where there are more.")] = 7,
    work: Annotated[
        Path | None, typer.Option(help="A file that keeps what was compared, so that a run that is stopped goes on.")
    ] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Read Markdown and HTML files, and count the words that are lost against pandoc or a browser (HTML only).

    Writes round_trip.json and .md (round_trip_browser with a browser).
    """
    if against == "pandoc" and shutil.which("pandoc") is None:
        report.console.print("This benchmark needs the program pandoc.", style="red")
        raise typer.Exit(1)
    settings = {k: v for k, v in context.params.items() if k != "work"} | {"folder": [str(each) for each in folder]}
    numbers = report.conditions("round-trip", settings)
    if against == "pandoc":
        numbers["versions"]["pandoc"] = pandoc_version()
    kinds = ("markdown", "html") if against == "pandoc" else ("html",)
    files = chosen(folder, kinds, most, seed)
    rows = [json.loads(line) for line in work.read_text().splitlines()] if work and work.exists() else []
    known = {(row["file"], row["kind"]) for row in rows}
    files = [each for each in files if (each[0], each[2]) not in known]
    with ExitStack() as stack, report.progress() as bar:
        parsers = stack.enter_context(Parsers(64 * 2**20, 64 * 2**20, 60.0, 2 * 2**30))
        theirs = pandoc if against == "pandoc" else stack.enter_context(browser())
        task = bar.add_task("files", total=len(files))
        for name, file, kind in files:
            rows.append(compare(parsers, theirs, name, file, kind))
            if work:
                with work.open("a") as kept:
                    kept.write(json.dumps(rows[-1]) + "\n")
            bar.advance(task)
    numbers |= summed(rows)
    report.write(out, "round_trip" if against == "pandoc" else "round_trip_browser", numbers, page(numbers))


if __name__ == "__main__":
    app()
