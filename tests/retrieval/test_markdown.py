"""Markdown as people write it: nothing that a reader sees is lost, and what surrounds it is not text."""

from __future__ import annotations

import time

import pytest

from waver.retrieval.base import Scalar
from waver.retrieval.formats import clean
from waver.retrieval.front_matter import split
from waver.retrieval.markdown_text import markdown

MOST = 10**6


def read(content: str) -> str:
    return clean(markdown(content, MOST).text)


@pytest.mark.parametrize(
    "name", ["script", "style", "template", "title", "textarea", "noscript", "svg", "iframe", "head", "pre", "object"]
)
@pytest.mark.parametrize(
    "sentence", ["# In page.html's <{}>:", "Put it into a <{}> tag.", "<{}> is a tag.", "- <{}>", "> <{}> it is"]
)
def test_a_bare_tag_is_text(name: str, sentence: str) -> None:
    found = read(f"{sentence.format(name)}\n\nWhat follows *stays*.\n\n```\nand code\n```")
    assert f"<{name}>" in found
    assert found.endswith("\n\nWhat follows stays.\n\nand code")


@pytest.mark.parametrize(
    "text",
    [
        "Call List<String> and replace <your-api-key>.",
        "Map<K, List<V>> of <name>s",
        "<your-key>",
        "<T> T first(List<T> all)",
        "Use the <div> tag; <p> and <h1>, too.",
        "a < b > c & d &copy",
        "Begin it with <?php and <!DOCTYPE html>.",
        "<!-- is never closed",
    ],
)
def test_what_looks_like_html_is_text(text: str) -> None:
    found = read(f"{text}\n\nThe end.")
    assert found == f"{text}\n\nThe end."


def test_html_that_is_meant_is_no_text() -> None:
    source = """<div align="center"><h1>The <b>Arn</b></h1>

A *river*.</div>

<!-- nobody

sees this -->
<script>
let x = "no";

let y = "no";
</script>
<style>p {color: red}</style>

<details><summary>More</summary>

A <kbd>key</kbd>,<br>a <a href="x">link</a> and <img alt="a map" src="x.png"> <!-- nor this -->.

</details>"""
    found = markdown(source, MOST)
    assert found.title == "The Arn"
    assert clean(found.text) == "The Arn\n\nA river.\n\nMore\n\nA key,\na link and a map ."


@pytest.mark.parametrize(
    "code",
    [
        "def f(a):\n    b = a\n\n    return b",
        "a:\n  b: 1\n\n  c: 2",
        "    deep\n\n        deeper\n\n    deep",
        "\tx\n\n\ty",
        "<script>\n\n  f()",
    ],
)
def test_code_keeps_its_indentation(code: str) -> None:
    assert read(f"Before:\n\n```python\n{code}\n```\n\nAfter.") == f"Before:\n\n{code}\n\nAfter."
    assert read(f"```\n{code}\n```") == code
    nested = code.replace("\n", "\n   ")
    assert read(f"1. ~~~\n   {nested}\n   ~~~") == code
    if "<" not in code:
        assert read(f"<pre>\n{code}\n</pre>") == code


def test_tables_are_a_line_for_each_row() -> None:
    for source in (
        "| Name | Age |\n| --- | :-: |\n| Ann | 3 |\n| *Bo* | |",
        "Name | Age\n-|-\nAnn | 3\nBo | ",
        "<table><tr><th>Name<th>Age<tr><td>Ann<td>3<tr><td>Bo<td></table>",
        "<table>\n<tr><th>Name</th><th>Age</th></tr>\n<tr><td>\n\nAnn\n\n</td><td>\n\n3\n\n</td></tr>\n"
        "<tr><td>Bo</td><td></td></tr></table>",
    ):
        assert read(f"Who:\n\n{source}\n\nEnd.") == (
            "Who:\n\n| Name | Age |\n| Name: Ann | Age: 3 |\n| Name: Bo |  |\n\nEnd."
        ), source


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("10<sup>6</sup>", "10^6"),
        ("m s<sup>-1</sup> and m<sup>−2</sup>", "m s^-1 and m^−2"),
        ("x<sup>n+1</sup>, e<sup>x</sup>, 2<sup>10</sup>", "x^(n+1), e^x, 2^10"),
        ("the 1<sup>st</sup> of Waver<sup>TM</sup>", "the 1st of WaverTM"),
        ("H<sub>2</sub>O", "H2O"),
        ("![alt *text*](x.png) and [![badge](b.svg)](y)", "alt text and badge"),
        ("~~gone~~ <https://a.b/c> `a  <b>`", "gone https://a.b/c a <b>"),
        ("one\ntwo  \nthree\\\nfour", "one two\nthree\nfour"),
    ],
)
def test_inline_marks(source: str, text: str) -> None:
    assert read(source) == text


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        ("---\ntitle: Rules\ntags: [a, b]\n---", {"title": "Rules", "tags": "a, b"}),
        ("---\r\ndraft: true\r\nweight: 1.5\r\n...\r", {"draft": True, "weight": 1.5}),
        (
            "+++\ntitle = 'R'\ndate = 2020-01-02\n[a]\nb = 1\n+++",
            {"title": "R", "date": "2020-01-02", "a.b": 1},
        ),
        ("---\nx: .nan\ny:\n- {z: null}\n---", {"x": "nan", "y.0.z": None}),
        ("---\n---", {}),
    ],
)
def test_front_matter_is_metadata(head: str, kept: dict[str, Scalar]) -> None:
    found = markdown(f"{head}\n# Heading\n\nText.", MOST)
    assert found.metadata == kept
    assert found.title == kept.get("title", "Heading")
    assert clean(found.text) == "Heading\n\nText."


@pytest.mark.parametrize("source", ["---\n\nA rule.\n\n---\n", "---\n- a\n---\nb", "---\na: [\n---\nb"])
def test_what_is_no_front_matter_is_text(source: str) -> None:
    assert split(source) == ({}, source, ())


def test_front_matter_is_bounded() -> None:
    begun = time.monotonic()
    kept, body, warnings = split("---\n" + "\n".join(f"k{i}: {i}" for i in range(500)) + "\n---\nText")
    assert len(kept) == 48
    assert (body, len(warnings)) == ("Text", 1)
    layers = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '[]'}]\n" for i in range(12))
    assert split(f"---\n{layers}---\nText")[1] == "Text"
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "unit", ["<script>\n\n", "<b>", "</b>", "<!--", "<x>", "<div>\n\n", "<sup>1", "<p><td>", "[a](", "<?\n"]
)
def test_hostile_repeats_take_linear_time(unit: str) -> None:
    begun = time.process_time()
    markdown(unit * 4000, MOST)
    assert time.process_time() - begun < 4
