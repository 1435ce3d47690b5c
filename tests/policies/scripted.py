"""An engine that plays back entropies, for checks of a policy's rule against reference traces.

Gates are evaluated by the code of the embedded engine (`waver.engines.sequence`); only the model is missing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from waver.engines.base import Sampling, Step
from waver.engines.sequence import SequenceState as Decoding
from waver.policies.base import Policy, Proceed
from waver.policies.job import Job
from waver.policies.report import Report
from waver.policies.services import Services


class Scripted:
    """At answer position t the entropy is `entropies[t]` nats and the token is `spell(t)`."""

    def __init__(
        self, name: str, entropies: Sequence[float], parameters: int = 1, spell: Callable[[int], int] = lambda t: t
    ) -> None:
        self.name, self.entropies, self.parameters, self.spell = name, entropies, parameters, spell

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        decoding = Decoding(prompt_ids, sampling, eos_ids=())
        finish = None
        while finish is None:
            position = len(decoding.ids) - decoding.start
            entropy = self.entropies[position]
            if decoding.fires_before(entropy):
                yield decoding.gate_step(entropy, self.name)
                return
            token = self.spell(position)
            finish = decoding.accept(token, entropy, context_length=1_000_000)
            yield Step(token, 0.0, entropy, self.name, finish=finish)


async def play(
    policy: Policy, small: Sequence[float], large: Sequence[float], spell: Callable[[int], int] = lambda t: t
) -> tuple[list[Step], Report]:
    """Decode `len(small)` tokens with a policy over two scripted engines; `spell` makes the small one's tokens."""
    engines: dict[str, Any] = {"small": Scripted("small", small, 3, spell), "large": Scripted("large", large, 11)}
    report = Report(parameters={name: engine.parameters for name, engine in engines.items()})
    job = Job((0, 0, 0), Sampling(temperature=0, max_tokens=len(small)), "small", Services(engines), report)
    steps = []
    async for step in Proceed((policy,))(job):
        report.observe(step)
        steps.append(step)
    return steps, report


def writers(steps: Sequence[Step]) -> str:
    """`SSSL…`: who wrote each token."""
    return "".join("L" if step.engine == "large" else "S" for step in steps)
