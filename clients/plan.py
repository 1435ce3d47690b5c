"""Compute whether two models fit into GPUs, and what questions cost on the small one, the large one, and with `ead`.

Arithmetic on figures that are given: memory follows from the models' configurations, times from steps that were
measured, or from the bandwidth of a GPU's memory, which no step can beat.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from waver.engines.footprint import BYTES, GIB, Shape
from waver.options import Option

HEADROOM = 0.95
"""Share of a GPU's memory that engines may claim together."""


@dataclass(frozen=True)
class Plan:
    """Figures to plan with. GiB, tokens, seconds; prices in any currency."""

    gpu_memory: Annotated[float, Option("Memory of a GPU, in GiB.", least=0.1)] = 80.0
    gpus: Annotated[int, Option("GPUs there are.", least=1, most=64)] = 1
    context: Annotated[int, Option("Longest prompt with its answer, in tokens.", least=1)] = 8192
    sequences: Annotated[int, Option("Answers decoded at a time, each as long as the context.", least=1)] = 16
    dtype: Annotated[str | None, Option(f"Type of the weights: {', '.join(BYTES)}.", shown="the model's")] = None
    kv_dtype: Annotated[str | None, Option("Type of the KV cache.", shown="as the weights, at least 16 bits")] = None
    overhead: Annotated[float, Option("GiB that an engine needs besides: activations, CUDA graphs.", least=0.0)] = 2.0
    price: Annotated[float | None, Option("Price of a GPU for an hour.", least=0.0)] = None
    questions: Annotated[int, Option("Questions whose cost is computed.", least=1)] = 1000
    answer_tokens: Annotated[int, Option("Tokens of an answer.", least=1)] = 300
    share: Annotated[float, Option("Share of the tokens that the large model writes.", least=0.0, most=1.0)] = 0.2
    hand_overs: Annotated[float, Option("Hand-overs in 100 tokens.", least=0.0, most=100.0)] = 10.0
    monitor: Annotated[str, Option("`small`: the small model reads along; `active`: it does not.")] = "small"
    small_step: Annotated[float | None, Option("Seconds of a step of the small model, measured.", least=1e-6)] = None
    large_step: Annotated[float | None, Option("Seconds of a step of the large model, measured.", least=1e-6)] = None
    bandwidth: Annotated[float | None, Option("Bandwidth of a GPU's memory in GB/s, for lower bounds.", least=1.0)] = (
        None
    )


@dataclass(frozen=True)
class Need:
    """Memory that an engine needs, in GiB."""

    model: str
    parameters: int
    weights: float
    kv_per_1000_tokens: float
    kv: float
    overhead: float

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.overhead


@dataclass(frozen=True)
class Layout:
    """A way to place engines. `filled`: GiB on each of its GPUs; `fits`: they have room for it, and there are as many;
    `would_fit`: they have room."""

    way: str
    filled: list[float]
    fits: bool
    would_fit: bool


@dataclass(frozen=True)
class Cost:
    """Time and cost of questions answered in one way. `busy`: GPU seconds in which the engines work; `alone`: GPU
    seconds from the first to the last question where nobody else uses the GPUs."""

    way: str
    seconds_per_answer: float
    busy: float
    alone: float


def check(plan: Plan) -> None:
    """Check what the types do not.

    Raises:
        ValueError: a value is none of those that are known.
    """
    for name, value in (("--dtype", plan.dtype), ("--kv-dtype", plan.kv_dtype)):
        if value is not None and value not in BYTES:
            raise ValueError(f"{name} is one of {', '.join(BYTES)}.")
    if plan.monitor not in ("small", "active"):
        raise ValueError("--monitor is small or active.")


def need(shape: Shape, plan: Plan) -> Need:
    """Return what an engine of a model needs: weights, and room for all sequences at their full length."""
    kv = shape.kv(1, plan.kv_dtype) / GIB
    return Need(
        model=shape.name,
        parameters=shape.parameters,
        weights=shape.weights(plan.dtype) / GIB,
        kv_per_1000_tokens=1000 * kv,
        kv=kv * plan.context * plan.sequences,
        overhead=plan.overhead,
    )


def utilization(gib: float, plan: Plan) -> float:
    """Return vLLM's `gpu_memory_utilization` for so much of a GPU, rounded up to a hundredth."""
    return math.ceil(100 * gib / plan.gpu_memory) / 100


def layouts(needs: list[Need], plan: Plan) -> list[Layout]:
    """Return ways to place the engines; over several GPUs where nothing smaller fits, or the GPUs are there."""
    room = HEADROOM * plan.gpu_memory

    def layout(way: str, filled: list[float]) -> Layout:
        would_fit = max(filled) <= room
        return Layout(way, filled, would_fit and len(filled) <= plan.gpus, would_fit)

    found = []
    if len(needs) == 1:
        found.append(layout("one GPU", [needs[0].total]))
    else:
        found.append(layout("both on one GPU", [sum(each.total for each in needs)]))
        found.append(layout("a GPU for each", [each.total for each in needs]))
    last, beside = needs[-1], [each.total for each in needs[:-1]]
    for parts in (2, 4, 8):
        if any(each.would_fit for each in found) and parts + len(beside) > plan.gpus:
            break
        part = (last.weights + last.kv) / parts + last.overhead
        name = f"{last.model} over {parts} GPUs{', the small one on its own' if beside else ''}"
        found.append(layout(name, [*beside, *[part] * parts]))
    return found


def step(shape: Shape, plan: Plan, measured: float | None) -> float | None:
    """Return the seconds of a decoding step of `sequences` answers: as measured, or at least as long as reading the
    weights and half of the caches takes at the given bandwidth; None if neither is known."""
    if measured is not None or plan.bandwidth is None:
        return measured
    read = shape.weights(plan.dtype) + shape.kv(plan.context * plan.sequences // 2, plan.kv_dtype)
    return read / (plan.bandwidth * 1e9)


def costs(small: float, large: float, plan: Plan) -> list[Cost]:
    """Return what `questions` cost alone on each model and with `ead`.

    Args:
        small: seconds of a step of the small model. large: of the large one.

    A hand-over costs the engine that takes over one step more, in which it reads what the other has written. Where
    `monitor` is `small`, the small model reads every token of the large one.
    """
    tokens, rounds = plan.answer_tokens, plan.questions / plan.sequences
    hand_overs = tokens * plan.hand_overs / 100
    steps_large = tokens * plan.share + hand_overs / 2
    steps_small = tokens * (1 - plan.share) + hand_overs / 2
    along = tokens * plan.share if plan.monitor == "small" else 0.0
    # While the large model writes, the small one reads along on its own GPU; on a shared one its time comes on top.
    apart = steps_small * small + steps_large * large
    busy = apart + along * small
    # On a shared GPU every step may have to wait for one of the other engine.
    turns = (steps_small + steps_large) * (small + large)
    ways = [
        Cost("small alone", tokens * small, rounds * tokens * small, rounds * tokens * small),
        Cost("large alone", tokens * large, rounds * tokens * large, rounds * tokens * large),
    ]
    name = f"ead, {100 * plan.share:g} % large"
    ways.append(Cost(f"{name}, a GPU for each", apart, rounds * busy, 2 * rounds * apart))
    ways.append(Cost(f"{name}, one GPU, at best", busy, rounds * busy, rounds * busy))
    ways.append(Cost(f"{name}, one GPU, at worst", turns, rounds * busy, rounds * turns))
    return ways


def compute(shapes: list[Shape], plan: Plan) -> dict[str, Any]:
    """Return everything as plain data: needs, layouts, and costs where steps are known and there are two models.

    Raises:
        ValueError: a value is none of those that are known.
    """
    check(plan)
    needs = [need(shape, plan) for shape in shapes]
    measured = [plan.large_step] if len(shapes) == 1 else [plan.small_step, plan.large_step]
    steps = [step(shape, plan, given) for shape, given in zip(shapes, measured, strict=True)]
    known = [each for each in steps if each is not None]
    listed = costs(known[0], known[1], plan) if len(known) == 2 else []
    return {
        "plan": asdict(plan),
        "engines": [asdict(each) | {"total": each.total, "utilization": utilization(each.total, plan)}
                    for each in needs],
        "too_long": [shape.name for shape in shapes if shape.context and plan.context > shape.context],
        "layouts": [asdict(each) for each in layouts(needs, plan)],
        "steps": steps,
        "bounds": all(given is None for given in measured),
        "costs": [asdict(each) | {"price": None if plan.price is None else each.busy / 3600 * plan.price,
                                  "price_alone": None if plan.price is None else each.alone / 3600 * plan.price}
                  for each in listed],
    }  # fmt: skip


def fits(found: dict[str, Any]) -> bool:
    """Return whether a layout with the GPUs that there are has room for the engines."""
    return any(each["fits"] for each in found["layouts"])


def page(found: dict[str, Any]) -> str:
    """Write the result for the terminal."""
    plan = found["plan"]
    lines = [
        f"{plan['sequences']} answers at a time, each of up to {plan['context']} tokens with its prompt; GiB:",
        "",
        f"{'':<24}{'parameters':>12}{'weights':>9}{'KV of 1000':>12}{'KV':>8}{'besides':>9}{'all':>8}",
    ]
    lines += [
        f"{_fit(each['model'], 23):<24}{_count(each['parameters']):>12}{each['weights']:>9.1f}"
        f"{each['kv_per_1000_tokens']:>12.3f}{each['kv']:>8.1f}{each['overhead']:>9.1f}{each['total']:>8.1f}"
        for each in found["engines"]
    ]
    lines += [f"{name}: its context is shorter than {plan['context']} tokens." for name in found["too_long"]]
    lines += ["", f"GPUs of {plan['gpu_memory']:g} GiB, of which engines may fill {HEADROOM:.0%}; there are "
              f"{plan['gpus']}:"]  # fmt: skip
    for each in found["layouts"]:
        said = (
            "fits"
            if each["fits"]
            else f"would fit on {len(each['filled'])} GPUs"
            if each["would_fit"]
            else "does not fit"
        )
        filled = ", ".join(f"{gib:.1f}" for gib in dict.fromkeys(each["filled"]))
        lines.append(f"{each['way']:<52} {filled:>12}  {said}")
    shares = ", ".join(
        f"{_fit(each['model'], 30)} {each['utilization']:g}" if each["utilization"] <= 1 else f"{each['model']} none"
        for each in found["engines"]
    )
    lines += ["", f"vLLM's gpu_memory_utilization where each has what it needs: {shares}"]
    return "\n".join([*lines, "", *_costs(found)])


def _costs(found: dict[str, Any]) -> list[str]:
    plan = found["plan"]
    if not found["costs"]:
        return ["For costs, give two models and --small-step and --large-step (measured), or --bandwidth."]
    steps = " and ".join(f"{1000 * each:.2f}" for each in found["steps"])
    origin = "at least, by the bandwidth" if found["bounds"] else "as given"
    lines = [
        f"{plan['questions']} questions, {plan['answer_tokens']} tokens each; steps of {steps} ms ({origin}), "
        f"{plan['hand_overs']:g} hand-overs in 100 tokens, monitor: {plan['monitor']}:",
        "",
        f"{'':<36}{'s an answer':>12}{'GPU h, busy':>13}{'GPU h, alone':>14}"
        + (f"{'price':>9}{'alone':>9}" if plan["price"] is not None else ""),
    ]
    for each in found["costs"]:
        line = f"{each['way']:<36}{each['seconds_per_answer']:>12.2f}{each['busy'] / 3600:>13.3f}"
        line += f"{each['alone'] / 3600:>14.3f}"
        lines.append(line + (f"{each['price']:>9.3g}{each['price_alone']:>9.3g}" if each["price"] is not None else ""))
    lines += [
        "",
        "busy: GPU time in which the engines work, what you pay where other requests fill the rest; alone: from the",
        "first question to the last, with nobody else. Prompts, and how full batches are, are left out: measure yours.",
    ]
    return lines


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[-width + 1 :]}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"
