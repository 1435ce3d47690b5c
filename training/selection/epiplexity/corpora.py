"""Read corpora as texts of one length, in several orders."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from waver.engines.tokens import TokenText
from waver.training.texts import Text, read_texts

ORDERS = ("forward", "backward", "shuffled", "joint", "swapped")
"""`forward` codes what is learned; `backward` codes it from its end; `shuffled` in a random order; `joint` codes the
context too, and `swapped` the answer before its question."""
BOS, EOS = "<bos>", "<eos>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Corpus:
    """The texts of one file in one order."""

    name: str
    order: str
    texts: tuple[Text, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are coded."""
        return sum(text.learned for text in self.texts)


def byte_tokens() -> TokenText:
    """Make a tokenizer whose token of a byte is its value, with a start and an end: 258 tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    core = Tokenizer(BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS)
    made.chat_template = TEMPLATE
    return TokenText(made)


def first_token(tokens: TokenText) -> int:
    """Return the token that texts are drawn from: the tokenizer's start, else its end."""
    own = tokens.tokenizer.bos_token_id
    if own is not None:
        return int(own)
    return tokens.eos_ids[0] if tokens.eos_ids else 0


def read_corpus(file: Path, tokens: TokenText, length: int, bytewise: bool) -> list[Text]:
    """Read a JSONL file (`waver.training.texts`), or any other file as one text, into texts of `length` tokens.

    Whole texts are joined and cut into pieces of one length, each behind the first token; what has a context is kept
    as it is, cut at `length`.

    Args:
        bytewise: a token is a byte, so that any file can be read.

    Raises:
        ValueError: it cannot be read like this; the message names the file. OSError: it cannot be read.
    """
    first = first_token(tokens)
    if file.suffix != ".jsonl":
        return _pieces(_ids(file, tokens, bytewise), first, length)
    found = read_texts(file, tokens, length, chunks=True)
    whole = [i for text in found if text.start == 1 for i in text.ids if i != first]
    return [*_pieces(whole, first, length), *(text for text in found if text.start > 1)]


def _ids(file: Path, tokens: TokenText, bytewise: bool) -> list[int]:
    data = file.read_bytes()
    if bytewise:
        return list(data)
    try:
        return tokens.encode(data.decode("utf-8"), add_special_tokens=False)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text: without --model it is read byte by byte") from None


def _pieces(ids: Sequence[int], first: int, length: int) -> list[Text]:
    """Cut ids into pieces of one length; the rest at the end, which is shorter, is left out."""
    own = length - 1
    return [Text((first, *ids[i : i + own]), 1) for i in range(0, len(ids) - own + 1, own)]


def ordered(texts: Iterable[Text], order: str, first: int, seed: int) -> tuple[Text, ...]:
    """Return the texts in another order of their tokens.

    Raises:
        ValueError: there is no such order, or the texts have no context to swap.
    """
    texts = tuple(texts)
    if order not in ORDERS:
        raise ValueError(f"there is no order {order!r}; there are {', '.join(ORDERS)}")
    if order in ("joint", "swapped") and not any(text.start > 1 for text in texts):
        raise ValueError(f"the order {order} is for a prompt with its completion, which these texts have not")
    rng = random.Random(f"order:{seed}")
    return tuple(_reordered(text, order, first, rng) for text in texts)


def _reordered(text: Text, order: str, first: int, rng: random.Random) -> Text:
    context, learned = text.ids[: text.start], text.ids[text.start :]
    if order == "backward":
        learned = learned[::-1]
    elif order == "shuffled":
        learned = tuple(rng.sample(learned, len(learned)))
    elif order in ("joint", "swapped"):
        asked = context[1:] if context[0] == first else context
        parts = (*learned, *asked) if order == "swapped" else (*asked, *learned)
        return Text((first, *parts), 1)
    return Text((*context, *learned), text.start)
