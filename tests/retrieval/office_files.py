"""Small office files, made by hand."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
TYPES = "application/vnd.openxmlformats-officedocument"


def archive(files: Mapping[str, str]) -> bytes:
    """A ZIP archive of texts; the first one is not compressed, as EPUB wants it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for i, (name, content) in enumerate(files.items()):
            made.writestr(name, content, zipfile.ZIP_DEFLATED if i else zipfile.ZIP_STORED)
    return out.getvalue()


def package(parts: Mapping[str, tuple[str, str]], main: str, more: Mapping[str, str]) -> bytes:
    """An office package: parts by name, each with its content type; `main` is the document."""
    types = "".join(f'<Override PartName="/{name}" ContentType="{TYPES}.{kind}"/>' for name, (kind, _) in parts.items())
    return archive(
        {
            "[Content_Types].xml": '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/'
            'content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
            f'relationships+xml"/><Default Extension="xml" ContentType="application/xml"/>{types}</Types>',
            "_rels/.rels": relations({"officeDocument": main}),
            **{name: f'<?xml version="1.0" encoding="UTF-8"?>{content}' for name, (_, content) in parts.items()},
            **more,
        }
    )


def relations(targets: Mapping[str, str]) -> str:
    each = "".join(
        f'<Relationship Id="rId{i}" Type="{DOCUMENT}/{kind}" Target="{target}"/>'
        for i, (kind, target) in enumerate(targets.items(), 1)
    )
    return f'<?xml version="1.0"?><Relationships xmlns="{RELATIONS}">{each}</Relationships>'


def docx() -> bytes:
    """A heading, a paragraph, and a table of two rows."""

    def paragraph(text: str, style: str = "") -> str:
        about = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        return f"<w:p>{about}<w:r><w:t>{text}</w:t></w:r></w:p>"

    def row(*cells: str) -> str:
        return f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in cells)}</w:tr>"

    body = paragraph("Rivers", "Heading1") + paragraph("The Arn is 412 km long.")
    body += f"<w:tbl>{row('town', 'river')}{row('Osk', 'Tau')}</w:tbl>{paragraph('R&amp;D of List&lt;String&gt;.')}"
    content = (
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        f"<w:body>{body}</w:body></w:document>"
    )
    return package({"word/document.xml": ("wordprocessingml.document.main+xml", content)}, "word/document.xml", {})


def xlsx() -> bytes:
    """One sheet with a header and two rows."""
    sheet = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"

    def row(number: int, *cells: str | int) -> str:
        written = "".join(
            f'<c r="{"AB"[i]}{number}"><v>{cell}</v></c>'
            if isinstance(cell, int)
            else f'<c r="{"AB"[i]}{number}" t="inlineStr"><is><t>{cell}</t></is></c>'
            for i, cell in enumerate(cells)
        )
        return f'<row r="{number}">{written}</row>'

    rows = row(1, "town", "km") + row(2, "Osk", 412) + row(3, "Vel", 31)
    book = (
        f'<workbook xmlns="{sheet}" xmlns:r="{DOCUMENT}"><sheets><sheet name="Towns" sheetId="1" r:id="rId1"/></sheets>'
        "</workbook>"
    )
    return package(
        {
            "xl/workbook.xml": ("spreadsheetml.sheet.main+xml", book),
            "xl/worksheets/sheet1.xml": (
                "spreadsheetml.worksheet+xml",
                f'<worksheet xmlns="{sheet}"><sheetData>{rows}</sheetData></worksheet>',
            ),
        },
        "xl/workbook.xml",
        {"xl/_rels/workbook.xml.rels": relations({"worksheet": "worksheets/sheet1.xml"})},
    )


def pptx() -> bytes:
    """One slide with a title and a line."""
    main = "http://schemas.openxmlformats.org/presentationml/2006/main"
    drawing = "http://schemas.openxmlformats.org/drawingml/2006/main"

    def shape(number: int, text: str, kind: str) -> str:
        return (
            f'<p:sp><p:nvSpPr><p:cNvPr id="{number}" name="{kind}"/><p:cNvSpPr/><p:nvPr><p:ph type="{kind}"/></p:nvPr>'
            f"</p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
        )

    slide = (
        f'<p:sld xmlns:p="{main}" xmlns:a="{drawing}"><p:cSld><p:spTree><p:nvGrpSpPr><p:cNvPr id="1" name=""/>'
        f"<p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>{shape(2, 'Mills', 'title')}"
        f"{shape(3, 'The mill of Osk is old.', 'body')}</p:spTree></p:cSld></p:sld>"
    )
    talk = (
        f'<p:presentation xmlns:p="{main}" xmlns:r="{DOCUMENT}"><p:sldIdLst>'
        '<p:sldId id="256" r:id="rId1"/></p:sldIdLst></p:presentation>'
    )
    return package(
        {
            "ppt/presentation.xml": ("presentationml.presentation.main+xml", talk),
            "ppt/slides/slide1.xml": ("presentationml.slide+xml", slide),
        },
        "ppt/presentation.xml",
        {"ppt/_rels/presentation.xml.rels": relations({"slide": "slides/slide1.xml"})},
    )


def epub() -> bytes:
    """A book of one chapter."""
    page = (
        '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>One</title></head><body>'
        "<h1>Cheese</h1><p>The cheese of Osk is famous.</p></body></html>"
    )
    content = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="id">x</dc:identifier>'
        "<dc:title>The town book</dc:title><dc:language>en</dc:language></metadata><manifest>"
        '<item id="one" href="one.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="one"/></spine></package>'
    )
    container = (
        '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="content.opf" media-type="application/oebps-package+xml"/></rootfiles>'
        "</container>"
    )
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": container,
            "content.opf": content,
            "one.xhtml": page,
        }
    )
