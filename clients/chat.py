"""Run `waver chat`: a terminal chat that colours tokens by entropy and marks the engine that wrote them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from rich.console import Console
from rich.text import Text

from waver.clients.client import TracedToken, Waver, WaverReport, has_report, report, trace
from waver.clients.line_editor import LineEditor, history_file
from waver.clients.options import ChatOptions
from waver.clients.palette import legend, printable, spans, style

HELP = """\
/policy            what decides how answers are decoded
/policy NAME       a preset of the server, such as /policy frugal
/policy [...]      a list of policies, such as /policy [{"name": "ead", "threshold": 0.3}]
/policy none       plain decoding;  /policy default: what the model asked for brings along
/model NAME        another model or preset of the server
/undo              take back the last question and its answer
/reset             forget the conversation
/help, /quit       this list; leave (so do ctrl-D, exit and quit)
ctrl-C             stop the current answer
up, ctrl-R, tab    earlier lines (kept in a file; WAVER_CHAT_HISTORY= for none), search them, complete a command
\\ at a line's end  go on on the next line"""
LEAVE = frozenset({"exit", "quit", "exit()", "quit()", ":q"})
"""Words that leave other programs. Alone on a line they are nothing that one says to a model."""
COMMANDS = ("/policy ", "/policy none", "/policy default", "/model ", "/undo", "/reset", "/help", "/quit")


class Refused(Exception):
    """Something the user should read, in one sentence."""


def parse_policy(text: str | None) -> Any:
    """Return `None` for the default, a preset's name, or a list of policies.

    Raises:
        Refused: the text starts like a list, but is no JSON.
    """
    if text is None or text == "default":
        return None
    if text == "none":
        return []
    if not text.startswith(("[", "{")):
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Refused(f"The policy is neither a preset's name nor a JSON list: {error}.") from None
    return value if isinstance(value, list) else [value]


def explain(error: openai.OpenAIError, base_url: str) -> str:
    """Explain what went wrong and what to do."""
    if isinstance(error, openai.APITimeoutError):
        return "The server did not answer in time."
    if isinstance(error, openai.APIConnectionError):
        return f"No server answers at {base_url}. Start one with `waver serve`, or name another with --base-url."
    if isinstance(error, openai.AuthenticationError):
        return f"The server wants a key: set WAVER_API_KEY. It said: {error_message(error)}"
    if isinstance(error, openai.APIStatusError) and error.status_code == 503:
        return f"The server is not ready to answer, try again in a moment. It said: {error_message(error)}"
    return error_message(error)


def error_message(error: openai.OpenAIError) -> str:
    """Return the server's sentence, with the field it is about."""
    body = getattr(error, "body", None)
    message, param = (body.get("message"), body.get("param")) if isinstance(body, dict) else (None, None)
    if not message:
        return str(error)
    return f"{param}: {message}" if param and param not in message else str(message)


def summary(report: WaverReport) -> str:
    """Return one line: tokens by engine, switches, cost, mean entropy."""
    tokens = ", ".join(f"{name} {n}" for name, n in report.tokens.items())
    about = "" if report.entropy.kind == "exact" else "about "
    return (
        f"tokens: {tokens} · switches: {report.switches} · {cost(report)} · "
        f"entropy: mean {about}{report.entropy.mean:.3f}, max {about}{report.entropy.max:.3f} nats"
    )


def cost(report: WaverReport) -> str:
    """Say what an answer cost in full, as the page does, and what its written tokens alone did."""
    written = f"relative cost of the written tokens: {report.relative_cost:.2f}"
    if report.cost is None:
        return written
    return f"cost: {report.cost.full:.2f} × what {report.cost.against} alone computes ({written})"


@dataclass
class Chat:
    """One conversation. Answers go to `out`, reports and remarks to `notes`."""

    client: Waver
    model: str
    engines: list[str]
    policy: Any
    options: dict[str, Any]
    out: Console
    notes: Console
    system: str | None = None
    models: list[str] = field(default_factory=list)
    """Models and presets of the server, for completion."""
    messages: list[ChatCompletionMessageParam] = field(default_factory=list)
    _thinks: bool = False
    """True while the last that was printed is reasoning."""

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def response(self, text: str) -> str:
        """Return the server's whole response to a message, as JSON.

        Raises:
            openai.OpenAIError: the server refused.
        """
        messages: list[ChatCompletionMessageParam] = [*self.messages, {"role": "user", "content": text}]
        extra = {} if self.policy is None else {"policy": self.policy}
        made = self.client.chat.completions.create(
            model=self.model, messages=messages, extra_body=extra, **self.options
        )
        return made.model_dump_json(exclude_unset=True)

    def ask(self, text: str) -> None:
        """Send a message and print the answer as it comes. A cancelled or failed turn leaves no trace in the history.

        Raises:
            KeyboardInterrupt: ctrl-C; the request has been closed.
            openai.OpenAIError: the server refused, or broke off.
        """
        messages: list[ChatCompletionMessageParam] = [*self.messages, {"role": "user", "content": text}]
        extra: dict[str, Any] = {"trace": True} | ({} if self.policy is None else {"policy": self.policy})
        answer, pending, last = "", list[TracedToken](), None
        with self.client.chat.completions.create(
            model=self.model, messages=messages, stream=True, extra_body=extra, **self.options
        ) as stream:
            try:
                for chunk in stream:
                    content = self.show(chunk, pending)
                    answer += content
                    last = report(chunk) if has_report(chunk) else last
            finally:
                self.out.print()
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        if last:
            self.notes.print(summary(last), style="dim", highlight=False, soft_wrap=True)

    def show(self, chunk: ChatCompletionChunk, pending: list[TracedToken]) -> str:
        """Print a chunk's text; `pending` keeps the tokens whose text is still to come. Reasoning goes to the notes."""
        if not chunk.choices:
            return ""
        content = chunk.choices[0].delta.content or ""
        pending += trace(chunk.choices[0])
        if thought := getattr(chunk.choices[0].delta, "reasoning_content", None):
            self.notes.print(Text(printable(thought), style="dim italic"), end="", soft_wrap=True)
            self._thinks = True
            pending.clear()
        if not content:
            return ""
        if self._thinks:
            self.notes.print("\n")
            self._thinks = False
        if not self.out.is_terminal:
            self.out.file.write(content)
            self.out.file.flush()
        elif not pending:
            self.out.print(Text(printable(content)), end="", soft_wrap=True)
        else:
            for text, token in spans(content, pending):
                if token.engine not in self.engines:
                    self.engines.append(token.engine)
                look = style(token.entropy, self.engines.index(token.engine), not self.out.no_color)
                self.out.print(Text(printable(text), style=look), end="", soft_wrap=True)
        pending.clear()
        return content

    def undo(self) -> None:
        """Take the last question and its answer out of the conversation."""
        asked = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            self.note("There is nothing to take back.")
            return
        taken = str(self.messages[asked[-1]].get("content"))
        del self.messages[asked[-1] :]
        self.note(f"Taken back: {printable(taken)}")

    def command(self, line: str) -> bool:
        """Carry out a line that starts with a slash; False to leave."""
        name, _, argument = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self.reset()
            self.note("The conversation starts afresh.")
        elif name == "/model" and argument.strip():
            self.model = argument.strip()
            self.note(f"model: {self.model}")
        elif name == "/undo":
            self.undo()
        elif name == "/policy":
            if argument.strip():
                self.policy = parse_policy(argument.strip())
            self.note(f"policy: {'default' if self.policy is None else json.dumps(self.policy)}")
        elif name == "/help":
            self.note(HELP)
        else:
            self.note(f"There is no command {name}; /help lists them.")
        return True

    def note(self, text: str) -> None:
        self.notes.print(Text(text, style="dim"), soft_wrap=True)

    def loop(self) -> None:
        """Converse until /quit or the end of input. Lines that were typed are kept for the next time."""
        presets = [f"/policy {name.removeprefix('waver/')}" for name in self.models if name.startswith("waver/")]
        editor = LineEditor([*COMMANDS, *presets, *(f"/model {name}" for name in self.models)], history_file())
        try:
            self._converse(editor)
        finally:
            editor.save()

    def _converse(self, editor: LineEditor) -> None:
        self.note(f"{self.model} at {self.client.base_url}   /help for help, /quit to leave")
        self.notes.print(legend(self.engines, not self.notes.no_color), soft_wrap=True)
        while True:
            try:
                self.out.print()
                line = editor.read("› ", bold=self.out.is_terminal).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.note("\n/quit or ctrl-D to leave")
                continue
            try:
                if line in LEAVE:
                    return
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.ask(line)
            except KeyboardInterrupt:
                self.note("stopped")
            except Refused as error:
                self.note(str(error))
            except openai.OpenAIError as error:
                self.note(explain(error, str(self.client.base_url)))


def choose_model(models: list[str]) -> str:
    """Return the first preset that the server lists, which is its default one, else its first engine.

    Raises:
        Refused: there is no model at all.
    """
    if not models:
        raise Refused("The server lists no models; name one with --model.")
    return next((m for m in models if m.startswith("waver/")), models[0])


def piped() -> str:
    """Return the message on standard input.

    Raises:
        Refused: it is not UTF-8.
    """
    try:
        text = sys.stdin.read()
        text.encode()  # some locales keep bytes that they cannot read as halves of surrogate pairs
    except UnicodeError as error:
        raise Refused("The message is not UTF-8 text.") from error
    return text


def chat(options: ChatOptions) -> int:
    """Run `waver chat` and return its exit status: 0, 1 (the server refused), 2 (bad arguments) or 130 (ctrl-C).

    Without a message and a terminal, the message is read from standard input. The answer goes to standard output, the
    report to standard error.
    """
    out, notes = Console(highlight=False), Console(highlight=False, stderr=True)
    client = Waver(base_url=options.base_url)
    try:
        chosen = parse_policy(options.policy)
        models = [m.id for m in client.models.list() if getattr(m, "kind", None) != "embedder"]
        engines = [m for m in models if not m.startswith("waver/")]
        model = options.model or choose_model(models)
        session = Chat(client, model, engines, chosen, options.sampling, out, notes, options.system, models)
        session.reset()
        if options.message is None and sys.stdin.isatty():
            if options.json:
                raise Refused("--json prints the response to one message: give it with --message, or in a pipe.")
            session.loop()
            return 0
        text = options.message if options.message is not None else piped()
        if not text.strip():
            raise Refused("There is nothing to ask: the message is empty.")
        if options.json:
            out.file.write(session.response(text.strip("\n")) + "\n")
        else:
            session.ask(text.strip("\n"))
        return 0
    except KeyboardInterrupt:
        return 130
    except Refused as error:
        notes.print(Text(str(error)), soft_wrap=True)
        return 2
    except openai.OpenAIError as error:
        notes.print(Text(explain(error, options.base_url)), soft_wrap=True)
        return 1
