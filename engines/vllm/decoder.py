"""Gates, transforms and draws for the rows of a vLLM batch: the state and the maths behind both processor interfaces.

An adapter says which requests the rows of a step belong to, and at which position each of them is. A position may be
measured more than once (a chunk of a prompt that is not the last yields logits whose token is thrown away, and a
preempted request comes back): what is stored is stored by position, so the last time counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llguidance import LLMatcher

from waver.engines.base import Gate, Sampling
from waver.engines.grammar import Grammar
from waver.engines.picking import prepare
from waver.engines.sampling import Row, draw
from waver.engines.tally import Tally
from waver.engines.temperature import adapted
from waver.engines.transforms import truncate
from waver.engines.vllm.ask import LONGEST_WINDOW, Ask
from waver.engines.vllm.board import COMPLETE, EAGER, LAGGED, TOP, Pen
from waver.entropy import BatchedRollingEntropy, fastest
from waver.entropy.sending import library, send, shared, small

NOBODY = -1
"""The tag of a state that is none's: a part of a prompt may have left another's before."""
CERTAIN = 1e30
"""The logit of a token that must come: beyond any other, and finite after any temperature."""


@dataclass(frozen=True, slots=True)
class Place:
    """A row of the step's logits: whose it is, and the position in its answer that the logits are for (from 0, counted
    from the end of what this engine was given)."""

    row: int
    live: Live
    position: int

    @property
    def as_row(self) -> Row:
        live = self.live
        return Row(live.ask.sampling or Sampling(), live.ids(self.position), live.start, live.ask.ends, live.tallies)

    @property
    def given(self) -> int | None:
        """The token that is to be taken here, where the request says."""
        given = self.live.ask.given
        return given[self.position] if self.position < len(given) else None

    @property
    def draws(self) -> bool:
        """Whether the token is drawn here: nothing is to be done where vLLM takes the likeliest of untouched logits."""
        return self.live.always_draws or self.position < self.live.until


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows that asked are among the step's: all of them in their order where no index says otherwise, which
    is the common case, and a step of one row is as long as the number of its kernels."""

    index: Any

    @property
    def every(self) -> Any:
        return slice(None) if self.index is None else self.index

    def of(self, which: Any) -> Any:
        """The rows of some of those that asked, `[n]`."""
        return which if self.index is None else self.index[which]


@dataclass(frozen=True, slots=True)
class States:
    """The hidden states of a step, after the final norm: `ends` `[rows, hidden]`, which its logits are made of, and
    `every` `[tokens, hidden]`, of which row i has those from `bounds[i]` to `bounds[i + 1]`. The latter two are None
    where they are not to be found."""

    ends: torch.Tensor
    every: torch.Tensor | None = None
    bounds: Sequence[int] | None = None

    def of(self, asked: Sequence[Place]) -> tuple[torch.Tensor, torch.Tensor]:
        """`[n, hidden]` for those who ask, and `[n]`, whether each is the right one: a row's token may have been read
        in another step, and where the last of `every` is not the row's end, vLLM means something else by these."""
        device = self.ends.device
        own = self.ends[send([place.row for place in asked], device)]
        behind = [place.live.ask.hidden or 0 for place in asked]
        if not any(behind):
            return own, torch.ones(len(asked), dtype=torch.bool, device=device)
        if self.every is None or self.bounds is None:
            return own, send([not each for each in behind], device)
        first, last = ([int(self.bounds[place.row + i]) - i for place in asked] for i in (0, 1))
        here = [end - each >= start for start, end, each in zip(first, last, behind, strict=True)]
        at = [end - each if there else end for end, each, there in zip(last, behind, here, strict=True)]
        known = (self.every[send(last, device)] == own).all(-1) & send(here, device)
        inner = send([each > 0 for each in behind], device)
        return torch.where(inner[:, None], self.every[send(at, device)], own), known | ~inner


class Live:
    """A request in the batch, or one that was in it and may come back."""

    def __init__(self, ask: Ask, length: int, prompt: Callable[[], Sequence[int]], origin: object) -> None:
        self.ask = ask
        self.length = length
        """Tokens of the prompt."""
        self.origin = origin
        """The object that vLLM keeps for this request, where it keeps one."""
        self.position = -1
        """The last position that was measured."""
        self.window = -1
        """Its row in the table of windows, if it has a gate."""
        how = ask.sampling
        self.start = length if how is None or how.answer_start is None else how.answer_start
        """Where the answer begins."""
        self.always_draws, self.until = False, 0
        """Whether all of its tokens are drawn here, else up to which position: a minimum of tokens touches the logits
        until then."""
        if how is not None and not ask.given:
            untouched = Row(how, (), -how.min_tokens, ()).untouched  # once there are so many
            self.always_draws = how.temperature > 0 or how.grammar is not None or not untouched
            self.until = how.min_tokens + self.start - length
        self.cuts = how is None and bool(ask.transforms) and ask.temperature > 0
        """Whether vLLM draws, from what transforms leave."""
        self.reserves = ask.gate is not None and ask.stop not in ask.ends
        """Whether the token that ends the request has no other use, and so is none that may be drawn."""
        self.reports = how is not None and how.logprobs
        """Whether the log-probability of its tokens is asked for."""
        self.schema = None if how is None else how.grammar
        self.tallies = Tally(), Tally()
        self._prompt = prompt
        self._ids: list[int] | None = None
        self._matcher: LLMatcher | None = None
        self._read = 0

    def ids(self, position: int) -> Sequence[int]:
        """The prompt and the tokens before a position; only as many, of no meaning, where their number is enough."""
        if not self.ask.remembers:
            return range(self.length + position)
        if self._ids is None:
            self._ids = list(self._prompt())
        return self._ids[: self.length + position]

    def wrote(self, position: int, token: int) -> None:
        if self._ids is not None:
            self._ids[self.length + position :] = [token]

    def matcher(self, grammar: Grammar, schema: str, position: int) -> LLMatcher:
        """A matcher that has read the answer up to a position, which may lie before the one of last time."""
        answer = self.ids(position)[self.start :]
        if self._matcher is None or len(answer) < self._read:
            self._matcher = grammar.matcher(schema, list(answer))
        elif new := answer[self._read :]:
            self._matcher.consume_tokens(list(new))
        self._read = len(answer)
        return self._matcher

    def completes(self, token: int) -> bool:
        """Whether the grammar is at its end with this token."""
        if self._matcher is None:
            return False
        ahead = self._matcher.deep_copy()
        ahead.consume_token(token)
        return bool(ahead.is_stopped())


class Decoder:
    """The requests of one worker.

    Args:
        capacity: most requests in a batch. known: tokens that the tokenizer knows; ids from there on are padding.
        board: where to report; None for a worker that does not (another rank of its group does).
        grammar, geometry: make the compiler of JSON schemas, and the whitened embeddings (`[vocab, dim]`), when a
            row first needs them.
    """

    def __init__(
        self,
        capacity: int,
        vocabulary: int,
        known: int,
        device: torch.device,
        board: Path | None = None,
        grammar: Callable[[], Grammar] | None = None,
        geometry: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        self._known, self._device = known, device
        self._measure = fastest(vocabulary, device, capacity)
        prepare(device)
        # Twice the batch: a request that was preempted keeps its window until others need it.
        self._windows = BatchedRollingEntropy(2 * capacity, LONGEST_WINDOW, device)
        # Where lagged gates fired, by parity of the position: measuring one again must not forget the one before it.
        self._crossed = shared(torch.full((2 * capacity, 2), -2, dtype=torch.long, device=device))
        self._free = list(range(2 * capacity))
        self._gone: OrderedDict[int, Live] = OrderedDict()
        self._most_gone = capacity
        self._pen = Pen(board, device) if board else None
        self._make_grammar = grammar
        self._grammar: Grammar | None = None
        self._geometry = None if geometry is None else cache(geometry)

    @property
    def nbytes(self) -> int:
        """Memory of the state, on the device."""
        return int(self._windows.nbytes + self._crossed.nbytes)

    def join(
        self, ask: Ask, length: int, written: int, prompt: Callable[[], Sequence[int]], origin: object = None
    ) -> Live:
        """A request enters the batch, for the first time or again after a preemption.

        Args:
            length: tokens of its prompt. written: tokens that vLLM has generated for it. origin: see `Live`.
        """
        live = self._back(ask, written, origin)
        if live is None:
            live = Live(ask, length, prompt, origin)
            if ask.gate is not None:
                live.window = self._free.pop() if self._free else self._oldest()
                self._windows.begin(live.window, () if written else ask.gate.history, written)
                self._crossed[live.window] = -2
        return live

    def leave(self, live: Live) -> None:
        """A request is done, or was preempted: which one is not told."""
        self._gone[id(live)] = live
        while len(self._gone) > self._most_gone:
            self._forget(next(iter(self._gone.values())))

    def _forget(self, live: Live) -> None:
        del self._gone[id(live)]
        if live.window >= 0:
            self._free.append(live.window)

    def _oldest(self) -> int:
        self._forget(next(live for live in self._gone.values() if live.window >= 0))
        return self._free.pop()

    def _back(self, ask: Ask, written: int, origin: object) -> Live | None:
        """Who left with this origin, or where none is known with this tag; of several (choices of one request) the one
        whose tokens are as many, else who left last."""
        same = [
            live
            for live in reversed(self._gone.values())
            if (live.origin is origin if origin is not None else live.ask.tag == ask.tag)
        ]
        if not written:  # it starts anew, and what it left behind is not to be found later
            for live in same:
                if origin is not None and live.position <= 0:
                    self._forget(live)
            return None
        found = next((live for live in same if live.position == written - 1), same[0] if same else None)
        if found is not None:
            del self._gone[id(found)]
        return found

    def apply(
        self, logits: torch.Tensor, batch: Sequence[Place], states: Callable[[], States | None] = lambda: None
    ) -> None:
        """Act on a step, in place.

        Args:
            logits: `[rows, vocab]` float32: the model's own; a grammar's mask and a bias of vLLM's are in them.
            batch: the rows that asked, in their order.
            states: finds the hidden states behind the logits, where a row asks for its own.
        """
        if not batch:
            return
        for place in batch:
            place.live.position = place.position
        # Arrays are those of `library`; what torch has to do gets the same memory as a tensor.
        values, whole = shared(logits), len(batch) == logits.shape[0]
        rows = Rows(None if whole else small([place.row for place in batch], self._device))
        if self._known < logits.shape[1]:
            values[rows.every, self._known :] = -torch.inf
        self._guide(logits, batch)
        mine = values if whole else values[rows.every]
        entropy, norm, peak = self._measure(mine)
        logprob = -norm
        top = self._alternatives(mine, peak, norm, batch)
        gated = [i for i, place in enumerate(batch) if place.live.window >= 0]
        remembers = any(place.live.ask.remembers for place in batch)
        # What is all zeros is left out: a step of a few rows is as long as the number of its kernels.
        flags: Any = small([0] * len(batch), self._device) if gated or remembers else None
        crop = None

        def chances(which: Any, own: Any) -> Any:
            """Log-probabilities of logits, one in each of these rows."""
            return own - peak[which] - norm[which]

        if gated:
            self._bar(values, rows, mine, batch)
            guarded = small(gated, self._device)
            each = slice(None) if len(gated) == len(batch) else guarded
            ends, flags[each] = self._gates([batch[i] for i in gated], entropy[each])
        drawn = [i for i, place in enumerate(batch) if place.draws]
        if drawn:
            picked = small(drawn, self._device)
            own = mine if len(drawn) == len(batch) else mine[picked]
            wavers = torch.as_tensor(entropy[picked])
            result = draw(torch.as_tensor(own), [batch[i].as_row for i in drawn], self._geometry, wavers)
            tokens = shared(result.tokens)
            if result.kept is not None and result.crop_entropy is not None:
                crop = tuple(small([0] * len(batch), self._device, kind) for kind in ("int64", "float32"))
                crop[0][picked], crop[1][picked] = shared(result.kept), shared(result.crop_entropy)
            logprob[picked] = chances(picked, mine[picked, tokens])
            if remembers:
                self._remember([batch[i] for i in drawn], drawn, tokens, flags)
            values[rows.of(picked), tokens] = CERTAIN
        given = [(i, token) for i, place in enumerate(batch) if (token := place.given) is not None]
        if given:
            which, taken = small(given, self._device).T
            logprob[which] = chances(which, mine[which, taken])
            values[rows.of(which), taken] = CERTAIN
        if misled := self._misled(batch):
            which = small(misled, self._device)
            logprob[which] = chances(which, library(self._device).amax(mine[which], -1))
        cut = [i for i, place in enumerate(batch) if place.live.cuts]
        if cut:
            asks = [batch[i].live.ask for i in cut]
            self._shape(logits, rows, torch.as_tensor(mine), torch.as_tensor(entropy), asks, cut)
        if gated and (library(self._device) is torch or ends.any()):  # only a CPU's are known here without waiting
            at = rows.of(guarded)
            stops = small([batch[i].live.ask.stop for i in gated], self._device)
            values[at, stops] = library(self._device).where(ends, 10 * CERTAIN, values[at, stops])
        self._report(batch, entropy, logprob, flags, crop, top)
        self._hand_out(len(logits), batch, states)

    def _bar(self, values: Any, rows: Rows, mine: Any, batch: Sequence[Place]) -> None:
        """Nobody draws a token that is kept for ending a request, unless it ends the answer anyway."""
        barred = [(i, place.live.ask.stop) for i, place in enumerate(batch) if place.live.reserves]
        if barred:
            which, stops = small(barred, self._device).T
            mine[which, stops] = -torch.inf
            if mine is not values:
                values[rows.of(which), stops] = -torch.inf

    def _shape(
        self,
        logits: torch.Tensor,
        rows: Rows,
        mine: torch.Tensor,
        entropy: torch.Tensor,
        asks: Sequence[Ask],
        cut: Sequence[int],
    ) -> None:
        """Bar, in place, what the transforms of rows that vLLM draws for take away. They see the tempered distribution;
        of the kept logits vLLM's temperature is still to come, and what an adaptive one makes of it is done here."""
        which = send(cut, self._device)
        transforms = [ask.transforms for ask in asks]
        base = send([ask.temperature for ask in asks], self._device)
        temperatures = adapted(base, transforms, entropy[which])
        left = truncate(mine[which] / temperatures[:, None], transforms, self._geometry, temperatures).logits
        at = torch.as_tensor(rows.of(which))
        kept = logits[at] if temperatures is base else logits[at] * (base / temperatures)[:, None]
        logits[at] = kept.masked_fill(left == -torch.inf, -torch.inf)

    def _misled(self, batch: Sequence[Place]) -> list[int]:
        """Rows whose likeliest token vLLM takes, and that may have been the one that is kept for the gate."""
        return [i for i, place in enumerate(batch) if place.live.reserves and not place.draws and place.live.reports]

    def _guide(self, logits: torch.Tensor, batch: Sequence[Place]) -> None:
        """Mask, in place, what the grammars of requests do not allow next."""
        guided = [(place, schema) for place in batch if (schema := place.live.schema) is not None]
        if not guided:
            return
        if self._grammar is None:
            if self._make_grammar is None:
                raise RuntimeError("this worker was given no tokenizer")
            self._grammar = self._make_grammar()
        matchers = [place.live.matcher(self._grammar, schema, place.position) for place, schema in guided]
        self._grammar.mask(logits, [place.row for place, _ in guided], matchers)

    def _gates(self, batch: Sequence[Place], entropy: Any) -> tuple[Any, Any]:
        """For rows with a gate: whether the request ends here, and what to tell its reader; `[n]` arrays each.

        An eager gate ends it where it fires. A lagged one lets the token stand and ends it at the next position, unless
        the reader has left by then.
        """
        where = library(self._device).where
        gates = [place.live.ask.gate or Gate(1, 0.0) for place in batch]
        numbers = [(p.live.window, p.position, g.window, g.min_tokens) for p, g in zip(batch, gates, strict=True)]
        rows, positions, windows, least = small(numbers, self._device).T
        rules = [(g.threshold, g.above, g.timing == "eager") for g in gates]
        threshold, above, eager = small(rules, self._device, "float64").T
        means = self._windows.observe(rows, positions, windows, entropy, max(gate.window for gate in gates))
        crossed = where(above > 0, means >= threshold, means < threshold)
        standing = positions + (eager == 0)
        fires = crossed & (standing >= least)
        before = self._crossed[rows, (positions - 1) % 2] == positions - 1
        self._crossed[rows, positions % 2] = where(fires & (eager == 0), positions, -2)
        ends = where(eager > 0, fires, before)
        return ends, where(fires, where(eager > 0, EAGER, LAGGED), 0)

    def _remember(self, batch: Sequence[Place], index: Sequence[int], tokens: Any, flags: Any) -> None:
        """Keep the tokens of those whose penalties or grammar need them; say whose grammar is at its end."""
        for i, place, token in zip(index, batch, tokens.tolist(), strict=True):
            place.live.wrote(place.position, token)
            if place.live.completes(token):
                flags[i] |= COMPLETE

    def _alternatives(
        self, mine: Any, peak: Any, norm: Any, batch: Sequence[Place]
    ) -> tuple[list[Place], torch.Tensor, torch.Tensor] | None:
        wanted = [
            i
            for i, place in enumerate(batch)
            if (how := place.live.ask.sampling) and how.top_logprobs and place.live.ask.slot >= 0
        ]
        if not wanted or self._pen is None:
            return None
        which = small(wanted, self._device)
        values, ids = torch.as_tensor(mine[which]).topk(min(TOP, mine.shape[1]), dim=-1)
        logprobs = shared(values) - peak[which, None] - norm[which, None]
        return [batch[i] for i in wanted], ids, torch.as_tensor(logprobs)

    def _report(
        self,
        batch: Sequence[Place],
        entropy: Any,
        logprob: Any,
        flags: Any,
        crop: tuple[Any, Any] | None,
        top: tuple[list[Place], torch.Tensor, torch.Tensor] | None,
    ) -> None:
        read = [i for i, place in enumerate(batch) if place.live.ask.slot >= 0]
        if self._pen is None or not read:
            return
        if top is not None:
            places, ids, logprobs = top
            slots, tags = [p.live.ask.slot for p in places], [p.live.ask.tag for p in places]
            self._pen.write_top(slots, tags, [p.position for p in places], ids, logprobs)
        if len(read) < len(batch):
            which = small(read, self._device)
            entropy, logprob, batch = entropy[which], logprob[which], [batch[i] for i in read]
            flags = None if flags is None else flags[which]
            crop = None if crop is None else (crop[0][which], crop[1][which])
        asks = [place.live.ask for place in batch]
        slots, tags = [ask.slot for ask in asks], [ask.tag for ask in asks]
        self._pen.write(slots, tags, [place.position for place in batch], entropy, logprob, flags, crop)

    def _hand_out(self, rows: int, batch: Sequence[Place], states: Callable[[], States | None]) -> None:
        """Report the hidden states of those who ask, with their first token. One that is missing is noticed by who
        waits for it; those of another shape than the board's would end every request."""
        asked = [place for place in batch if place.live.ask.hidden is not None and place.position == 0]
        if not asked or self._pen is None or (found := states()) is None:
            return
        if found.ends.shape != (rows, self._pen.hidden):
            return
        own, right = found.of(asked)
        tags = torch.where(right, send([place.live.ask.tag for place in asked], right.device), NOBODY)
        self._pen.write_states([place.live.ask.slot for place in asked], tags, own)
