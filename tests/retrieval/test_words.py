"""Lexical search in any language: scripts without spaces, compatibility forms, and characters that cannot be seen."""

from __future__ import annotations

import math
import sqlite3
import unicodedata
from pathlib import Path

import pytest

from tests.retrieval.conftest import new_store, prepared, unit
from waver.retrieval.base import Document, EmbeddedDocument
from waver.retrieval.collection import Collection
from waver.retrieval.database import Database
from waver.retrieval.faiss_store import FaissStore
from waver.retrieval.library import Library
from waver.retrieval.words import LOOKED_AT, MOST, repeated_terms, search_terms, wanted, words

TEXTS = {
    "bridge": "这座桥悬空在河上，长一百米。",
    "audit": "什么是ITGC审计？它检查系统的控制。",
    "python": "我们用Python写程序，第3章有例子。",
    "sandbox": "アプリはサンドボックスで動きます。",
    "coffee": "ｺｰﾋｰを飲む店です。",
    "korea": "대한민국의 수도는 서울입니다.",
    "spaces": "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "khmer": "ភាសាខ្មែរគ្មានដកឃ្លារវាងពាក្យ",
    "lao": "ພາສາລາວບໍ່ມີຊ່ອງຫວ່າງ",
    "burmese": "မြန်မာစာကို ဖတ်ပါ",
    "hindi": "हिन्दी में किताबें पढ़ना अच्छा है।",
    "hyphens": "Der Ge\u00adsamt\u00adpreis steht unten.",
    "zero": "The zero\u200bwidth and word\u2060joiner marks.",
    "ligature": "Open the ﬁle in the oﬃce.",
    "wide": "ＷＡＶＥＲ２ runs.",
    "greek": "Η ΑΘΗΝΑ είναι πόλη.",
    "arabic": "كَتَبَ مُحَمَّد كتـــابا.",
    "hebrew": "שָׁלוֹם לְכֻלָּם",
    "german": "Die Straße ist GROSS.",
    "vietnamese": "Đà Nẵng ở Việt Nam.",
}


@pytest.fixture
def many(library: Library) -> Collection:
    made = library.create("many")
    made.add([Document(name, text) for name, text in TEXTS.items()])
    return made


def test_every_script_is_found(many: Collection) -> None:
    for question, name in (
        ("悬空", "bridge"), ("桥", "bridge"), ("一百米", "bridge"), ("桥悬空吗", "bridge"),
        ("itgc", "audit"), ("审计", "audit"), ("ITGC审计", "audit"), ("ｉｔｇｃ", "audit"),
        ("python", "python"), ("程序", "python"), ("3", "python"),
        ("サンドボックス", "sandbox"), ("ボックス", "sandbox"), ("ｻﾝﾄﾞﾎﾞｯｸｽ", "sandbox"),
        ("コーヒー", "coffee"), ("ｺｰﾋｰ", "coffee"), ("飲む", "coffee"),
        ("민국", "korea"), ("서울", "korea"), (unicodedata.normalize("NFD", "대한민국"), "korea"),
        ("ช่องว่าง", "spaces"), ("ไทย", "spaces"), ("ภาษา", "spaces"),
        ("ខ្មែរ", "khmer"), ("ພາສາ", "lao"), ("မြန်မာ", "burmese"),
        ("किताबें", "hindi"), ("हिन्दी", "hindi"),
        ("Gesamtpreis", "hyphens"), ("Gesamt\u00adpreis", "hyphens"), ("GESAMTPREIS", "hyphens"),
        ("zerowidth", "zero"), ("wordjoiner", "zero"), ("zero\u200dwidth", "zero"),
        ("file", "ligature"), ("office", "ligature"), ("ﬁle", "ligature"),
        ("waver2", "wide"), ("ＷＡＶＥＲ２", "wide"),
        ("محمد", "arabic"), ("مُحَمَّد", "arabic"), ("كتابا", "arabic"), ("كتب", "arabic"),
        ("שלום", "hebrew"), ("שָׁלוֹם", "hebrew"), ("לכלם", "hebrew"),
        ("Strasse", "german"), ("straße", "german"), ("STRAẞE", "german"), ("groß", "german"),
        ("da nang", "vietnamese"), (unicodedata.normalize("NFD", "việt nam"), "vietnamese"),
        ("αθήνα", "greek"), ("αθηνα", "greek"), ("πολη", "greek"), ("ΠΌΛΗ", "greek"),
    ):  # fmt: skip
        found = many.search_now(question, 3, mode="lexical")
        assert found, question
        assert found[0].document == name, question
    for question in ("空悬", "박물관", "ไม้เอก", "किता", "Gesamt", "zero"):
        assert not many.search_now(question, 3, mode="lexical"), question


def test_what_is_indexed_and_what_is_asked() -> None:
    assert words("Use snake_case, x-1.") == ["use", "snake", "case", "x", "1"]
    assert words("用A写") == ["用", "a", "写"]
    assert words("大学生") == ["大", "学", "生", "大学", "学生"]
    assert search_terms("大学生") == ["大学", "学生"]
    assert search_terms("生") == ["生"]
    assert search_terms("the and") == ["the", "and"]
    assert search_terms("the river and the Arn") == ["river", "arn"]
    assert repeated_terms("The mill, the Mill and a river: 大学, 大学") == ["mill", "river", "大学", "mill", "大学"]
    assert repeated_terms("the the and") == ["the", "and", "the"]
    assert repeated_terms("mill " * 999 + "river") == ["mill", "river", *["mill"] * (MOST - 2)]
    assert words("น้ำ") == words("น้\u0e4d\u0e32")  # both ways of writing a vowel


def test_a_title_is_found_with_every_passage(library: Library) -> None:
    made = library.create("titled")
    made.add([Document("a", "The second part is blue.", "Gearbox manual"), Document("b", "The first is red.", "Lamps")])
    assert [each.document for each in made.search_now("gearbox", mode="lexical")] == ["a"]
    assert made.search_now("gearbox", 1, mode="dense")[0].document == "a"
    assert made.search_now("gearbox", 1)[0].text == "The second part is blue."


def test_a_title_leaves_room_for_its_passages(library: Library) -> None:
    most = library.embedder().most_tokens
    made = library.create("long", chunk_tokens=most, chunk_overlap=0)
    cut = made.cut(Document("a", "river " * 600 + "cheese", "A title of several words"))
    assert sum(chunk.count("river") for chunk in cut.chunks) == 600
    assert all(count <= most for count in library.embedder().count(cut.read))


def test_what_a_question_leaves_unread_is_said(many: Collection) -> None:
    assert many.unread("How long is the river?") == ()
    long = " ".join(f"word{i}" for i in range(400))
    tokens, terms = many.unread(long)
    assert str(many.embedder.most_tokens) in tokens
    assert str(MOST) in terms
    assert many.unread(long, "lexical") == (terms,)
    assert many.unread(long, "dense") == (tokens,)
    assert many.unread("very " * 400) == (tokens.replace(str(many.embedder.count([long])[0]), "400"),)


@pytest.mark.parametrize(
    ("version", "table"),
    [
        (1, "text, content='chunks', content_rowid='id', tokenize='porter unicode61'"),
        (2, "text, tokenize='porter unicode61'"),
    ],
)
def test_an_index_of_before_is_brought_up_to_date(tmp_path: Path, version: int, table: str) -> None:
    store = new_store(tmp_path)
    with store.writing() as writer:
        made = prepared("a", 1)
        text = "这座桥悬空在河上"
        writer.add([EmbeddedDocument(Document("a", text, "Bridges"), (text, "more"), made.vectors, "")])
        writer.add([prepared("b", 2)])
    now = [each.score for each in store.find(None, "bridges", 3, {})[1]]
    store.close()
    db = sqlite3.connect(tmp_path / "notes" / "collection.sqlite3")
    db.executescript(
        f"DROP TABLE words; CREATE VIRTUAL TABLE words USING fts5 ({table}); "
        f"INSERT INTO words (rowid, text) SELECT id, text FROM chunks; PRAGMA user_version = {version}"
    )
    db.close()
    again = FaissStore(tmp_path / "notes")
    for question in ("悬空", "bridges"):
        assert again.find(None, question, 3, {})[1][0].document == "a"
    assert [each.score for each in again.find(None, "bridges", 3, {})[1]] == now
    with again.writing() as writer:
        writer.remove("a")
    assert again.find(None, "悬空", 3, {})[1] == []
    again.close()
    Database(tmp_path / "notes" / "collection.sqlite3").close()


def test_a_short_remark_is_no_better_than_a_sentence_that_says_more(tmp_path: Path) -> None:
    """Scores are BM25's with k1 = 1.2 and a length to which 32 is added; what is added is not found itself."""
    texts = ["Painting!", "I went painting at the lake with Ann, and my brother did.", *("We met." for _ in range(6))]
    texts += ["The lake is deep, and Ann swims."]
    store = new_store(tmp_path)
    with store.writing() as writer:
        for i, text in enumerate(texts):
            made = EmbeddedDocument(Document(f"d{i}", text), (text,), unit(i), "")
            writer.add([made])
    found = {each.document: each.score for each in store.find(None, "painting by ann", 9, {})[1]}
    lengths = {each: len(words(texts[int(each[1:])])) + 32 for each in found}
    average = sum(len(words(text)) + 32 for text in texts) / len(texts)
    idf = math.log((9 - 2 + 0.5) / (2 + 0.5))
    one = {each: idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / average)) for each, length in lengths.items()}
    assert found == pytest.approx({"d1": 2 * one["d1"], "d0": one["d0"], "d8": one["d8"]})
    assert one["d0"] < 1.25 * one["d1"]  # 2.8 times without the filler
    twice = {each.document: each.score for each in store.find(None, "Ann, painting, Ann", 9, {})[1]}
    assert twice == pytest.approx({"d1": 3 * one["d1"], "d0": one["d0"], "d8": 2 * one["d8"]})
    assert store.find(None, "x", 3, {})[1] == []
    store.close()


def test_a_question_is_cut_after_it_is_normalised_too() -> None:
    """A ligature stands for 18 characters."""
    assert "tail" in wanted("\ufdfa" * 1000 + " tail")
    assert "tail" not in wanted("\ufdfa" * (LOOKED_AT // 18 + 1) + " tail")
