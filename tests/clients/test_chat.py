"""`waver chat`, run as people run it: in a terminal (a real pseudo-terminal), in a pipe, with nothing listening."""

from __future__ import annotations

import codecs
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from waver.clients.chat import Refused, cost, piped
from waver.clients.client import TracedToken, WaverReport
from waver.clients.line_editor import history_file
from waver.clients.palette import COLOURS, legend, printable, spans, style

if TYPE_CHECKING:
    from tests.conftest import Running

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "waver", "chat"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A chat in a pseudo-terminal; `text` is all that it printed."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self.master, slave = pty.openpty()
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        env |= {"WAVER_CHAT_HISTORY": ""} | {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "COLUMNS": "200",
            **environment,
        }
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self.text = ""
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a read may end in a character

    def type(self, line: str) -> None:
        os.write(self.master, line.encode())

    def wait_for(self, pattern: str, since: int = 0, seconds: float = 60) -> str:
        """Wait for a pattern, colours aside; return what was printed from `since` on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, ESCAPE.sub("", self.text[since:])):
                return self.text[since:]
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.text += self._decode(os.read(self.master, 65536))
                except OSError:
                    break
        raise AssertionError(f"{pattern!r} did not come: {self.text[since:]!r}")

    def status(self) -> int:
        return self.process.wait(20)

    def __enter__(self) -> Terminal:
        self.wait_for("› ")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that ctrl-C arrives as a signal, and let that signal work also
    where the tests run in the background, with it ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def terminal(base_url: str) -> Iterator[Terminal]:
    with Terminal(["--base-url", base_url, "--temperature", "0", "--max-tokens", "40"]) as chat:
        yield chat


@pytest.fixture
def engines(running: Running) -> list[str]:
    """The server's engines, as it lists them."""
    return list(running.runtime.engines)


def only(engine: str) -> str:
    """A policy that lets one engine write all of the answer."""
    return f'[{{"name": "random_switch", "rate": {int(engine == "large")}}}]'


def say(terminal: Terminal, line: str, pattern: str) -> str:
    since = len(terminal.text)
    terminal.type(line + "\r")
    return terminal.wait_for(pattern + r"(.|\n)*› ", since)


def test_a_conversation(terminal: Terminal, engines: list[str]) -> None:
    assert f"█ 2   written by {' '.join(engines)}" in ESCAPE.sub("", terminal.text)
    answer = say(terminal, "What is 34 + 25?", r"entropy: mean [\d.]+, max [\d.]+ nats")
    shown = {tuple(map(int, rgb)) for rgb in re.findall(r"38;2;(\d+);(\d+);(\d+)", answer)}
    assert shown <= {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS}
    assert shown
    said = r"cost: [\d.]+ × what large alone computes \(relative cost of the written tokens: [\d.]+\)"
    assert re.search(rf"tokens: \w+ \d+, \w+ \d+ · switches: \d+ · {said} · entropy", answer)
    say(terminal, f"/policy {only(engines[1])}", "policy:")
    second = say(terminal, "hi", "nats")
    assert re.search(rf"{engines[0]} 0\b", second)
    assert re.search(r"\x1b\[4;38;2;", second), "the second engine's tokens are underlined"
    assert "policy: []" in say(terminal, "/policy none", "policy:")
    assert "neither a preset's name nor a JSON list" in say(terminal, '/policy [{"name"}', "policy")
    assert "There is no preset" in say(terminal, "/policy nonsense", "policy:") + say(terminal, "hi", "no preset")
    assert "policy: default" in say(terminal, "/policy default", "policy:")
    assert "starts afresh" in say(terminal, "/reset", "afresh")
    assert "/policy NAME" in say(terminal, "/help", "ctrl-C")
    assert "no command /nonsense" in say(terminal, "/nonsense", "no command")
    terminal.type("exit\r")
    assert terminal.status() == 0


def test_the_cost_is_that_of_all_work() -> None:
    used = {"large": {"parameters": 100, "decoded": 11, "read": 0, "seconds": 0.1}}
    full = {"full": 1.1, "decode": 0.4, "read": 0.7, "against": "large", "engines": used}
    entropy = {"mean": 0.1, "max": 0.2, "kind": "exact"}
    shown = {"policy": [], "tokens": {"large": 10}, "switches": 0, "relative_cost": 0.28}
    made = WaverReport.model_validate({**shown, "entropy": entropy, "cost": full})
    assert cost(made) == "cost: 1.10 × what large alone computes (relative cost of the written tokens: 0.28)"
    assert cost(made.model_copy(update={"cost": None})) == "relative cost of the written tokens: 0.28"


def test_ctrl_c_stops_the_answer_and_not_the_chat(base_url: str) -> None:
    arguments = ["--base-url", base_url, "--temperature", "1", "--max-tokens", "900", "--policy", "none"]
    with Terminal(arguments) as chat:
        since = len(chat.text)
        chat.type("hi\r")
        chat.wait_for(r"hi\r\n\s*\S", since)
        chat.type("\x03")
        chat.wait_for(r"(stopped|/quit or ctrl-D to leave)(.|\n)*› ", since)
        assert chat.process.poll() is None
        chat.type("\x04")
        assert chat.status() == 0


def test_no_color_keeps_the_marks(base_url: str, engines: list[str]) -> None:
    arguments = ["--base-url", base_url, "--max-tokens", "8", "--policy", only(engines[1])]
    with Terminal(arguments, NO_COLOR="1") as chat:
        answer = say(chat, "hi", "nats")
        assert "38;" not in chat.text
        assert re.search(r"\x1b\[(1;|7;)?4(;7)?m", answer), "the engine's mark"
        assert re.search(r"\x1b\[(1;4|4;7)m", answer), "of a random model some tokens are uncertain"
        assert "from 1.2" in ESCAPE.sub("", chat.text)


def test_lines_are_edited_completed_and_kept(base_url: str, tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    arguments = ["--base-url", base_url, "--max-tokens", "4", "--policy", "none"]
    with Terminal(arguments, WAVER_CHAT_HISTORY=str(history)) as chat:
        say(chat, "What is 1 + 3?" + "\x1b[D" + "\x7f2", "nats")  # left, and 3 becomes 2
        assert "Taken back: What is 1 + 2?" in say(chat, "/undo", "Taken back")
        assert "nothing to take back" in say(chat, "/undo", "nothing")
        assert "policy: []" in say(chat, "/policy no\t", "policy:")
        assert "model: large" in say(chat, "/model large", "model:")
        since = len(chat.text)
        chat.type("one\\\r")
        chat.wait_for("… ", since)
        say(chat, "two", "nats")
        assert "Taken back: one\ntwo" in ESCAPE.sub("", say(chat, "/undo", "Taken back")).replace("\r", "")
        chat.type("/quit\r")
        assert chat.status() == 0
    assert history.stat().st_mode & 0o777 == 0o600
    assert "What is 1 + 2?" in history.read_text()


def test_the_history_is_below_the_users_state_or_nowhere() -> None:
    assert history_file({"XDG_STATE_HOME": "/s"}) == Path("/s/waver/chat_history")
    assert history_file({}) == Path.home() / ".local" / "state" / "waver" / "chat_history"
    assert history_file({"WAVER_CHAT_HISTORY": ""}) is None


def test_without_colours_bold_and_reversed_letters_tell_the_entropy() -> None:
    looks = [style(entropy, 1, coloured=False) for entropy in (0.0, 0.5, 2.5)]
    assert [(bool(look.bold), bool(look.reverse), look.color) for look in looks] == [
        (False, False, None), (True, False, None), (False, True, None),
    ]  # fmt: skip
    assert all(look.underline for look in looks), "engines keep their marks"
    assert legend(["a"], coloured=False).plain.startswith("entropy in nats from 0 from 0.3 from 1.2 ")


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


@pytest.mark.parametrize("data", [b"\xff", "Grüße".encode("latin-1"), "桥".encode()[:2], "How?".encode("utf-16")])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_message_that_is_no_text(data: bytes, errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", errors))
    with pytest.raises(Refused, match="The message is not UTF-8 text"):
        piped()


def test_a_message_that_is_no_text_in_a_pipe(base_url: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--base-url", base_url], input=b"\xff", capture_output=True, timeout=60, env=os.environ
    )
    assert (done.returncode, done.stderr.decode().strip()) == (2, "The message is not UTF-8 text.")


def test_in_a_pipe(base_url: str) -> None:
    options = [
        "--base-url",
        base_url,
        "--temperature",
        "0",
        "--max-tokens",
        "20",
        "--policy",
        "none",
        "--model",
        "small",
    ]
    sent = run(*options, stdin="What is 34 + 25?\n")
    given = run(*options, "--message", "What is 34 + 25?")
    assert sent.returncode == given.returncode == 0
    assert sent.stdout == given.stdout
    assert sent.stdout.strip()
    assert "\x1b[38" not in sent.stdout
    assert re.match(r"tokens: small \d+ ", sent.stderr)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-m", " "], 2, "nothing to ask"),
        (["-m", "hi", "--policy", "[{"], 2, "JSON list"),
        (["-m", "hi", "--policy", '[{"name": "ead", "threshold": -1}]'], 1, "policy[0].threshold: "),
        (["-m", "hi", "--model", "nobody"], 1, "no model 'nobody'"),
    ],
)
def test_refusals_are_sentences(base_url: str, arguments: list[str], status: int, said: str) -> None:
    done = run("--base-url", base_url, *arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_response_is_printed_as_json(base_url: str) -> None:
    done = run("--base-url", base_url, "--json", "--max-tokens", "4", "--model", "small", stdin="hi")
    response = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(response["waver"]["tokens"].values()) == response["usage"]["completion_tokens"]


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        done = run("--base-url", f"http://127.0.0.1:{held.getsockname()[1]}/v1", "-m", "hi")
    assert done.returncode == 1
    assert "No server answers at" in done.stderr
    assert "waver serve" in done.stderr


def token(text: str, entropy: float = 0.0) -> TracedToken:
    return TracedToken(token=text, id=1, engine="small", entropy=entropy, logprob=0.0)


def test_text_is_shared_out_among_its_tokens() -> None:
    half, rest, plain = token("\ufffd", 1.0), token("\ufffd", 0.5), token(" 4")
    assert list(spans("é", [half, rest])) == [("é", half)]
    assert list(spans(" 4é", [plain, half, rest])) == [(" 4", plain), ("é", half)]
    assert list(spans(" 4 4", [plain, plain])) == [(" 4", plain), (" 4", plain)]
    assert list(spans("", [plain])) == []


def test_output_cannot_command_the_terminal() -> None:
    assert printable("\x1b[31m\x07\x9b ok\n\té") == "␛[31m␇␡ ok\n\té"
