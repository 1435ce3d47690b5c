"""Guided decoding: mask the tokens that a grammar does not allow next. The parser is llguidance's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import llguidance
import llguidance.hf
import llguidance.torch
import torch
from transformers import PreTrainedTokenizerFast

from waver.devices import to_device
from waver.engines.base import Unsupported
from waver.engines.schema_check_worker import compiled, words
from waver.engines.tokens import TokenText


class Grammar:
    """Compiles grammars, written as `Sampling.grammar` has them, for one tokenizer."""

    def __init__(self, tokens: TokenText, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(
                cast(PreTrainedTokenizerFast, tokens.tokenizer),
                n_vocab=max(vocabulary, tokens.vocab_size),
                eos_token=list(tokens.eos_ids),
            )
        except Exception as error:  # not every kind of tokenizer spells its tokens in bytes
            raise Unsupported(f"this model's tokenizer cannot be guided: {error}", "response_format") from error
        self._compile = lru_cache(maxsize=64)(self._start)

    def _start(self, grammar: str) -> llguidance.LLMatcher:
        """Compile a grammar to a matcher that has consumed nothing."""
        try:
            matcher = llguidance.LLMatcher(self._tokenizer, compiled(grammar))
        except ValueError as error:
            raise Unsupported(f"the grammar cannot be enforced: {words(str(error))}", "response_format") from error
        if matcher.is_error():
            raise Unsupported(f"the grammar cannot be enforced: {words(matcher.get_error())}", "response_format")
        return matcher

    def matcher(self, grammar: str, answer: Sequence[int]) -> llguidance.LLMatcher:
        """Make a matcher that has consumed `answer`, so that an answer can continue where another engine left it.

        Raises:
            Unsupported: the grammar cannot be compiled, or the answer so far is not a prefix of what it allows.
        """
        matcher = self._compile(grammar).deep_copy()
        if answer and not matcher.consume_tokens(list(answer)):
            raise Unsupported("the answer so far does not fit the grammar", "response_format")
        return matcher

    def mask(self, logits: torch.Tensor, rows: Sequence[int], matchers: Sequence[llguidance.LLMatcher]) -> None:
        """Bar, in place, what each grammar does not allow next in its row of `[rows, vocab]` logits."""
        bits = llguidance.torch.allocate_token_bitmask(len(rows), self._vocabulary)
        for i, matcher in enumerate(matchers):
            llguidance.torch.fill_next_token_bitmask(matcher, bits, i)
        device = logits.device
        words, at = bits.to(device, non_blocking=True), to_device(rows, device)
        allowed = (words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=device)) & 1
        logits[at] = logits[at].masked_fill(allowed.flatten(1)[:, : self._vocabulary] == 0, -torch.inf)
