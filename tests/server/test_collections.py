"""Documents over HTTP: in, found, replaced, removed; what cannot be taken in is an error, and the server serves."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.retrieval.conftest import pdf
from waver.extras import how_to_install

COLLECTIONS = "/v1/collections"
JSON = {"content-type": "application/json"}
FACTS = [
    {"id": "arn", "text": "The Arn is the longest river of Velmora. It measures 412 km.", "metadata": {"lang": "en"}},
    {"id": "deep/osk", "text": "Osk ist eine Stadt. Ihr Käse ist berühmt.", "title": "Osk", "metadata": {"lang": "de"}},
]


@pytest.fixture(scope="module")
def library(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("data") / "collections"
    bounds = {"max_body_bytes": 3 * 2**20, "max_file_bytes": 2**20, "max_text_bytes": 2**18, "lock_seconds": 0.2}
    return start(config={"retrieval": {"path": str(path), **bounds}}, max_body_bytes=2**13)


@pytest.fixture
def http(library: Any) -> Iterator[httpx.Client]:
    with library.http() as client:
        yield client
        assert client.get("/ready").status_code == 200
        for each in client.get(COLLECTIONS).json()["data"]:
            client.delete(f"{COLLECTIONS}/{each['name']}")


@pytest.fixture
def facts(http: httpx.Client) -> str:
    assert http.post(COLLECTIONS, json={"name": "facts"}).status_code == 200
    answer = http.post(f"{COLLECTIONS}/facts/documents", json={"documents": FACTS})
    assert answer.json() == {"documents": [{"id": "arn", "chunks": 1}, {"id": "deep/osk", "chunks": 1}]}
    return f"{COLLECTIONS}/facts"


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    for internal in ("Traceback", "object at 0x", "/tmp/", "site-packages", "pydantic"):
        assert internal not in found["message"]
    return found


def test_nothing_is_loaded_by_a_start(library: Any) -> None:
    with library.http() as http:
        assert http.get(COLLECTIONS).json() == {"object": "list", "data": []}
    assert not library.runtime.library.embedder().loaded


def test_the_life_of_a_collection(http: httpx.Client) -> None:
    made = http.post(COLLECTIONS, json={"name": "handbook", "chunk_tokens": 64, "chunk_overlap": 16}).json()
    assert made.pop("bytes") > 0
    assert made == {
        "object": "collection",
        "name": "handbook",
        "documents": 0,
        "chunks": 0,
        "dimension": 384,
        "embedder": "all-MiniLM-L6-v2",
        "chunk_tokens": 64,
        "chunk_overlap": 16,
        "index": "flat",
    }
    again = http.post(COLLECTIONS, json={"name": "handbook"})
    assert error(again, 409)["code"] == "collection_exists"
    assert again.headers["x-should-retry"] == "false"
    assert [each["name"] for each in http.get(COLLECTIONS).json()["data"]] == ["handbook"]
    assert http.delete(f"{COLLECTIONS}/handbook").json()["deleted"] is True
    for path in ("handbook", "..%2Fx", "UPPER", "x" * 70):
        assert error(http.get(f"{COLLECTIONS}/{path}"), 404)
    assert error(http.delete(f"{COLLECTIONS}/handbook"), 404)["code"] == "collection_not_found"
    assert error(http.post(f"{COLLECTIONS}/none/search", json={"query": "x"}), 404)
    assert error(http.post(f"{COLLECTIONS}/none/documents", json={"documents": FACTS}), 404)


def test_search(http: httpx.Client, facts: str) -> None:
    found = http.post(f"{facts}/search", json={"query": "How long is the river?", "top_k": 1}).json()["passages"]
    assert [(each["document"], each["chunk"], each["text"]) for each in found] == [("arn", 0, FACTS[0]["text"])]
    assert 0 < found[0]["score"] <= 1
    other = http.post(f"{facts}/search", json={"query": "How long is the river?", "filter": {"lang": "de"}})
    assert [(each["document"], each["title"]) for each in other.json()["passages"]] == [("deep/osk", "Osk")]
    for mode in ("dense", "lexical"):
        answer = http.post(f"{facts}/search", json={"query": "Käse", "mode": mode}).json()
        assert answer["passages"][0]["document"] == "deep/osk" or mode == "dense"
    metrics = http.get("/metrics").text
    assert "waver_search_seconds_count" in metrics
    assert 'waver_documents_total{outcome="stored"}' in metrics


def test_documents_are_listed(http: httpx.Client, facts: str) -> None:
    whole = http.get(f"{facts}/documents").json()
    assert [each["id"] for each in whole["data"]] == ["arn", "deep/osk"]
    assert whole["data"][1] == {
        "object": "document", "id": "deep/osk", "title": "Osk", "chunks": 1, "metadata": FACTS[1]["metadata"],
    }  # fmt: skip
    assert not whole["has_more"]
    first = http.get(f"{facts}/documents", params={"limit": 1}).json()
    assert first["has_more"]
    after = http.get(f"{facts}/documents", params={"limit": 1, "after": first["data"][0]["id"]}).json()
    assert [first["data"][0], after["data"][0]] == whole["data"]
    assert not after["has_more"]
    for limit in ("0", "1001", "x"):
        assert error(http.get(f"{facts}/documents", params={"limit": limit}), 400)["param"] == "limit"
    assert error(http.get(f"{COLLECTIONS}/none/documents"), 404)["code"] == "collection_not_found"


def test_replace_and_remove(http: httpx.Client, facts: str) -> None:
    changed = [{"id": "arn", "text": "The Arn dried up."}]
    http.post(f"{facts}/documents", json={"documents": changed})
    assert http.get(facts).json()["documents"] == 2
    assert http.delete(f"{facts}/documents/deep/osk").json() == {
        "object": "document.deleted",
        "id": "deep/osk",
        "deleted": True,
    }
    assert error(http.delete(f"{facts}/documents/deep/osk"), 404)["code"] == "document_not_found"
    (found,) = http.post(f"{facts}/search", json={"query": "Arn"}).json()["passages"]
    assert found["text"] == "The Arn dried up."


def test_files(http: httpx.Client, facts: str) -> None:
    files = [
        ("file", ("a.md", b"# Rules\n\nBe *kind*.", "text/markdown")),
        ("file", ("deep/b.html", b"<p>Cheese.</p><script>alert(1)</script>", "text/html")),
        ("file", ("c.pdf", pdf("The mill is old."), "application/pdf")),
        ("file", ("d", "Grüße".encode(), "text/plain")),
    ]
    answer = http.post(f"{facts}/documents", files=files, data={"metadata": '{"from": "files"}'})
    assert {each["id"]: each["chunks"] for each in answer.json()["documents"]} == {
        "a.md": 1, "deep/b.html": 1, "c.pdf": 1, "d": 1,
    }  # fmt: skip
    found = http.post(f"{facts}/search", json={"query": "mill", "top_k": 9, "filter": {"from": "files"}})
    texts = {each["text"] for each in found.json()["passages"]}
    assert texts == {"Rules\n\nBe kind.", "Cheese.", "The mill is old.", "Grüße"}


def test_what_was_lost_is_told(http: httpx.Client, facts: str) -> None:
    russian = "Река течёт на север."
    files = [
        ("file", ("a.pdf", pdf("One.", "", "Three."), "application/pdf")),
        ("file", ("b.txt", b"The mill is old.\xff", "text/plain")),
        ("file", ("c.txt", russian.encode("cp1251"), "text/plain; charset=windows-1251")),
        ("file", ("d.html", f"<meta charset=windows-1251>{russian}".encode("cp1251"), "text/html")),
        ("file", ("e.md", b"---\ntitle: Rules\nlang: en\n---\nUse List<String>.", "text/markdown")),
    ]
    answer = http.post(f"{facts}/documents", files=files, data={"metadata": '{"from": "files"}'})
    assert {each["id"]: each.get("warnings") for each in answer.json()["documents"]} == {
        "a.pdf": ["page 2 of 3: no text layer, needs text recognition (OCR)"],
        "b.txt": ["1 character could not be read: damaged or cut off"],
        "c.txt": None,
        "d.html": None,
        "e.md": None,
    }
    found = http.post(f"{facts}/search", json={"query": "mill", "top_k": 9, "filter": {"from": "files"}})
    passages = {each["document"]: each for each in found.json()["passages"]}
    assert passages["c.txt"]["text"] == passages["d.html"]["text"] == russian
    assert (passages["e.md"]["title"], passages["e.md"]["text"]) == ("Rules", "Use List<String>.")
    assert passages["e.md"]["metadata"]["lang"] == "en"


def test_one_name_twice_is_refused_by_name(http: httpx.Client, facts: str) -> None:
    files = [("file", ("twin.txt", text, "text/plain")) for text in (b"one", b"two")]
    assert "'twin.txt'" in error(http.post(f"{facts}/documents", files=files), 400)["message"]
    documents = [{"id": "twin", "text": text} for text in ("one", "one")]
    assert "'twin'" in error(http.post(f"{facts}/documents", json={"documents": documents}), 400)["message"]
    for name in ("a\nb", "a\rb", "\u2028", "x\x85", "a\0"):
        answer = http.post(f"{facts}/documents", json={"documents": [{"id": f"x{name}x", "text": "x"}]})
        assert "line break" in error(answer, 400)["message"]
    assert http.get(facts).json()["documents"] == 2


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("name=file; filename*=UTF-8''a.txt", "a.txt"),
        ("name=\"file\"; filename*=utf-8'de'stra%C3%9Fe%20%22x%22.txt", 'straße "x".txt'),
        ("name=file; filename*=ISO-8859-1''stra%DFe.txt", "straße.txt"),
        ("name=file; filename=\"plain.txt\"; filename*=UTF-8''other.txt", "plain.txt"),
        ("filename*=UTF-8''%E6%A1%A5.txt; name=file", "桥.txt"),
        ("name=file; filename*=KOI8-R''a.txt", None),
        ("name=file; filename*=a.txt", None),
        ("name=file", None),
    ],
)
def test_names_of_files_in_both_forms(http: httpx.Client, facts: str, disposition: str, name: str | None) -> None:
    body = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\ntext\r\n--x--\r\n".encode()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = http.post(f"{facts}/documents", content=body, headers=headers)
    if name is None:
        assert error(answer, 400)["param"] == "file"
    else:
        assert answer.json()["documents"] == [{"id": name, "chunks": 1}], answer.text


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a.txt", bytes(20 * 2**20))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("empty.txt", b"", 400),
        ("blob.txt", os.urandom(5000) + b"\0", 400),
        ("bomb.zip", archive(), 400),
        ("broken.pdf", pdf("x")[:150], 400),
        ("scripts.html", b"<script>alert(1)</script>", 400),
        ("large.txt", b"word " * 2**18, 413),
        ("much.txt", b"word " * 2**16, 413),
        ("squeezed.pdf", pdf("", compress=True, content=b"BT /F1 9 Tf (%s) Tj ET\n" % (b"A" * 2**16) * 64), 413),
    ],
)
def test_what_cannot_be_taken_in(http: httpx.Client, facts: str, name: str, data: bytes, status: int) -> None:
    good = ("file", ("good.txt", b"This is good.", "text/plain"))
    answer = http.post(f"{facts}/documents", files=[good, ("file", (name, data, "application/octet-stream"))])
    assert name in error(answer, status)["message"]
    assert http.get(facts).json()["documents"] == 2


def test_bodies_have_their_own_limit(http: httpx.Client, facts: str) -> None:
    text = "The road is long. " * 600
    assert http.post(f"{facts}/documents", json={"documents": [{"id": "road", "text": text}]}).status_code == 200
    assert error(http.post(f"{facts}/search", json={"query": text}), 413)["code"] == "body_too_large"
    assert error(http.post(f"{facts}/documents", json={"documents": [{"id": "x", "text": "x" * 2**19}]}), 413)

    def sparse() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(2**20)

    assert error(http.post(f"{facts}/documents", content=sparse(), headers=JSON), 413)["code"] == "body_too_large"
    assert http.get(facts).json()["documents"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": [{"text": "x"}]}, "documents[0].id"),
        ({"documents": [{"id": "", "text": "x"}]}, "documents[0].id"),
        ({"documents": [{"id": 5, "text": "x"}]}, "documents[0].id"),
        ({"documents": [{"id": "a", "text": "x", "metadata": {"k": {"v": 1}}}]}, "documents[0].metadata.k"),
        ({"documents": [{"id": "a", "text": "x", "metadata": {"k": [1, 2]}}]}, "documents[0].metadata.k"),
        ({"documents": [{"id": "a", "text": "\ud800"}]}, "documents[0].text"),
    ],
)
def test_bad_documents_name_the_field(http: httpx.Client, facts: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(f"{facts}/documents", content=json.dumps(body), headers=JSON)
    found = error(answer, 400)
    assert found["param"] == param
    if "metadata" in param:
        assert found["message"].endswith("should be a string, a number, true, false or null.")


def test_bad_requests(http: httpx.Client, facts: str) -> None:
    documents = f"{facts}/documents"
    for content in (b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000):
        assert error(http.post(documents, content=content, headers=JSON), 400)
    assert error(http.post(documents, json={"documents": [{"id": "a", "text": " "}]}), 400)
    assert error(http.post(documents, files={"other": b"x"}), 400)
    for metadata in ("[]", '{"a": NaN}', '{"a": -Infinity}', '{"a": [NaN]}', '{"a": "\\ud800"}'):
        answer = http.post(documents, data={"metadata": metadata}, files={"file": b"x"})
        assert error(answer, 400)["param"] == "metadata", metadata
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""):
        answer = http.post(documents, content=json.dumps({"documents": FACTS}), headers={"content-type": kind})
        assert "Content-Type: application/json" in error(answer, 400)["message"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert error(http.post(documents, content=b"--y\r\n", headers=broken), 400)
    for charset in ("punycode", '"IDNA"', "bz2", "utf-16"):
        other = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        assert "UTF-8" in error(http.post(documents, content=b"--x--\r\n", headers=other), 400)["message"]
    for body, param in (
        ({"query": ""}, "query"),
        ({"query": "x", "top_k": 0}, "top_k"),
        ({"query": "x", "top_k": 10**6}, "top_k"),
        ({"query": "x", "filter": {"a": {"b": 1}}}, "filter"),
        ({"query": "x", "mode": "psychic"}, "mode"),
    ):
        assert error(http.post(f"{facts}/search", json=body), 400)["param"] == param
    for body in (
        {},
        {"name": "Upper"},
        {"name": "../x"},
        {"name": "a", "embedder": "evil/model"},
        {"name": "a", "chunk_tokens": 255},
        {"name": "a", "chunk_tokens": 32, "chunk_overlap": 17},
    ):
        assert error(http.post(COLLECTIONS, json=body), 400)


def test_a_busy_collection_says_when_to_come_back(library: Any, http: httpx.Client, facts: str) -> None:
    with library.runtime.library.open("facts").store.writing():
        answer = http.post(f"{facts}/documents", json={"documents": [{"id": "x", "text": "x"}]})
        assert error(answer, 503)["code"] == "collection_busy"
        assert answer.headers["retry-after"]
        assert http.post(f"{facts}/search", json={"query": "Arn"}).json()["passages"]


def test_a_damaged_collection_harms_no_other(library: Any, http: httpx.Client, facts: str) -> None:
    http.post(COLLECTIONS, json={"name": "broken"})
    library.runtime.library.forget("broken")
    (Path(library.runtime.config.retrieval.path) / "broken" / "collection.sqlite3").write_bytes(b"junk" * 2000)
    assert error(http.post(f"{COLLECTIONS}/broken/search", json={"query": "x"}), 503)["code"] == "collection_damaged"
    listed = {each["name"]: each for each in http.get(COLLECTIONS).json()["data"]}
    assert "damaged" in listed["broken"]["error"]
    assert listed["facts"]["documents"] == 2


def test_damage_to_the_vectors_is_listed_too(library: Any, http: httpx.Client, facts: str) -> None:
    assert http.post(f"{facts}/search", json={"query": "Arn"}).status_code == 200
    for file in (Path(library.runtime.config.retrieval.path) / "facts").glob("*.faiss"):
        file.unlink()
    (listed,) = http.get(COLLECTIONS).json()["data"]
    assert re.search(r"damaged: \w+\.faiss is missing", listed["error"])
    assert error(http.get(facts), 503)["code"] == "collection_damaged"


def test_a_filter_of_very_many_values_is_the_clients_mistake(http: httpx.Client, facts: str) -> None:
    body = {"query": "river", "filter": {"lang": ["en"] * 1001}}
    found = error(http.post(f"{facts}/search", json=body), 400)
    assert found["param"] == "filter"
    assert "at most 1000 values" in found["message"]
    assert http.post(f"{facts}/search", json={"query": "river", "filter": {"lang": ["en"] * 1000}}).status_code == 200


def test_a_full_disk_is_507_and_alarms_nobody(
    library: Any, http: httpx.Client, facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/data/collections/facts/x")

    body = {"documents": [{"id": "x", "text": "x"}]}
    with monkeypatch.context() as patch:
        patch.setattr("waver.retrieval.faiss_writer.build", full)
        answer = http.post(f"{facts}/documents", json=body)
        found = error(answer, 507)
        assert (found["code"], found["type"]) == ("storage_full", "server_error")
        assert "/data" not in found["message"]
        assert answer.headers["x-should-retry"] == "false"
    assert http.get(facts).json()["documents"] == 2
    assert http.post(f"{facts}/documents", json=body).status_code == 200


def test_every_json_route_wants_json(library: Any, http: httpx.Client, facts: str) -> None:
    """A page elsewhere can send `text/plain` without asking first."""
    posts = [path for path, methods in library.server.config.app.openapi()["paths"].items() if "post" in methods]
    assert len(posts) >= 8
    for path in posts:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = http.post(
                path.replace("{name}", "facts"), content=b'{"name": "x"}', headers={"content-type": kind}
            )
            assert answer.status_code == 400, (path, kind, answer.text)


def test_many_at_once(http: httpx.Client, library: Any, facts: str) -> None:
    statuses: list[int] = []

    def work(i: int) -> None:
        with library.http() as client:
            if i % 4 == 0:
                body = {"documents": [{"id": f"n{i}", "text": f"Note {i} about the mill."}]}
                statuses.append(client.post(f"{facts}/documents", json=body).status_code)
            else:
                statuses.append(client.post(f"{facts}/search", json={"query": f"Where is mill {i}?"}).status_code)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 24
    assert http.get(facts).json()["documents"] == 8


def test_embeddings_with_the_sdk(library: Any, http: httpx.Client) -> None:
    with library.openai() as client:
        floats = client.embeddings.create(model="all-MiniLM-L6-v2", input="How long?", encoding_format="float")
        packed = client.embeddings.create(model="all-MiniLM-L6-v2", input=["How long?", "Cheese."])
        assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (5, 5)
        assert [each.index for each in packed.data] == [0, 1]
        assert np.allclose(floats.data[0].embedding, packed.data[0].embedding, atol=1e-6)
        assert np.linalg.norm(floats.data[0].embedding) == pytest.approx(1, abs=1e-5)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="text-embedding-3-small", input="x")
    raw = http.post("/v1/embeddings", json={"input": "x", "encoding_format": "base64", "dimensions": 384}).json()
    assert len(base64.b64decode(raw["data"][0]["embedding"])) == 4 * 384
    blank = http.post("/v1/embeddings", json={"input": ["a", " "]}).json()["data"]  # a text, if an odd one
    assert [np.linalg.norm(each["embedding"]) for each in blank] == pytest.approx([1, 1], abs=1e-5)
    for body, words in (
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, r"input\[1\] is empty"),
        ({"input": [1, 2, 3]}, "token ids"),
        ({"input": ["a", "river " * 300]}, r"300 tokens.*254"),
        ({"input": "x", "dimensions": 12}, "384"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ):
        message = error(http.post("/v1/embeddings", json=body), 400)["message"]
        assert re.search(words, message), message


def test_without_the_packages_there_is_a_sentence(
    library: Any, http: httpx.Client, facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.runtime.library.forget("facts")
    monkeypatch.setattr(library.runtime.library, "_backend", None)
    loaded = {f"waver.retrieval.{name}" for name in ("faiss_store", "faiss_writer", "segments", "index")}
    for name in loaded & set(sys.modules):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = error(http.get(facts), 501)
    assert how_to_install("retrieval").split(maxsplit=1)[1] in found["message"]
    assert not re.search(r"(?<!\w)/\w", found["message"])
    assert error(http.post(f"{facts}/search", json={"query": "x"}), 501)
    monkeypatch.undo()
    assert http.get(facts).status_code == 200


@pytest.mark.parametrize("form", ["json", "file", "documents"])
def test_an_abandoned_upload_stops_and_holds_nobody_up(
    library: Any, http: httpx.Client, facts: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Each batch takes 0.1 s longer, so that the upload is far from its end when its client leaves."""

    def slow(embedder: Any) -> Any:
        time.sleep(0.1)
        return nullcontext()

    monkeypatch.setattr("waver.retrieval.embedder.Embedder._rounding", slow)
    lines = [f"The mill of town {i} is old, and its river is {i * 7} km long." for i in range(3500)]
    body: dict[str, Any] = {
        "json": {"json": {"documents": [{"id": "long", "text": " ".join(lines)}]}},
        "file": {"files": {"file": ("long.md", " ".join(lines), "text/markdown")}},
        "documents": {"json": {"documents": [{"id": f"d{i}", "text": line} for i, line in enumerate(lines)]}},
    }[form]
    assert http.post(COLLECTIONS, json={"name": "other"}).status_code == 200
    with pytest.raises(httpx.ReadTimeout), library.http() as leaving:
        leaving.post(f"{facts}/documents", **body, timeout=1.5)
    # The server may take a moment to notice; what others send is taken in meanwhile, and no place is held after it.
    small = {"documents": [{"id": "small", "text": "Cheese."}]}
    assert http.post(f"{COLLECTIONS}/other/documents", json=small, timeout=60).status_code == 200
    wait_until(lambda: library.runtime.ingests.running == 0)
    assert "ingesting" not in http.get(facts).json()
    assert (http.get(facts).json()["documents"], http.get(f"{COLLECTIONS}/other").json()["documents"]) == (2, 1)
    assert http.get(facts).json()["chunks"] == 2


def test_an_upload_under_way_tells_how_far_it_is(
    library: Any, http: httpx.Client, facts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def gate(embedder: Any) -> Any:
        reached.set()
        assert go_on.wait(60)
        return nullcontext()

    monkeypatch.setattr("waver.retrieval.embedder.Embedder._rounding", gate)
    answers: list[httpx.Response] = []
    body = {"documents": [{"id": f"d{i}", "text": f"Town {i} has a mill."} for i in range(3)]}

    def send() -> None:
        with library.http() as client:
            answers.append(client.post(f"{facts}/documents", json=body, timeout=60))

    sending = threading.Thread(target=send)
    sending.start()
    assert reached.wait(60)
    (told,) = http.get(facts).json()["ingesting"]
    assert told.pop("seconds") >= 0
    assert told == {"documents": 3, "chunks": 3, "embedded": 0}
    go_on.set()
    sending.join(60)
    assert answers[0].status_code == 200
    again = http.post(f"{facts}/documents", json=body).json()["documents"]
    assert again == [{"id": f"d{i}", "chunks": 1, "unchanged": True} for i in range(3)]
    assert "ingesting" not in http.get(facts).json()


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("value", [{"$gte": 1}, {"$in": ["a"]}, {}])
def test_operators_in_a_filter_are_said_to_be_none(http: httpx.Client, facts: str, value: Any) -> None:
    found = error(http.post(f"{facts}/search", json={"query": "x", "filter": {"n": value}}), 400)
    assert found["param"] == "filter"
    assert "operators such as '$gte' are not supported" in found["message"]


def test_what_a_question_leaves_unread_is_said(http: httpx.Client, facts: str) -> None:
    long = http.post(f"{facts}/search", json={"query": "How long is the river? " * 100}).json()
    assert len(long["passages"]) == 2
    assert "all-MiniLM-L6-v2' reads the first 254" in long["warnings"][0]
    assert "warnings" not in http.post(f"{facts}/search", json={"query": "How long is the river?"}).json()
