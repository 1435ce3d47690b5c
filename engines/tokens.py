"""Convert text to token ids and back: chat prompts, the bytes of a token, incremental detokenisation."""

from __future__ import annotations

import codecs
import copy
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, cast

from jinja2 import Environment, TemplateError, meta
from transformers import AutoTokenizer, PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenText:
    """Wraps a transformers tokenizer with the operations that a server needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._plain = _plain_copy(tokenizer)
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.vocab_size = len(tokenizer)
        self.eos_ids = tuple(i for i in dict.fromkeys((*eos_ids, *own)) if 0 <= i < self.vocab_size)
        control = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._special = frozenset((*control, *map(int, tokenizer.all_special_ids), *self.eos_ids))
        self.content_as_parts = False
        """True if the chat template takes no string as a message's content, only a list of its parts."""
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, source: str, eos_ids: int | Sequence[int] | None = None, **options: Any) -> TokenText:
        """Load the tokenizer of a directory or hub page.

        Args:
            eos_ids: as a generation configuration has them. options: transformers' own.

        Raises:
            Exception: there is none, or it cannot be read; transformers and the tokenizers each raise their own kinds.
        """
        # Where Mistral's package is installed, as vLLM wants it, transformers would use that instead, which has neither
        # chat templates nor the text of a token.
        tokenizer = AutoTokenizer.from_pretrained(source, mistral_format=False, **options)
        return cls(tokenizer, [eos_ids] if isinstance(eos_ids, int) else eos_ids or ())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode a text; control tokens written in it become control tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text in which nothing is a control token, whatever it looks like."""
        return list(self._plain.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def is_special(self, token: int) -> bool:
        """Return whether a token has no text of its own: a control token, or padding of the output layer."""
        return token in self._special or not 0 <= token < self.vocab_size

    @cached_property
    def _alphabet(self) -> dict[str, int] | None:
        """The map from character to byte, for tokenizers that spell tokens in GPT-2's byte alphabet; None for
        others."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or "ByteLevel" not in repr(backend.decoder):
            return None
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in printable]
        return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token adds to the text, also where they are part of a code point; empty for special
        tokens."""
        if self.is_special(token):
            return b""
        if token not in self._bytes:
            self._bytes[token] = self._spell(token)
        return self._bytes[token]

    def _spell(self, token: int) -> bytes:
        """Compute the bytes of a token that is not special."""
        piece = cast(str, self.tokenizer.convert_ids_to_tokens(token))
        if self._alphabet is not None:
            # Tokens added after training ("<think>") are spelt in plain characters.
            if all(character in self._alphabet for character in piece):
                return bytes(self._alphabet[character] for character in piece)
            return piece.encode()
        if self.spelt and (match := _BYTE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        # Decoders treat the first token apart (they strip a space), so the second of two shows what one adds.
        return self.decode([token, token])[len(self.decode([token])) :].encode()

    @cached_property
    def spelt(self) -> bool:
        """Return whether a token adds the same bytes wherever it stands, except at the start."""
        decoder = repr(getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", None))
        return any(kind in decoder for kind in ("ByteLevel", "ByteFallback", "Metaspace"))

    def opening_bytes(self, token: int) -> bytes:
        """Return the bytes a token adds where a text begins: SentencePiece's mark of a word's start is no space
        there."""
        data = self.token_bytes(token)
        return self.decode([token]).encode() if data.startswith(b" ") and self._alphabet is None else data

    def token_str(self, token: int) -> str:
        """Render a token for display; bytes that are not valid UTF-8 become a replacement character."""
        return self.token_bytes(token).decode("utf-8", errors="replace")

    @cached_property
    def think(self) -> tuple[int, int] | None:
        """Ids of `<think>` and `</think>`, where a model has them as tokens of their own."""
        known = self.tokenizer.get_vocab()
        return (known["<think>"], known["</think>"]) if {"<think>", "</think>"} <= known.keys() else None

    @cached_property
    def knows_thinking(self) -> bool:
        """Return whether the model writes think blocks, as far as its tokens and its chat template tell."""
        return self.think is not None or "</think>" in self.template_source

    def close_think(self) -> list[int]:
        """Encode the end of a think block, and the line breaks behind it."""
        if self.think is None:
            return self.encode_plain("\n</think>\n\n")
        return [*self.encode_plain("\n"), self.think[1], *self.encode_plain("\n\n")]

    def in_think(self, ids: Sequence[int]) -> bool:
        """Return whether ids end in a think block that the turn they end in has opened."""
        tail = 0
        for i in reversed(ids):
            if self.think is not None and i in self.think:
                return i == self.think[0]
            if self.is_special(i):
                break
            tail += 1
        if self.think is not None or not tail:
            return False
        text = self.decode(ids[len(ids) - tail :])
        return text.rfind("<think>") > text.rfind("</think>")

    def stream(self) -> TextStream:
        """Make an incremental detokeniser."""
        return TextStream(self)

    @cached_property
    def template_source(self) -> str:
        """The source of the chat template, or of all of them where the model has several; empty where it has none."""
        source = self.tokenizer.chat_template
        return "\n".join(map(str, source.values())) if isinstance(source, dict) else source or ""

    def with_template(self, source: str) -> TokenText:
        """Return the same tokenizer with another chat template.

        Raises:
            ValueError: it is no Jinja template.
        """
        try:
            Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
        except TemplateError as error:
            if "generation" not in source:  # a tag of transformers' own
                raise ValueError(f"this is no chat template: {error}") from error
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = source
        return TokenText(tokenizer, self.eos_ids)

    @cached_property
    def renders_tools(self) -> bool:
        """Return whether the chat template shows a model the tools that it may call."""
        return "tools" in self._asked_by_template

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        **template_kwargs: Any,
    ) -> list[int]:
        """Encode a conversation by the model's chat template. Control tokens that a message, or the description of a
        tool, spells stay plain text.

        Args:
            messages: a content is a text, or a list of parts such as `{"type": "text", "text": …}` and, for a model
                that takes pictures, `{"type": "image"}`.
            tools: what the model may call, as OpenAI's API describes it.

        Raises:
            ValueError: the tokenizer has no chat template, or the template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise ValueError("this model has no chat template; use /v1/completions")
        options = {k: v for k, v in template_kwargs.items() if k in self.template_variables} | {
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "continue_final_message": continue_final_message,
            "tokenize": False,
        }
        if tools:
            options["tools"] = [dict(tool) for tool in tools]
        if self.content_as_parts:
            messages = [_as_parts(message) for message in messages]
        try:
            text = cast(str, self.tokenizer.apply_chat_template([dict(m) for m in messages], **options))
            if not self._spells_control([*messages, options]):
                return self.encode(text, add_special_tokens=False)
            return self._encode_guarded(messages, options)
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"the chat template refuses this conversation: {error}") from error

    @cached_property
    def template_variables(self) -> frozenset[str]:
        """The names that the chat template uses and a request may set: none that the tokenizer itself provides."""
        return self._asked_by_template - {"messages", "tools", "documents", *self.tokenizer.special_tokens_map}

    @cached_property
    def _asked_by_template(self) -> frozenset[str]:
        """The names that the chat template uses and does not define."""
        source = self.template_source
        try:
            environment = Environment(extensions=["jinja2.ext.loopcontrols"])
            return frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except TemplateError:  # tags of transformers' own
            return frozenset({"enable_thinking", *(["tools"] if re.search(r"\btools\b", source) else [])})

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """The ids of control tokens, by their text."""
        return {
            t.content: i for i, t in self.tokenizer.added_tokens_decoder.items() if t.content and i in self._special
        }

    @cached_property
    def _control_words(self) -> list[str]:
        return [w for i, t in self.tokenizer.added_tokens_decoder.items() if (w := t.content) and i in self._special]

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._control_words, key=len, reverse=True))))

    def _spells_control(self, value: Any) -> bool:
        """Return whether any string in a value contains a control token's text."""
        if isinstance(value, str):
            return any(word in value for word in self._control_words)
        if isinstance(value, Mapping):
            return any(self._spells_control(each) for pair in value.items() for each in pair)
        return isinstance(value, list | tuple) and any(map(self._spells_control, value))

    def _encode_guarded(self, messages: Sequence[Mapping[str, Any]], options: dict[str, Any]) -> list[int]:
        """Render with a mark in place of each content, and with marks around control tokens that other strings spell;
        then encode the template's text apart from both."""
        lot = secrets.token_hex(8)  # so that no message can spell a mark

        def guarded(value: Any) -> Any:
            if isinstance(value, str):
                return self._control_pattern.sub(lambda found: f"{lot}b{found.group()}{lot}e", value)
            if isinstance(value, Mapping):
                return {guarded(key): guarded(each) for key, each in value.items()}
            return [guarded(each) for each in value] if isinstance(value, list | tuple) else value

        def marked_turn(i: int, turn: Mapping[str, Any]) -> dict[str, Any]:
            # Templates put results of tools into JSON, which would escape what stands in place of a mark.
            content = turn.get("content")
            whole = content and isinstance(content, str) and turn.get("role") != "tool"
            mark = {"content": f"\ue000{lot}:{i}\ue001"} if whole else {}
            return {**guarded({key: each for key, each in turn.items() if key not in mark}), **mark}

        marked = [marked_turn(i, turn) for i, turn in enumerate(messages)]
        text = cast(str, self.tokenizer.apply_chat_template(marked, **guarded(options)))
        ids: list[int] = []
        plain = False
        for i, piece in enumerate(re.split(f"\ue000{lot}:(\\d+)\ue001|{lot}([be])", text)):
            match i % 3:
                case 0 if piece:
                    ids += self.encode_plain(piece) if plain else self.encode(piece, add_special_tokens=False)
                case 1 if piece:
                    ids += self.encode_plain(str(messages[int(piece)]["content"]))
                case 2 if piece:
                    plain = piece == "b"
        return ids


def _plain_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer of its own for texts without control tokens: whether these count is a state of transformers'
    fast tokenizers, not of a call, and threads that encode both ways would take turns at setting it."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.encode("", add_special_tokens=False, split_special_tokens=True)  # from here on it stays so
    return own


def _as_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a list of parts."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)


class TextStream:
    """Turns tokens into text as they come, holding back the bytes of an unfinished code point. The pieces, joined,
    equal `decode` of the tokens."""

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False
        self._ids: list[int] = []
        self._sent = ""

    def push(self, token: int) -> str:
        """Return the text that is complete with this token; it may be empty."""
        if not self._tokens.spelt:
            return self._decode_anew(token)
        data = (self._tokens.token_bytes if self._begun else self._tokens.opening_bytes)(token)
        self._begun = self._begun or not self._tokens.is_special(token)
        return self._decoder.decode(data)

    def _decode_anew(self, token: int) -> str:
        """Decode all tokens again, for tokenizers whose tokens read differently depending on their neighbours
        (WordPiece, word-end marks)."""
        self._ids.append(token)
        text = self._tokens.decode(self._ids).rstrip("\ufffd")
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new

    def flush(self) -> str:
        """Reset at the end; the text left is empty, as half a code point is never sent."""
        self._decoder.reset()
        return ""


@lru_cache(maxsize=16)
def differences(a: TokenText, b: TokenText) -> str | None:
    """Compare two tokenizers: None if they give every text the same ids, else a sentence that names the differences."""
    left, right = (t.tokenizer.get_vocab() for t in (a, b))
    if left != right:
        by_id_left, by_id_right = ({i: w for w, i in vocab.items()} for vocab in (left, right))
        ids = sorted(i for i in by_id_left.keys() | by_id_right.keys() if by_id_left.get(i) != by_id_right.get(i))
        shown = ", ".join(f"{i} ({by_id_left.get(i)!r} against {by_id_right.get(i)!r})" for i in ids[:5])
        return f"their tokenizers differ in {len(ids)} ids: {shown}{', …' if len(ids) > 5 else ''}"
    if a.eos_ids != b.eos_ids:
        return f"their end-of-sequence ids differ: {a.eos_ids} against {b.eos_ids}"
    probe = "Waver: 1 234 + 5 = 1 239, naïve café 日本 🙂\n\tx"
    if (one := a.encode(probe)) != (two := b.encode(probe)):
        return f"their tokenizers have the same ids but split text differently: {one[:8]}… against {two[:8]}…"
    return None
