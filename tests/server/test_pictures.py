"""Pictures in requests, over HTTP: every protocol's form, what is hostile, and that nothing is ever fetched."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import Running
from tests.pictures import as_url, data_url, drawn, part, user

QUESTION = "What is there?"


@pytest.fixture
def http(seeing: Running) -> Iterator[httpx.Client]:
    with seeing.http() as client:
        yield client


def ask(http: httpx.Client, *parts: dict[str, Any] | str, model: str = "see1", **options: Any) -> httpx.Response:
    body = {"model": model, "messages": user(*parts), "max_tokens": 6, "temperature": 0, **options}
    return http.post("/v1/chat/completions", json=body)


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def refusal(response: httpx.Response, param: str | None = "messages[0].content[0].image_url") -> str:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert len(error["message"]) < 300
    return str(error["message"])


def test_a_picture_is_read_and_counted(http: httpx.Client) -> None:
    one, other = (content(ask(http, part(data_url(drawn(i))), QUESTION)) for i in (0, 1))
    assert one != other
    assert one == content(ask(http, part(data_url(drawn(0))), QUESTION))
    seen = ask(http, part(data_url(drawn(0))), QUESTION).json()["usage"]["prompt_tokens"]
    assert seen == ask(http, QUESTION).json()["usage"]["prompt_tokens"] + 64 + 1  # and the line break behind it
    assert "".join(
        chunk["choices"][0]["delta"].get("content", "")
        for chunk in chunks(http, part(data_url(drawn(0))), QUESTION)
        if chunk["choices"]
    ) == one  # fmt: skip


def chunks(http: httpx.Client, *parts: Any) -> list[dict[str, Any]]:
    import json

    lines = ask(http, *parts, stream=True).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_formats_and_forms_of_one_picture_give_one_answer(http: httpx.Client) -> None:
    wanted = content(ask(http, part(data_url(drawn(0))), QUESTION))
    turned = drawn(0).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: viewers turn the picture back
    forms = {
        "webp": data_url(drawn(0), "WEBP", lossless=True),
        "wrong type": data_url(drawn(0), "PNG", "image/jpeg"),
        "transparent": data_url(drawn(0).convert("RGBA")),
        "turned": data_url(turned, "PNG", exif=exif),
    }
    for name, url in forms.items():
        assert content(ask(http, part(url), QUESTION)) == wanted, name
    plain = {"type": "image_url", "image_url": data_url(drawn(0))}
    assert content(ask(http, plain, QUESTION)) == wanted
    detailed = {"type": "image_url", "image_url": {"url": data_url(drawn(0)), "detail": "high"}}
    assert content(ask(http, detailed, QUESTION)) == wanted


def test_other_protocols_have_the_same_pictures(http: httpx.Client) -> None:
    url = data_url(drawn(2))
    wanted = content(ask(http, part(url), QUESTION))
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    message = {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]}
    body = {"model": "see1", "max_tokens": 6, "temperature": 0, "messages": [message]}
    answer = http.post("/v1/messages", json=body).json()
    assert answer["content"][0]["text"] == wanted
    counted = http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert counted == answer["usage"]["input_tokens"]
    item = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": QUESTION}]
    asked = {"model": "see1", "max_output_tokens": 6, "temperature": 0, "input": [{"role": "user", "content": item}]}
    response = http.post("/v1/responses", json=asked).json()
    assert response["output"][0]["content"][0]["text"] == wanted
    again = http.post(
        "/v1/responses", json={**asked, "previous_response_id": response["id"], "input": "And now?"}
    ).json()
    assert again["usage"]["input_tokens"] > counted  # the picture is still in the conversation
    tokens = http.post("/tokenize", json={"model": "see1", "messages": user(part(url), QUESTION)}).json()
    assert tokens["count"] == counted
    fetched = {"type": "image", "source": {"type": "url", "url": "http://example.org/a.png"}}
    refused = http.post("/v1/messages", json={**body, "messages": [{"role": "user", "content": [fetched]}]})
    assert refused.status_code == 400
    assert "never fetched" in refused.json()["error"]["message"]
    blind = http.post("/v1/responses", json={**asked, "model": "small"}).json()["error"]
    assert blind["param"] == "input[0].content[0]"


def test_engines_and_policies_that_take_none_refuse_by_index(http: httpx.Client) -> None:
    given = QUESTION, part(data_url(drawn(0)))
    place = "messages[0].content[1]"
    assert refusal(ask(http, *given, model="small"), place) == f"{place}: engine 'small' takes no pictures."
    assert "safeharbor takes no pictures" in refusal(ask(http, *given, policy=[{"name": "safeharbor"}]), place)
    pair = {"name": "ead", "small": "small", "large": "see1"}
    assert ask(http, *given, policy=[pair]).status_code == 400
    said = [{"role": "assistant", "content": [part(data_url(drawn(0)))]}, *user("And?")]
    body = {"model": "see1", "messages": said}
    assert "not of the assistant" in refusal(http.post("/v1/chat/completions", json=body), "messages[0].content[0]")
    cut = ask(http, *given, truncate_prompt_tokens=10)
    assert "cannot be used with pictures" in refusal(cut, "truncate_prompt_tokens")
    probed = ask(http, *given, policy=[{"name": "diffadapt"}])
    assert "reads no pictures" in refusal(probed, "policy[0]")


@pytest.mark.parametrize(
    "policy",
    [
        [{"name": "top_w"}],
        [
            {
                "name": "ead",
                "small": "see1",
                "large": "see2",
                "threshold": 4.0,
                "window": 1,
                "min_tokens": 1,
                "threshold_down": None,
            }
        ],
        [{"name": "random_switch", "small": "see1", "large": "see2", "rate": 0.5}],
        [{"name": "route", "small": "see1", "large": "see2", "draft_tokens": 2}],
        [{"name": "diffadapt", "fallback": "draft"}, {"name": "top_h"}],
    ],
    ids=lambda policy: policy[0]["name"],
)
def test_policies_that_take_pictures_see_them(http: httpx.Client, policy: list[dict[str, Any]]) -> None:
    def answer(number: int) -> str:
        return content(ask(http, part(data_url(drawn(number))), QUESTION, policy=policy, max_tokens=8, seed=3))

    answers = [answer(number) for number in range(3)]
    assert len(set(answers)) == 3
    assert answer(1) == answers[1]


def test_nothing_is_fetched_from_any_address(http: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        port = canary.getsockname()[1]
        seen: list[Any] = []
        threading.Thread(target=lambda: seen.append(canary.accept()), daemon=True).start()
        for url in (
            f"http://127.0.0.1:{port}/a.png",
            f"https://127.0.0.1:{port}/a.png",
            f"HTTP://localhost:{port}/",
            f"//127.0.0.1:{port}/a.png",
            "file:///etc/passwd",
            "/etc/passwd",
            "ftp://127.0.0.1/a.png",
            "",
        ):
            assert "never fetched" in refusal(ask(http, part(url), QUESTION))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:{port}/x.png"/></svg>'.encode()
        assert "'image/svg+xml' are not read" in refusal(ask(http, part(as_url(svg, "image/svg+xml"))))
        assert "cannot be decoded" in refusal(ask(http, part(as_url(svg, "image/png"))))
        assert not seen


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side² pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def test_hostile_pictures_are_refused_with_a_sentence(http: httpx.Client, seeing: Running) -> None:
    frames = [Image.new("RGB", (8, 8), (i, 255 - i, i // 2)) for i in range(200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0)
    photo = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(photo, "JPEG")
    text = b"\x89PNG\r\n\x1a\n" + zlib.compress(b"\0" * 2**22)
    hostile = {
        as_url(bomb(60_000)): "60000 by 60000 pixels",
        as_url(bomb(5000)): "cannot be decoded",  # within bounds, and its pixels are missing
        data_url(Image.new("1", (20_000, 20_000))): "20000 by 20000 pixels",
        as_url(photo.getvalue()[:-200], "image/jpeg"): "cannot be decoded",
        as_url(file.getvalue(), "image/gif"): "is an animation",
        as_url(b"%PDF-1.7", "application/pdf"): "'application/pdf' are not read",
        as_url(b"hello", "image/jpeg"): "cannot be decoded",
        as_url(text): "cannot be decoded",
        as_url(b""): "cannot be decoded",
        "data:image/png;base64,@@@": "not base64",
        "data:image/png,abc": "data URL in base64",
        "data:image/png;charset=utf-8,abc": "data URL in base64",
        "data:" + "a" * 5000: "data URL in base64",
    }
    for url, words in hostile.items():
        assert words in refusal(ask(http, part(url), QUESTION)), url[:60]
    assert ask(http, part(data_url(drawn(0))), QUESTION).status_code == 200
    assert seeing.idle(within=10)


def test_pictures_are_bounded_in_number_and_together(http: httpx.Client, seeing: Running) -> None:
    url = data_url(drawn(0))
    many = ask(http, *[part(url)] * 17)
    assert refusal(many, "messages[0].content[16]") == "A request can have 16 pictures at most, not 17."
    tiny = part(data_url(Image.new("RGB", (1, 1))))
    assert ask(http, *[tiny] * 10_000).status_code == 400
    half = part(data_url(Image.new("1", (4500, 4500))))
    assert "4500 by 4500 pixels; the pictures of a request" in refusal(
        ask(http, half, half), "messages[0].content[1].image_url"
    )
    context = ask(http, *[part(url)] * 16)  # 16 times 64 tokens, and the context has 1024
    assert context.json()["error"]["code"] == "context_length_exceeded"
    large = (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
    )
    response = http.post("/v1/chat/completions", content=large + b"A" * (60 * 2**20))
    assert response.status_code == 413
    assert seeing.idle(within=10)


def test_a_photo_of_some_megabytes_is_read_and_no_text_of_that_size(http: httpx.Client) -> None:
    photo = data_url(Image.effect_noise((1500, 1400), 90).convert("RGB"), compress_level=0)
    assert len(photo) > 8 * 2**20
    assert ask(http, part(photo), QUESTION).status_code == 200
    assert ask(http, "x" * 8 * 2**20).json()["error"]["code"] == "context_length_exceeded"
    long = http.post("/v1/completions", json={"model": "see1", "prompt": "x" * 8 * 2**20})
    assert long.status_code == 413


def test_the_memory_of_decoded_pictures_is_given_back(http: httpx.Client, seeing: Running) -> None:
    import gc

    url = part(data_url(Image.new("RGB", (200, 100))))
    assert ask(http, url, QUESTION).status_code == 200
    assert seeing.idle(within=10)
    gc.collect()
    assert seeing.runtime.pictures.held == 0
    bounds = seeing.runtime.pictures._bounds
    before = bounds.max_total_image_bytes
    bounds.max_total_image_bytes = 2**10
    try:
        full = ask(http, url, QUESTION)
    finally:
        bounds.max_total_image_bytes = before
    assert (full.status_code, full.json()["error"]["code"]) == (503, "images_full")
    assert full.headers["retry-after"] == "5"


def test_a_picture_in_base64_with_line_breaks_is_refused_not_guessed(http: httpx.Client) -> None:
    data = base64.encodebytes(b"x" * 100).decode()
    assert "not base64" in refusal(ask(http, part(f"data:image/png;base64,{data}"), QUESTION))
