"""Word, PowerPoint and Excel files and EPUB books: what a reader sees of them, in the process that can be killed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.retrieval.office_files import DOCUMENT, archive, docx, epub, pptx, relations, xlsx
from waver.retrieval.base import BadDocument, TooLarge
from waver.retrieval.formats import clean, office
from waver.retrieval.parsing import Parsers


@pytest.mark.parametrize(
    ("data", "name", "text"),
    [
        (
            docx(),
            "a.docx",
            "Rivers\n\nThe Arn is 412 km long.\n\n| town | river |\n| town: Osk | river: Tau |\n\nR&D of List<String>.",
        ),
        (xlsx(), "a.xlsx", "Towns\n\n| town | km |\n| town: Osk | km: 412 |\n| town: Vel | km: 31 |"),
        (pptx(), "a.pptx", "Mills\n\nThe mill of Osk is old."),
        (epub(), "a.epub", "Cheese\n\nThe cheese of Osk is famous."),
    ],
)
def test_what_they_hold(parsers: Parsers, data: bytes, name: str, text: str) -> None:
    for called in (name, "unnamed"):
        assert parsers.parse(data, called).text == text
    assert parsers.parse(data, name).title == {"a.epub": "The town book"}.get(name, text.partition("\n")[0])


def parts(data: bytes) -> dict[str, str]:
    """The parts of a file by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return {name: found.read(name).decode() for name in found.namelist()}


def read(data: bytes, **others: str) -> str:
    """The text of a file with other parts, in whose names `__` stands for `/` and `_` for `.`."""
    other = {name.replace("__", "/").replace("_", "."): part for name, part in others.items()}
    return clean(office(archive(parts(data) | other), 10_000, "").text)


def word(body: str) -> str:
    return (
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" xmlns:wp="urn:wp" '
        f'xmlns:mc="urn:mc"><w:body>{body}</w:body></w:document>'
    )


def run(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (f"<w:p>{run('one')}<w:r><w:tab/></w:r>{run('two')}<w:r><w:br/></w:r>{run('three')}</w:p>", "one two\nthree"),
        (f"<w:p><w:del>{run('gone')}</w:del><w:ins>{run('kept')}</w:ins></w:p>", "kept"),
        ("<w:p><w:r><w:instrText>PAGE</w:instrText></w:r><w:r><w:t>1</w:t></w:r></w:p>", "1"),
        (f"<w:p><w:r><wp:docPr descr='a map'/></w:r>{run('of Osk')}</w:p>", "a map of Osk"),
        (
            f"<mc:AlternateContent><mc:Choice><w:p>{run('once')}</w:p></mc:Choice>"
            f"<mc:Fallback><w:p>{run('once')}</w:p></mc:Fallback></mc:AlternateContent>",
            "once",
        ),
        (f"<w:p>{run('split')}{run('word')}</w:p>", "splitword"),
        (f"<w:p>{run('a &lt;b&gt; &amp; c')}</w:p><w:p/><w:p>{run('d')}</w:p>", "a <b> & c\n\nd"),
    ],
)
def test_what_a_page_of_word_shows(body: str, text: str) -> None:
    assert read(docx(), word__document_xml=word(body)) == text


def test_headings_of_word_in_any_language_notes_and_properties() -> None:
    body = word(f"<w:p><w:pPr><w:pStyle w:val='berschrift2'/></w:pPr>{run('Mühlen')}</w:p><w:p>{run('Alt.')}</w:p>")
    styles = word('<w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>')
    others = {
        "word/document.xml": body,
        "word/styles.xml": styles,
        "word/footnotes.xml": word(f"<w:p>{run('A note.')}</w:p>"),
    }
    found = office(archive(parts(docx()) | others), 1000, "")
    assert (found.title, found.text) == ("Mühlen", "Mühlen\n\nAlt.\n\nA note.")
    core = '<c:coreProperties xmlns:c="urn:c" xmlns:dc="urn:dc"><dc:title>The  mills</dc:title></c:coreProperties>'
    assert office(archive(parts(docx()) | others | {"docProps/core.xml": core}), 1000, "").title == "The mills"


def test_slides_in_order_with_their_notes() -> None:
    slide = parts(pptx())["ppt/slides/slide1.xml"]
    talk = (
        f'<p:presentation xmlns:p="urn:p" xmlns:r="{DOCUMENT}"><p:sldIdLst><p:sldId r:id="rId2" id="257"/>'
        '<p:sldId id="256" r:id="rId1"/></p:sldIdLst></p:presentation>'
    )
    others = {
        "ppt/presentation.xml": talk,
        "ppt/_rels/presentation.xml.rels": relations({"slide": "slides/slide1.xml", "other": "/ppt/slides/slide2.xml"}),
        "ppt/slides/slide2.xml": slide.replace("Mills", "Cheese").replace("The mill of Osk is old.", "It is famous."),
        "ppt/slides/_rels/slide2.xml.rels": relations({"notesSlide": "../notesSlides/n1.xml"}),
        "ppt/notesSlides/n1.xml": slide.replace("Mills", "").replace("The mill of Osk is old.", "Say hello."),
    }
    found = office(archive(parts(pptx()) | others), 1000, "")
    assert found.text == "Cheese\n\nIt is famous.\n\nSay hello.\n\nMills\n\nThe mill of Osk is old."
    assert found.title == "Cheese"


def test_cells_of_excel_as_they_are_shown() -> None:
    styles = (
        '<s xmlns="urn:s"><numFmts><numFmt numFmtId="164" formatCode="yyyy\\-mm"/>'
        '<numFmt numFmtId="165" formatCode="0.0 &quot;days&quot;"/></numFmts>'
        '<cellStyleXfs><xf numFmtId="14"/></cellStyleXfs><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/>'
        '<xf numFmtId="164"/><xf numFmtId="165"/><xf numFmtId="22"/><xf numFmtId="20"/></cellXfs></s>'
    )
    strings = '<s xmlns="urn:s"><si><t>town</t></si><si><r><t>O</t></r><r><t>sk</t></r><rPh><t>aid</t></rPh></si></s>'
    rows = (
        '<row><c r="A1" t="s"><v>0</v></c><c r="C1" t="inlineStr"><is><t>day</t></is></c>'
        '<c r="D1" t="str"><v>x</v></c></row>'
        '<row><c r="A2" t="s"><v>1</v></c><c r="C2" s="1"><v>45292</v></c><c r="D2" s="2"><v>45293</v></c></row>'
        '<row><c r="A3" t="b"><v>1</v></c><c r="C3" s="3"><v>45292</v></c><c r="D3" s="4"><v>45292.5</v></c></row>'
        '<row><c t="s"><v>9</v></c><c s="5"><v>0.25</v></c><c t="e"><v>#N/A</v></c></row><row/>'
    )
    others = {
        "xl/styles.xml": styles,
        "xl/sharedStrings.xml": strings,
        "xl/worksheets/sheet1.xml": f'<w xmlns="urn:s"><sheetData>{rows}</sheetData></w>',
    }
    assert office(archive(parts(xlsx()) | others), 1000, "").text.split("\n") == [
        "Towns",
        "",
        "| town |  | day | x |",
        "| town: Osk |  | day: 2024-01-01 | x: 2024-01-02 |",
        "| town: true |  | day: 45292 | x: 2024-01-01 12:00:00 |",
        "|  | 06:00:00 | day: #N/A |",
    ]


@pytest.mark.parametrize("make", [docx, xlsx, pptx, epub])
def test_damage_is_a_sentence(make: Callable[[], bytes]) -> None:
    whole = make()
    for cut in range(30, len(whole), 37):
        for data in (whole[:cut], whole[:cut] + bytes(20) + whole[cut + 20 :], whole[:cut] + whole[cut + 5 :]):
            with suppress(BadDocument):
                assert isinstance(office(data, 10_000, "").text, str)


def test_bounds_and_entities() -> None:
    with pytest.raises(TooLarge):
        office(docx(), 20, "")
    entity = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]>' + word("<w:p><w:r><w:t>&a;</w:t></w:r></w:p>")
    with pytest.raises(BadDocument, match="damaged"):
        read(docx(), word__document_xml=entity)


def test_what_is_no_office_file(parsers: Parsers) -> None:
    with pytest.raises(BadDocument, match="called an office file but is none"):
        parsers.parse(b"text", "a.docx")
    with pytest.raises(BadDocument, match="ZIP archive"):
        parsers.parse(archive({"a.txt": "x"}), "a.docx")
