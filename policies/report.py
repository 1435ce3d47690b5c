"""The report of one choice: tokens by engine, entropies, what truncation left, and what policies add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from waver.engines.base import Step
from waver.engines.metering import Meter


@dataclass
class TruncationStats:
    """Count what truncations left to draw from, over the tokens that were drawn so: sums, and the largest set."""

    draws: int = 0
    tokens: int = 0
    most: int = 0
    entropy: float = 0.0

    def add(self, draws: int, tokens: int, most: int, entropy: float) -> None:
        self.draws += draws
        self.tokens += tokens
        self.most = max(self.most, most)
        self.entropy += entropy

    def as_dict(self) -> dict[str, float]:
        """Return the `truncation` of a report; entropy in nats."""
        mean, entropy = self.tokens / self.draws, self.entropy / self.draws
        return {"kept_mean": mean, "kept_max": self.most, "crop_entropy_mean": entropy}


@dataclass
class Report:
    """Record what happened while one choice was decoded; becomes the `waver` object of the response."""

    policy: list[dict[str, Any]] = field(default_factory=list)
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Parameter count of every engine the request's policies may use, by name."""
    tokens: dict[str, int] = field(default_factory=dict)
    discarded: int = 0
    switches: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """Entries of policies, each under a key of its own, such as `retrieval` or `strategy`."""
    entropy_sum: float = 0.0
    entropy_max: float = 0.0
    bounds_sum: tuple[float, float] | None = None
    truncation: TruncationStats = field(default_factory=TruncationStats)
    routing_sum: float = 0.0
    routing_count: int = 0
    """Entropies of an adapter's routers, and of how many tokens they are."""
    catch_up: dict[str, int] = field(default_factory=dict)
    """Tokens that each engine had to read after a switch because another engine had written them."""
    think_open: bool | None = None
    """True if words that a policy has put in front of the answer end in a think block; None: there are none."""
    filtered_by: str | None = None
    """Name of the policy that withheld the answer, whose `finish_reason` is then `content_filter`."""
    prompt_tokens: int = 0
    """Tokens of the prompt as the client sent it."""
    meter: Meter = field(default_factory=Meter)
    """Work of the engines for this choice, whatever came of it."""
    step_seconds: float | None = None
    """Seconds of a step of the server's largest engine, as earlier requests measured it."""
    _writer: str | None = None
    _read: dict[str, int] = field(default_factory=dict)

    def observe(self, step: Step) -> None:
        """Count one token of the answer."""
        written = self.completion_tokens
        missed = written - self._read.get(step.engine, 0) - 1
        if missed > 0:
            self.catch_up[step.engine] = self.catch_up.get(step.engine, 0) + missed
        self._read[step.engine] = written
        self.tokens[step.engine] = self.tokens.get(step.engine, 0) + 1
        self.switches += self._writer not in (None, step.engine)
        self._writer = step.engine
        self.entropy_sum += step.entropy
        self.entropy_max = max(self.entropy_max, step.entropy)
        if step.entropy_bounds or self.bounds_sum:
            low, high = step.entropy_bounds or (step.entropy, step.entropy)
            total = self.bounds_sum or (self.entropy_sum - step.entropy,) * 2
            self.bounds_sum = (total[0] + low, total[1] + high)
        if step.kept is not None:
            self.truncation.add(1, step.kept, step.kept, step.crop_entropy or 0.0)
        if step.routing is not None:
            self.routing_sum, self.routing_count = self.routing_sum + step.routing, self.routing_count + 1

    @property
    def completion_tokens(self) -> int:
        return sum(self.tokens.values())

    @property
    def besides(self) -> int:
        """Return the tokens that engines read or drew for policies besides the prompt and the answer, those that were
        thrown away among them: passages, drafts, samples, verdicts of guards."""
        # The pass over the prompt's last token decodes the first token of the answer.
        alone = max(self.prompt_tokens - 1, 0) + self.completion_tokens
        return max(self.meter.first - alone, self.discarded, 0)

    @property
    def relative_cost(self) -> float:
        """Return the parameter-weighted cost against the largest engine alone (EAD, arXiv 2502.06833); 0 for an empty
        answer."""
        largest = max(self.parameters.values(), default=0)
        if not largest or not self.completion_tokens:
            return 0.0
        spent = sum(n * self.parameters[engine] for engine, n in self.tokens.items())
        return spent / (largest * self.completion_tokens)

    @property
    def spent(self) -> tuple[int, int]:
        """Return what engines computed, as `waver.engines.metering.Meter.spent`."""
        return self.meter.spent

    @property
    def alone(self) -> tuple[int, int]:
        """Return what the server's largest engine alone would have computed, as `spent`; nothing for an empty
        answer."""
        largest, written = self.meter.largest[1], self.completion_tokens
        # The pass over the prompt's last token writes the first token of the answer.
        return largest * written, largest * max(self.prompt_tokens - 1, 0) if written else 0

    def cost(self) -> dict[str, Any] | None:
        """Return everything that engines computed, in parameter-weighted tokens, against what the server's largest
        engine alone would have computed: it would have read the prompt and written as many tokens. None where there is
        nothing to compare with.

        `full` is the whole; `decode` and `read` are its two parts, each against the largest engine's own part.
        `seconds_alone` estimates how long the largest engine would take.
        """
        usage = {name: each for name, each in self.meter.usage.items() if each.decoded or each.read}
        (decode, read), (alone_decode, alone_read) = self.spent, self.alone
        if not alone_decode or not usage:
            return None
        estimate = {} if self.step_seconds is None else {"seconds_alone": self.step_seconds * self.completion_tokens}
        return estimate | {
            "full": (decode + read) / (alone_decode + alone_read),
            "decode": decode / alone_decode,
            "read": read / alone_read if alone_read else None,
            "against": self.meter.largest[0],
            "engines": {name: asdict(each) for name, each in usage.items()},
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the `waver` object of a response, without a trace."""
        n = max(self.completion_tokens, 1)
        entropy: dict[str, Any] = {"mean": self.entropy_sum / n, "max": self.entropy_max, "kind": "exact"}
        if self.bounds_sum:
            entropy |= {"kind": "bounded", "lower": self.bounds_sum[0] / n, "upper": self.bounds_sum[1] / n}
        out: dict[str, Any] = {
            "policy": self.policy,
            "tokens": {name: self.tokens.get(name, 0) for name in self.parameters},
            "switches": self.switches,
            "relative_cost": self.relative_cost,
            "entropy": entropy,
        }
        if (cost := self.cost()) is not None:
            out["cost"] = cost
        if self.truncation.draws:
            out["truncation"] = self.truncation.as_dict()
        if self.routing_count:
            out["routing"] = {"entropy": self.routing_sum / self.routing_count}
        if self.catch_up:
            out["catch_up_tokens"] = self.catch_up
        if self.filtered_by is not None:
            out["content_filter"] = {"policy": self.filtered_by}
        if self.discarded:
            out["discarded_tokens"] = self.discarded
        return out | self.extra


def total(reports: Sequence[Report]) -> Report:
    """Add up the reports of all choices; what policies added is kept where it is the same for all."""
    first = reports[0]
    tokens: Counter[str] = Counter()
    catch_up: Counter[str] = Counter()
    kept = TruncationStats()
    meter = Meter(largest=first.meter.largest)
    for report in reports:
        for engine, usage in report.meter.usage.items():
            meter.of(engine).add(usage)
        meter.gates.update(report.meter.gates)
        meter.first += report.meter.first
        tokens.update(report.tokens)
        catch_up.update(report.catch_up)
        own = report.truncation
        kept.add(own.draws, own.tokens, own.most, own.entropy)
    bounds = [r.bounds_sum or (r.entropy_sum, r.entropy_sum) for r in reports]
    bounded = any(r.bounds_sum for r in reports)
    return Report(
        policy=first.policy,
        parameters=first.parameters,
        tokens=dict(tokens),
        catch_up=dict(catch_up),
        truncation=kept,
        routing_sum=sum(r.routing_sum for r in reports),
        routing_count=sum(r.routing_count for r in reports),
        filtered_by=first.filtered_by if all(r.filtered_by == first.filtered_by for r in reports) else None,
        discarded=sum(r.discarded for r in reports),
        prompt_tokens=sum(r.prompt_tokens for r in reports),
        meter=meter,
        step_seconds=first.step_seconds,
        switches=sum(r.switches for r in reports),
        extra=first.extra if all(r.extra == first.extra for r in reports) else {},
        entropy_sum=sum(r.entropy_sum for r in reports),
        entropy_max=max(r.entropy_max for r in reports),
        bounds_sum=(sum(b[0] for b in bounds), sum(b[1] for b in bounds)) if bounded else None,
    )
