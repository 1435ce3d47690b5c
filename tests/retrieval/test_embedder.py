"""The packaged embedder: the published weights, safetensors only, and the vectors of sentence-transformers itself."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from waver.retrieval import embedder as embedding
from waver.retrieval import weights
from waver.retrieval.base import Unavailable
from waver.retrieval.embedder import Embedder, batches, broken, portions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged model that a test may spoil; the weights are a link."""
    packaged = weights._packaged()
    assert packaged is not None
    for file in packaged.rglob("*.json"):
        (tmp_path / file.relative_to(packaged)).parent.mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.relative_to(packaged))
    (tmp_path / "model.safetensors").symlink_to(packaged / "model.safetensors")
    return tmp_path


def test_vectors_are_mean_pooled_unit_vectors(embedder: Embedder) -> None:
    texts = ["How long is the Arn?", "A much longer sentence about the river that flows north.", "x"]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    folder = str(weights._packaged())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.allclose(vector, torch.nn.functional.normalize(hidden, dim=0).numpy(), atol=1e-5)


def test_meaning_is_close(embedder: Embedder) -> None:
    question, near, far = embedder.embed(["How long is the river?", "The stream measures 412 km.", "I like cheese."])
    assert question @ near > question @ far + 0.2


def test_what_is_beyond_the_length_is_not_read(embedder: Embedder) -> None:
    text = "river " * embedder.most_tokens
    assert embedder.count([text, text + "cheese"]) == [254, 255]
    one, two = embedder.embed([text, text + "cheese"])
    assert np.allclose(one, two, atol=1e-6)


def test_questions_are_remembered_and_threads_agree(embedder: Embedder) -> None:
    first = embedder.question("Who?")
    assert embedder.question("Who?") is first
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append((i, embedder.question(f"q{i % 3}"), embedder.count(["a b"]))))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = embedder.embed(["q0", "q1", "q2"])
    assert len(found) == 12
    for i, vector, count in found:
        assert np.allclose(vector, alone[i % 3], atol=1e-5)
        assert count == [2]


def test_any_folder_will_do(folder: Path) -> None:
    other = Embedder(str(folder))
    assert not other.loaded
    assert other.dimension == 384
    assert other.fingerprint == weights.PACKAGED_SHA256


def test_other_weights_are_not_the_packaged_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data)
    monkeypatch.setattr(weights, "_packaged", lambda: folder)
    with pytest.raises(Unavailable, match="not the published ones"):
        _ = Embedder("all-MiniLM-L6-v2").model


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unavailable, match="not safetensors"):
        _ = Embedder(str(folder)).model


def test_code_of_the_models_own_is_not_run(folder: Path) -> None:
    canary = folder / "ran"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([{**modules[0], "type": "own.Model"}, *modules[1:]]))
    with pytest.raises(Unavailable, match="code of its own"):
        _ = Embedder(str(folder)).model
    (folder / "modules.json").write_text(json.dumps(modules))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(Unavailable, match="code of its own"):
        _ = Embedder(str(folder)).model
    assert not canary.exists()


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"modules\.json"):
        _ = Embedder(str(tmp_path)).model


def test_long_words_are_read_in_parts(embedder: Embedder) -> None:
    one, two, three = embedder.embed(["a" * 200, "b" * 200, "xyz" * 70])
    assert max(one @ two, one @ three, two @ three) < 0.95
    assert embedder.count(["b" * 200])[0] > 20
    assert broken("c" * 64) == "c" * 64
    assert broken("c" * 130) == " ".join(["c" * 64, "c" * 64, "cc"])
    assert broken("桥" * 200) == "桥" * 200  # read character by character anyway
    assert embedder.unread("a" * 2000) > 0


def test_the_same_text_is_embedded_once(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = embedder.model.encode

    def counted(texts: list[str], **options: object) -> object:
        asked.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(embedder.model, "encode", counted)
    done: list[int] = []
    vectors = embedder.embed(["a river", "a mill", "a river"], done=done.append)
    assert sorted(asked) == ["a mill", "a river"]
    assert sum(done) == 3
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1], atol=0.01)


def test_batches_are_of_bounded_size_and_little_padding() -> None:
    lengths = [3, 900, 5, 128, 128, 127, 4, 0]
    found = list(batches(lengths, most=254, budget=512))
    assert sorted(i for batch in found for i in batch) == list(range(8))
    assert all(len(batch) * min(254, max(lengths[i] for i in batch)) <= 512 for batch in found)
    assert found[0][0] == 1
    assert next(batches([1000], most=254, budget=100)) == [0]


def test_a_model_may_want_words_before_questions_and_documents(folder: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    model = Embedder(str(folder))
    plain = model.embed(["query: the mill", "passage: the mill", "the mill"])
    assert np.allclose(model.question("the mill"), plain[0], atol=1e-5)
    assert np.allclose(model.embed(["the mill"], role="document")[0], plain[1], atol=1e-5)
    assert np.allclose(model.embed(["the mill"])[0], plain[2], atol=1e-5)
    assert plain[0] @ plain[1] < 0.999
    assert model.most_tokens < 254


def test_bfloat16_is_close(embedder: Embedder, folder: Path) -> None:
    text = ["How long is the Arn, which flows to the north?"]
    quick = Embedder(str(folder), precision="bfloat16").embed(text)[0]
    exact = embedder.embed(text)[0]
    assert 0.995 < quick @ exact < 1.0
    assert not np.array_equal(quick, exact)


def test_texts_are_tokenised_some_at_a_time(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(portions(["aaaaa", "bbbbb", "c" * 20, "d", ""], 10)) == [["aaaaa", "bbbbb"], ["c" * 20], ["d", ""]]
    assert list(portions([], 10)) == []
    texts = ["One text.", "", "Another - with dashes", "x" * 50]
    together = embedder.offsets(texts)
    monkeypatch.setattr(embedding, "AT_ONCE", 12)
    for one, other in zip(embedder.offsets(texts), together, strict=True):
        np.testing.assert_array_equal(one, other)
