"""EntropyPrune (arXiv 2602.17196): drop the image tokens that say least, behind a shallow layer of the model.

Before decoder layer K each image token is scored by the matrix entropy of its query heads of layer K - 1: low where all
heads point the same way. The tokens with the largest entropy and all of the text go on, with their own positions.

Details:
- `keep` is the share of the tokens that remain on average over all layers, as the paper's budgets are: with L layers,
  floor((L · keep · n - K · n) / (L - K)) of an image's n tokens are kept from layer K on, at least 1.
- K is the paper's collapse layer, before which the entropy of all image tokens together falls most; `waver inspect
  collapse` finds it for a model. The paper has 2 for LLaVA and 1 for Qwen2.5-VL.
- `normalise` divides each head by its length, as the paper is said to do; its released code does not, and then tokens
  of small norm win.
- `by` chooses otherwise, for comparison: by the attention that the prompt's last token pays, or at random.
- A request without pictures is answered as it is.
- The score does not know the question: small details, as in a page of text, may go. Raise `keep` for such pictures.
- The models are transformers': vLLM's paged cache has one length for all layers.
- `seconds_saved` is an estimate of this request: the layers before K took so long each for all tokens, less what those
  behind took for the rest, and the choice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from waver.engines.base import Step
from waver.engines.pictures import Pruning
from waver.policies.base import Policy, Proceed, Stage
from waver.policies.job import Job


class EntropyPrune(Policy):
    """Drop image tokens whose heads agree."""

    stage: ClassVar[Stage] = "sample"
    paper: ClassVar[str] = "arXiv 2602.17196"
    takes_pictures: ClassVar[bool] = True
    combines: ClassVar[bool] = True
    report_keys: ClassVar[Mapping[str, str]] = {
        "entropy_prune": "image tokens before the layer and after it, the layer, and an estimate of the seconds saved"
    }

    name: Literal["entropy_prune"] = "entropy_prune"
    keep: float = Field(
        default=0.5, gt=0.0, le=1.0, description="share of the image tokens that remain, on average over all layers"
    )
    layer: int = Field(default=2, ge=1, le=1024, description="decoder layer in front of which tokens are dropped")
    normalise: bool = Field(default=True, description="score directions alone, not lengths")
    by: Literal["entropy", "attention", "random"] = Field(
        default="entropy", description="what chooses the tokens that stay; the others are there to compare with"
    )

    def possible_jobs(self, job: Job) -> list[Job]:
        if not job.sampling.pictures:
            return [job]
        pruning = Pruning(self.layer, self.keep, self.normalise, self.by)
        return [replace(job, sampling=replace(job.sampling, pruning=pruning))]

    async def decode(self, job: Job, proceed: Proceed) -> AsyncGenerator[Step, None]:
        (inner,) = self.possible_jobs(job)
        steps = proceed(inner)
        try:
            async for step in steps:
                if step.pruned is not None:
                    found: dict[str, Any] = job.report.extra.setdefault("entropy_prune", asdict(step.pruned))
                    found["by"] = self.by
                yield step
        finally:
            await steps.aclose()
