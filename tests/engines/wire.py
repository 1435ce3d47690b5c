"""A real HTTP server that answers with the bytes it is told to: what no decent server can be brought to do."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Reply = Callable[["Wire", dict[str, Any], asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Wire:
    """`reply` answers a completion. What an upstream is like otherwise: see the fields."""

    reply: Reply | None = None
    model: str = "small"
    max_model_len: int | None = 1024
    takes_ids: bool = True
    takes_extras: bool = True
    most_logprobs: int = 20
    shape: str = "ids"
    """Format of tokens: `ids`, `names` (the older shape, spelt) or `content` (llama.cpp's)."""
    tells_end: bool = True
    raw: bool = True
    """True if log-probabilities are from before the temperature."""
    sees: bool = False
    """True if it answers conversations, with pictures in them."""
    spell: Callable[[int], str] = str
    eos: int = 2
    seen: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    port: int = 0
    connections: int = 0
    away: bool = False
    """Every connection is closed without a word."""
    silent: bool = False
    """Connections are accepted, and nothing is answered any more."""
    certificate: tuple[str, str] | None = None
    """Files of a certificate and its key: then it speaks TLS."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when a client leaves a stream that is not at its end."""

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.heads.append(head)
                lengths = [
                    line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length")
                ]
                body = json.loads(await reader.readexactly(int(lengths[0]))) if lengths else {}
                await self._route(head.split(" ")[1], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    async def _route(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        while self.silent:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if self.away:
            writer.close()
        elif path == "/v1/models":
            await answer(writer, 200, {"data": [{"id": self.model, "max_model_len": self.max_model_len}]})
        elif path == "/v1/chat/completions" and self.sees:
            self.seen.append(body)
            await (self.reply or converse)(self, body, writer)
        elif path != "/v1/completions":
            await answer(writer, 404, {"error": {"message": "nothing here"}})
        else:
            self.seen.append(body)
            await (self.reply or behave)(self, body, writer)

    def part(self, token: int, finish: str | None = None, hot: float = 1.0) -> dict[str, Any]:
        """A choice of a stream with one token. The distribution is 0.5, 0.2, 0.1 and a rest that is not told."""
        scale = 1.0 if self.raw else 1 / hot
        top = {token: -0.6931 * scale, token + 1: -1.6094 * scale, token + 2: -2.3026 * scale}
        names = {t: f"token_id:{t}" if self.shape == "ids" else self.spell(t) for t in top}
        if self.shape == "content":
            entry = [{"id": t, "token": names[t], "logprob": p} for t, p in top.items()]
            logprobs: dict[str, Any] = {"content": [{**entry[0], "top_logprobs": entry}]}
        else:
            logprobs = {
                "tokens": [names[token]],
                "token_logprobs": [top[token]],
                "top_logprobs": [{names[t]: p for t, p in top.items()}],
            }
        return {"index": 0, "text": self.spell(token), "logprobs": logprobs, "finish_reason": finish}


async def behave(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """A decent answer: tokens 10, 11, 12, …; the end at once where it is made likely."""
    extras = {"return_tokens_as_token_ids", "trace", "top_k", "vllm_xargs"} & set(body)
    if extras and not wire.takes_extras:
        return await answer(writer, 400, {"error": {"message": f"unknown fields {sorted(extras)}"}})
    if isinstance(body["prompt"], list) and not wire.takes_ids:
        return await answer(writer, 422, {"detail": "prompt should be a string"})
    if body["logprobs"] > wire.most_logprobs:
        return await answer(writer, 400, {"error": {"message": "too many logprobs", "param": "logprobs"}})
    hot = body.get("temperature", 1.0) or 1.0
    if body.get("logit_bias", {}).get(str(wire.eos)) == 100:
        parts = [wire.part(wire.eos, None, hot)] if wire.tells_end else []
        parts.append({"index": 0, "text": "", "finish_reason": "stop"})
        if wire.tells_end:
            parts = [{**parts[0], "finish_reason": "stop"}]
    else:
        count = body["max_tokens"]
        parts = [wire.part(10 + i, "length" if i == count - 1 else None, hot) for i in range(count)]
    return await stream(writer, parts)


async def converse(wire: Wire, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """A decent answer to a conversation, as vLLM streams it: tokens by id, and the usage with each of them."""
    count = body.get("max_tokens", 3)
    parts = []
    for i in range(count):
        names = [f"token_id:{10 + i + j}" for j in range(body["top_logprobs"])]
        rest = [{"token": n, "logprob": -1.0 - j, "bytes": list(n.encode())} for j, n in enumerate(names)]
        logprobs = {"content": [{**rest[0], "bytes": list(wire.spell(10 + i).encode()), "top_logprobs": rest[:3]}]}
        finish = "stop" if i == count - 1 else None
        part = {"index": 0, "delta": {"content": "x"}, "logprobs": logprobs, "finish_reason": finish}
        parts.append((part, {"prompt_tokens": 321, "completion_tokens": i + 1}))
    writer.write(HEAD)
    for part, usage in parts:
        event = {"object": "chat.completion.chunk", "choices": [part], "usage": usage}
        chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
    chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def answer(writer: asyncio.StreamWriter, status: int, content: Any, extra: str = "") -> None:
    """A whole answer; `extra` are further header lines."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


async def stream(writer: asyncio.StreamWriter, parts: list[dict[str, Any]], done: bool = True) -> None:
    """A stream of choices; `done`: it comes to its proper end."""
    writer.write(HEAD)
    for part in parts:
        chunk(writer, b"data: " + json.dumps({"choices": [part]}).encode() + b"\n\n")
    if done:
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@contextmanager
def wired(wire: Wire, port: int = 0) -> Iterator[Wire]:
    """The server, on a real socket, in a thread of its own."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        tls = None
        if wire.certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*wire.certificate)
        server = await asyncio.start_server(wire.serve, "127.0.0.1", port, ssl=tls)
        wire.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        # Whoever is taken in while the server closes is forgotten unclosed: first nobody new, then a turn for the last.
        loop.remove_reader(server.sockets[0])
        await asyncio.sleep(0.01)
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # what was closed lets go of its socket in a later turn of the loop

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    if not started.wait(10):
        raise TimeoutError("the server did not start")
    try:
        yield wire
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
