"""Look passages and summaries up for a job, put them into its prompt, and report them with the time they took."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, Field

from waver.engines.base import NO_TOKEN, Step, Unsupported
from waver.engines.decision import Decision
from waver.policies.helpers import ask
from waver.policies.job import Job
from waver.policies.retrieve import quoting
from waver.policies.retrieve.gates.base import Verdict
from waver.retrieval.base import Passage, RetrievalError
from waver.retrieval.collection import Collection, check_filter
from waver.tracing import span

Scalar = str | int | float | bool | None
SUMMARY_TOKENS = 100
LONGEST_TITLE = 200
"""Characters of a title in a prompt: it stands before every passage of its document."""
SUMMARISED = 4
"""Chunks from the beginning of a document that a written summary is made of."""
ASK = "Summarise this text in two sentences.\n\n{}"


class LookupParameters(BaseModel):
    """The parameters of a lookup, for policies that have one."""

    name: str
    collection: str | None = Field(default=None, description="where passages are looked for")
    top_k: int = Field(default=3, ge=1, le=100, description="passages in the prompt")
    mode: Literal["hybrid", "dense", "lexical"] = Field(default="hybrid", description="how passages are found")
    filter: dict[str, Scalar | list[Scalar]] = Field(
        default={}, max_length=64, description="metadata that a passage's document must carry"
    )
    documents: list[str] = Field(
        default=[], max_length=16, description="documents that the question is about: their summaries open the prompt"
    )
    summary: Literal["lead", "written"] = Field(
        default="lead", description="their first sentences, or a summary that the engine writes once"
    )
    instruction: str = Field(
        default=quoting.INSTRUCTION, max_length=4096, description="words in front of what is quoted"
    )


class Lookup:
    """The lookups of one job. `record` is the report's `retrieval`."""

    def __init__(self, where: LookupParameters, job: Job, collection: Collection, record: dict[str, Any]) -> None:
        self._where, self._job, self._collection = where, job, collection
        self._summaries: list[str] = []
        self._began = time.perf_counter()
        self._decision: Decision | None = None
        self.record = record
        record |= {"triggered": False, "passages": [], "seconds": {"gate": 0.0, "retrieval": 0.0, "generation": 0.0}}
        job.report.extra["retrieval"] = record

    async def with_summaries(self) -> Job:
        """Return the job with the summaries of the documents that were named, if any."""
        names = self._where.documents
        if names:
            library, kind = self._job.services.library, self._where.summary
            assert library is not None
            found = await library.run(self._collection.summaries, names, kind)
            if kind == "written" and (missing := [name for name in names if name not in found]):
                found |= await self._write(missing)
            self._summaries = [found[name] for name in names if name in found]
            self.record["summaries"] = [name for name in names if name in found]
        return (await quoting.quoted_job(self._job, self._summaries, self._where.instruction))[0]

    async def _write(self, names: Sequence[str]) -> dict[str, str]:
        """Let the engine write summaries, which are kept until their documents change."""
        library = self._job.services.library
        assert library is not None
        texts = await library.run(self._collection.openings, names, SUMMARISED)
        written = {}
        for name, text in texts.items():
            question = ASK.format(quoting.one_line(text))
            written[name] = await ask(self._job, [{"role": "user", "content": question}], SUMMARY_TOKENS)
        written = {name: text for name, text in written.items() if text}
        if written:
            await library.write(self._collection, lambda writer: writer.summarise(written, "written"))
        return written

    def decided(self, verdict: Verdict, score: float | None) -> None:
        """Record that a gate has decided, and the score that stands for the answer; the time until now was its own."""
        then = "look_up" if verdict.fires else "keep"
        threshold = self.record["threshold"]
        self._decision = Decision(self._where.name, then, verdict.score, threshold, self._job.engine)
        if score is not None and math.isfinite(score):
            self.record["score"] = score
            if self.record["gate"] == "entropy":
                self.record["gate_entropy"] = score
        self._spent("gate")

    async def with_passages(self, query: str) -> Job | None:
        """Return the job with the passages for a query; None where there are none."""
        where = self._where
        with span("retrieval", {"waver.collection": where.collection or "", "waver.mode": where.mode}) as looking:
            found = await self._collection.search(query, where.top_k, where.filter, where.mode)
            looking.note("waver.passages", len(found))
        job, count = await quoting.quoted_job(self._job, [*self._summaries, *map(_shown, found)], where.instruction)
        used = found[: max(count - len(self._summaries), 0)]
        library = self._job.services.library
        assert library is not None
        if unread := await library.compute(self._collection.unread, query, where.mode, quick=True):
            self.record["warnings"] = list(unread)
        self.record["triggered"] = True
        known = {(each["document"], each["chunk"]) for each in self.record["passages"]}
        self.record["passages"] += [
            {"document": each.document, "chunk": each.chunk, "score": each.score, "text": each.text}
            for each in used
            if (each.document, each.chunk) not in known
        ]
        self._spent("retrieval")
        return job if used else None

    def discarded(self, steps: Sequence[Step]) -> None:
        """Count a draft that is thrown away, and keep its text."""
        self._job.report.discarded += len(steps)
        text = self._job.writer.tokens.decode([step.token for step in steps if step.token != NO_TOKEN])
        self.record.setdefault("drafts", []).append(text)

    def wrote(self, step: Step) -> Step:
        """Count the time until now as the answer's; the token that comes first after a decision carries it."""
        self._spent("generation")
        step, self._decision = step.decided(self._decision), None
        return step

    def _spent(self, on: str) -> None:
        now = time.perf_counter()
        self.record["seconds"][on] += now - self._began
        self._began = now


async def open_collection(where: LookupParameters, job: Job) -> Collection:
    """Open the collection that a policy looks into.

    Raises:
        Unsupported: none is named, or the request's form leaves no place for passages.
        RetrievalError: it is not there, or cannot be read.
    """
    if where.collection is None:
        raise Unsupported('name the collection to look into: "collection": "…"', "collection")
    if job.services.library is None:
        raise Unsupported("there are no collections here")
    try:
        check_filter(where.filter or {})
    except RetrievalError as error:
        raise Unsupported(str(error), "filter") from error
    if job.question is None:
        raise Unsupported("passages are quoted in front of a question: send a user's message, or a prompt as text")
    return await job.services.library.run(partial(job.services.library.open, where.collection))


def _shown(passage: Passage) -> str:
    return f"{passage.title[:LONGEST_TITLE]}: {passage.text}" if passage.title else passage.text
