"""Route whole requests by their kind, which a router has learned from examples (Mamba-FSCIL, arXiv 2407.06136).

`waver route learn` makes routers. The user's last message is cut into pieces, which the configuration's embedder turns
into a feature map; the kind with the largest cosine decides which engine answers. Where the probabilities of the kinds
are too even, or a kind has no engine, the request's own engine answers; that abstention is ours.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from waver.engines.base import Step, Unsupported
from waver.engines.router import Router, as_maps, pieces
from waver.engines.tokens import differences
from waver.policies.base import CounterSpec, Policy, Proceed, Stage
from waver.policies.job import Job
from waver.policies.report import Report


class LearnedRoute(Policy):
    """Let the kind of a request, learned from a few examples, decide which engine answers."""

    stage: ClassVar[Stage] = "decode"
    paper: ClassVar[str] = "arXiv 2407.06136"
    metrics: ClassVar[tuple[CounterSpec, ...]] = (
        CounterSpec("waver_routed_requests", "Requests by the kind that a router chose.", ("router", "kind")),
    )
    report_keys: ClassVar[Mapping[str, str]] = {
        "request_kind": "the kind of the request, its probability, the entropy of all, and the engine that answered",
    }

    name: Literal["learned_route"] = "learned_route"
    router: str | None = Field(default=None, description="a router of the configuration; default: the first")
    routes: dict[str, str] = Field(default={}, description="engines of kinds; others go to the request's own engine")
    unsure: float = Field(
        default=1.0, ge=0.0, le=1.0, description="entropy (0 to 1) above which the request's own engine answers"
    )

    @property
    def helping_engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.routes.values()))

    def counted(self, report: Report) -> Iterable[tuple[str, tuple[str, ...]]]:
        made = report.extra.get("request_kind")
        return () if made is None else (("waver_routed_requests", (made["router"], made["kind"])),)

    async def check(self, job: Job) -> None:
        name, router = self._router(job)
        if job.question is None or not job.question.text.strip():
            raise Unsupported("there is no text to tell the kind of: send a user's message, or a prompt as text")
        if unknown := set(self.routes) - set(router.record.kinds):
            known = ", ".join(router.record.kinds)
            raise Unsupported(f"the router {name!r} has no kind {min(unknown)[:64]!r}; there are {known}", "routes")
        for engine in self.helping_engines:
            if reason := differences(job.writer.tokens, job.services.engines[engine].tokens):
                raise Unsupported(f"{engine!r} cannot answer instead of {job.engine!r}: {reason}", "routes")
        library, embedder = job.services.library, job.services.embedder
        if library is None or embedder is None:
            raise Unsupported("a router needs an embedder, and there is none here", "router")
        fingerprint = await library.compute(lambda: embedder.fingerprint)
        if reason := router.misfit(embedder.name, fingerprint):
            raise Unsupported(reason, "router")

    def possible_jobs(self, job: Job) -> list[Job]:
        return [job, *(replace(job, engine=engine) for engine in self.helping_engines)]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        name, router = self._router(job)
        library, embedder = job.services.library, job.services.embedder
        assert library is not None and embedder is not None and job.question is not None  # noqa: PT018
        vectors = await library.compute(embedder.embed, pieces(job.question.text))
        (choice,) = router(as_maps(vectors))
        sure = choice.entropy <= self.unsure
        engine = self.routes.get(choice.kind, job.engine) if sure else job.engine
        job.report.extra["request_kind"] = {
            "router": name,
            "kind": choice.kind,
            "probability": choice.probabilities[choice.kind],
            "entropy": choice.entropy,
            "sure": sure,
            "engine": engine,
        }
        async with aclosing(proceed(replace(job, engine=engine))) as steps:
            async for step in steps:
                yield step

    def _router(self, job: Job) -> tuple[str, Router]:
        """Find the router.

        Raises:
            Unsupported: it is not there.
        """
        there = job.services.routers
        name = self.router if self.router is not None else next(iter(there), None)
        if name is None or name not in there:
            known = ", ".join(there) or "none (waver route learn makes one)"
            raise Unsupported(f"unknown router {(name or '')[:64]!r}; there are {known}", "router")
        return name, there[name]
