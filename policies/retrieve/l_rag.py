"""L-RAG, arXiv 2601.06551: answer first, and look things up only where that answer wavers.

Tier 1 answers from the question and, where `documents` are named, their summaries. Over the first tokens of that
answer, its draft, with H_t the entropy of the raw next-token distribution:

    U = (1/T) Σ_{t<=T} H_t      T: at most `draft_tokens`, up to the end of the first line that says something
    U <= threshold: the draft is the answer, and goes on as it is written
    U >  threshold: tier 2: `top_k` passages for the question, quoted in front of it; the draft is thrown away

Details:
- The paper gives two thresholds, 0.5 and 1.0, without their unit, and neither pooling, draft length nor prompts: those
  here are reconstructions, and each is a parameter. A threshold fits one model, template and pooling (`waver
  calibrate`).
- The stop token, line breaks and think blocks are no part of a draft; a draft that a model thinks before is held back
  with its thoughts.
- The gate speaks as soon as it cannot but fire, or once the draft is complete; nothing is streamed before. An empty
  draft retrieves. Where no passage is found the first tier answers, and the report's `passages` are empty.
- The draft is drawn as the request says; its entropies are those of the raw distribution. Under `ead` both engines
  simply go on after it.
- Both prompts are the same up to the first passage, instruction and summaries included, so that a prefix cache serves
  both. The report's `seconds` tell whether the gate pays: on a fast local store it may not.

Gates are in `waver.policies.retrieve.gates`, one in each file, with thresholds and sources of their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from waver.engines.base import Step, Unsupported
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.retrieve.gate_registry import gates
from waver.policies.retrieve.gates.base import Gate, GateSettings
from waver.policies.retrieve.gates.draft import Beginning, DraftEnd, Pooling
from waver.policies.retrieve.lookup import Lookup, LookupParameters, open_collection
from waver.policies.retrieve.sentences import by_sentence

INSIDES = {
    "attention": "attention weights",
    "hidden_states": "the hidden states of all layers",
    "hidden_state": "the last layer's hidden state",
}


ADAPTIVE = (
    "There is no gate adaptive_rag: Adaptive-RAG (arXiv 2403.14403) needs a classifier that was trained on which of "
    "three ways (no lookup, one, several) answered each of some thousand questions of one data set, and there is none "
    "to ship. `waver route learn` and `learned_route` tell kinds of questions apart by examples; `waver calibrate "
    "l_rag` finds the threshold of a gate"
)
"""The refusal of a rival that is not here."""


def _known_gate(name: Any) -> Any:
    """Refuse what no gate is called, in the words of pydantic for a `Literal`."""
    names = [repr(each) for each in gates()]
    if name == "adaptive_rag":
        raise PydanticCustomError("value_error", ADAPTIVE)
    if name not in gates():
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name


def _gate_names(schema: dict[str, Any]) -> None:
    schema["enum"] = list(gates())


def _default_thresholds(schema: dict[str, Any]) -> None:
    known = ", ".join(f"{name} {gate.threshold:g}" for name, gate in gates().items() if gate.threshold is not None)
    schema["description"] += f"; null: the gate's own, {known}"


def _default_drafts(schema: dict[str, Any]) -> None:
    longer = [f"{name} {each.draft_tokens}" for name, each in gates().items() if each.draft_tokens != Gate.draft_tokens]
    schema["description"] += f"; null: the gate's own, {', '.join([str(Gate.draft_tokens), *longer])}"


class LRAG(LookupParameters, Policy):
    """Look things up in a collection only when the model wavers without them."""

    stage: ClassVar[Stage] = "search"
    takes_pictures: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2601.06551"
    evaluation: ClassVar[Mapping[str, tuple[str, ...]]] = {"gate": ("never", "random"), "rate": ()}
    defaults_for: ClassVar[str | None] = (
        "each gate's paper, most with models of 3 to 13 billion parameters (entropy: Phi-2, in a unit that it leaves "
        "open); `waver calibrate l_rag` finds the threshold for a model and a collection"
    )
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_retrieval_gates", "Decisions whether to look things up.", ("gate", "outcome")),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "retrieval": "the gate, its score and threshold, whether it fired, passages with scores, and seconds",
    }

    name: Literal["l_rag"] = "l_rag"
    gate: Annotated[str, BeforeValidator(_known_gate)] = Field(
        default="entropy", description="what tells whether to look things up", json_schema_extra=_gate_names
    )
    threshold: float | None = Field(
        default=None,
        description="score above which the gate fires (entropies in nats; flare: a probability, at or below which)",
        json_schema_extra=_default_thresholds,
    )
    pooling: Pooling = Field(default="mean", description="how the entropies of a draft become one number")
    prefix: int = Field(default=4, ge=1, le=1024, description="tokens that the pooling prefix_k looks at")
    draft_tokens: int | None = Field(
        default=None, ge=1, le=1024, description="most tokens of a draft", json_schema_extra=_default_drafts
    )
    draft_end: DraftEnd = Field(
        default="line", description="whether a draft ends with its first line, or only with its most tokens"
    )
    signal: Literal["margin", "entropy", "variance"] = Field(default="margin", description="what targ looks at")
    samples: int = Field(default=20, ge=2, le=64, description="answers that seakr, and targ's variance, draw")
    rate: float = Field(default=0.5, ge=0.0, le=1.0, description="share of requests for which random retrieves")
    expected_rate: float | None = Field(
        default=None, ge=0.0, le=1.0, description="share of requests that retrieved in calibration; it is watched"
    )

    def _made(self) -> Gate:
        """Make the gate for one answer, with the threshold and the length in force."""
        kind = gates()[self.gate]
        settings = GateSettings(
            threshold=(kind.threshold or 0.0) if self.threshold is None else self.threshold,
            draft_tokens=self.draft_tokens or kind.draft_tokens,
            pooling=self.pooling,
            prefix=self.prefix,
            draft_end=self.draft_end,
            signal=self.signal,
            samples=self.samples,
            rate=self.rate,
        )
        return kind(settings)

    @property
    def extra_sequences(self) -> int:
        return self._made().extra_sequences

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        record = report.extra.get("retrieval")
        if record is None or not record["seconds"]["gate"]:
            return ()  # the request ended before its gate had decided
        return (("waver_retrieval_gates", (record["gate"], "retrieved" if record["triggered"] else "kept")),)

    async def check(self, job: Job) -> None:
        known = gates()
        need = known[self.gate].needs
        if need is not None and need not in job.writer.exposes:
            free = [
                name
                for name, each in known.items()
                if each.threshold is not None and each.needs is None and each.check is Gate.check
            ]
            raise Unsupported(
                f"the gate {self.gate} needs {INSIDES[need]}, which engine {job.engine!r} does not hand out; "
                f"{', '.join(free[:-1])} and {free[-1]} do without",
                "gate",
            )
        self._made().check(job)
        await open_collection(self, job)

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        gate = self._made()
        record = {"gate": self.gate, "threshold": gate.settings.threshold}
        lookup = Lookup(self, job, await open_collection(self, job), record)
        run = by_sentence if gate.per_sentence else two_tiers
        async with aclosing(run(job, proceed, lookup, gate)) as steps:
            async for step in steps:
                yield lookup.wrote(step)


async def two_tiers(job: Job, proceed: Proceed, lookup: Lookup, gate: Gate) -> AsyncGenerator[Step, None]:
    """Yield the draft and what follows it, or, where the gate fires, an answer with passages in front of the question.
    Nothing is yielded before the gate has decided."""
    assert job.question is not None
    first = gate.prepare(await lookup.with_summaries() if gate.summaries else job)
    draft = Beginning(first, first.prompt_ids, gate.longest, end=gate.settings.draft_end)
    verdict = await gate.decide(draft)
    if verdict is not None:
        lookup.decided(verdict, verdict.score)
    if verdict is None or not verdict.fires:
        async with aclosing(proceed(first)) as steps:
            async for step in steps:
                if verdict is not None:
                    yield step
                    continue
                draft.read(step)
                verdict = await gate.decide(draft)
                if verdict is None:
                    continue
                lookup.decided(verdict, verdict.score)
                if verdict.fires:
                    break
                for held in draft.steps:
                    yield held
    if verdict is None:
        raise RuntimeError(f"the gate {gate.name} did not decide about a complete draft")
    if not verdict.fires:
        return
    lookup.discarded(draft.steps)
    second = await lookup.with_passages(job.question.text)
    async with aclosing(proceed(second or first)) as steps:
        async for step in steps:
            yield step
