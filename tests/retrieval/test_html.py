"""HTML and XHTML: what a reader of the page sees, in its order and shape."""

from __future__ import annotations

import pytest

from waver.retrieval.base import TooLarge
from waver.retrieval.formats import clean
from waver.retrieval.html_text import html, xhtml

MOST = 10**6
TYPE = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">'


def read(content: str) -> str:
    return clean(html(content, MOST).text)


PRETTY = """<table>
  <caption>People</caption>
  <thead>
    <tr>
      <th>Name</th>
      <th>Age</th>
    </tr>
  </thead>
  <tbody>
    <tr>
      <td><p>Ann</p></td>
      <td>
        3
      </td>
    </tr>
  </tbody>
</table>"""


def test_a_table_reads_alike_however_it_is_written() -> None:
    minified = "".join(line.strip() for line in PRETTY.splitlines())
    for source in (PRETTY, minified, minified.replace("</td>", "").replace("</th>", "").replace("</tr>", "")):
        assert read(f"<p>Who:{source}<p>End.") == "Who:\n\nPeople\n\n| Name | Age |\n| Name: Ann | Age: 3 |\n\nEnd."


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ("<tr><td>a<td>b<tr><td>c<td>d", "| a | b |\n| c | d |"),
        ("<tr><th>a<th>b<tr><th>c<td>d", "| a | b |\n| a: c | b: d |"),
        ("<tr><th>a<th colspan=2>b<tr><td>1<td>2<td>3", "| a | b |  |\n| a: 1 | b: 2 | 3 |"),
        ("<tr><td rowspan=2>a<td>b<tr><td>c", "| a | b |\n| a | c |"),
        ("<tr><td>a<br>b<td><ul><li>c<li>d</ul>", "| a b | c d |"),
        ("<tr><td>one<tr><td>two", "one\n\ntwo"),
        ("<tr><td><h2>Page</h2>text<td>more", "Page\n\ntext\n\nmore"),
        ("<tr><td><pre>1\n2</pre><td><pre>a\n  b</pre>", "1\n2\n\na\n  b"),
        ("<tr><td>menu<td><table><tr><td>x<td>y</table>", "menu\n\n| x | y |"),
    ],
)
def test_tables(table: str, lines: str) -> None:
    assert read(f"<table>{table}</table>") == lines


def test_text_in_its_shape() -> None:
    for source, text in {
        "a <b> b</b>c<i>d</i>\n\n e": "a bcd e",
        "<p>10<sup>6</sup> m<sup>2</sup>": "10^6 m^2",
        "<pre>a:\n  b: 1\n\n  c: 2</pre>": "a:\n  b: 1\n\n  c: 2",
        "<pre>    x\n  y</pre>": "    x\n  y",
        "<select><option>one<option>two</select><button>go</button>": "one two go",
        "Go<input type=submit value='Send it'>on <input value=Ann><input type=IMAGE alt=map value=no>": (
            "Go Send it on Ann map"
        ),
        "a <input type=hidden value=no><input type=checkbox value=no><input type=password value=no><input type=radio "
        "value=no> b": "a b",
        '<img alt="A map." src=x> of <svg><title>no</title><text>Velmora</text></svg>': "A map. of Velmora",
        "<p hidden>no<p>yes<template>no</template><noscript>no</noscript><dialog>no</dialog>": "yes",
        "<textarea>\na\n b</textarea>": "a\n b",
        "<dl><dt>a<dd>b</dl>": "a\n\nb",
        "<math><mi>x</mi><annotation>no</annotation></math>": "x",
    }.items():
        assert read(source) == text, source


@pytest.mark.parametrize("empty", ["title", "script", "style", "textarea", "div", "iframe", "a"])
def test_xhtml_is_read_as_xml(empty: str) -> None:
    page = f'<html xmlns="http://www.w3.org/1999/xhtml"><head><{empty}/></head><body><p>One<{empty}/></p><p>two</p></body></html>'
    for head in ("", '<?xml version="1.0"?>\n', f'<?xml version="1.0" encoding="utf-8"?>{TYPE}\n', TYPE):
        assert read(head + page) == "One\n\ntwo"


def test_xhtml_has_htmls_entities_titles_and_sections() -> None:
    body = "&eacute;&nbsp;<![CDATA[<b>]]>&#65;"
    found = html(f"{TYPE}<html><head><title>A&amp;B</title></head><body>{body}</body></html>", MOST)
    assert (found.title, clean(found.text)) == ("A&B", "é <b>A")


@pytest.mark.parametrize(
    "page",
    [
        '<?xml version="1.0"?><html><body><p>One<p>two</body></html>',
        f"{TYPE}<html><body>One<br><br>two",
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "two">]><html><body>One<br/><br/>two</body></html>',
    ],
)
def test_xhtml_that_is_not_well_formed_is_read_as_html(page: str) -> None:
    assert " ".join(read(page).replace("]>", "").split()) == "One two"


def test_the_text_is_bounded() -> None:
    rows = "<tr><td>x<td>y" * 1000
    with pytest.raises(TooLarge):
        html(f"<table><tr><th>{'a' * 50}<th>{'b' * 50}{rows}</table>", 20_000)
    assert len(html("<table><tr><td>word" * 100 + "</table>" * 100, 1000).text) < 1000
    assert xhtml("<html><body>" + "<i>" * 5000 + "x" + "</i>" * 5000 + "</body></html>", 10).text == "x"
