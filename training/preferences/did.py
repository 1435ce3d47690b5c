"""Compute the differential information distribution (DID) of two policies, and what follows from it for DPO.

The DID `q(y) = [pi(y) / ref(y)] / Z` is the distribution over answers that carries exactly the evidence by which a
policy `pi` differs from its reference (arXiv 2505.23761). Everything takes log-probabilities in nats over the answers
to one prompt, in the last dimension; tables are complete, so that sums over them are exact. The closed forms of the
samplers and of the change of likelihood are derived from the paper's power law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def log_did(policy: Tensor, reference: Tensor) -> Tensor:
    """Compute log q, the normalised likelihood ratio; shaped as `policy`."""
    return torch.log_softmax(policy - reference, -1)


def did_entropy(policy: Tensor, reference: Tensor) -> Tensor:
    """Compute H(q) = log Z - E_q[log(pi / ref)], `[...]` without the last dimension.

    log V where the policy is its reference. A low entropy reinforces few answers, a high one smooths.
    """
    log_q = log_did(policy, reference)
    return -(log_q.exp() * log_q).sum(-1)


def preferred(chosen: Tensor, rejected: Tensor, first: int, second: int) -> Tensor:
    """Compute the probability that the answer `first` of an unordered pair is the chosen one, where chosen answers
    come from one distribution and rejected ones from another (Bayes): `sigma(log A/B(first) - log A/B(second))`."""
    ratio = chosen - rejected
    return torch.sigmoid(ratio[..., first] - ratio[..., second])


def best_rejected(reference: Tensor, target: Tensor, beta: float) -> Tensor:
    """Compute the log-probabilities from which rejected answers must be drawn, where chosen ones come from the
    reference, for DPO at `beta` to end at the target: `ref (ref / target)^beta`, normalised."""
    return torch.log_softmax(reference + beta * (reference - target), -1)


def best_chosen(reference: Tensor, target: Tensor, beta: float) -> Tensor:
    """Compute the same for chosen answers, where rejected ones come from the reference: `ref (target / ref)^beta`."""
    return torch.log_softmax(reference + beta * (target - reference), -1)


def expected_change(sampler: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """Compute the mean change of log-likelihood, from the reference to the target, of answers of a sampler.

    For answers of the reference it is -KL(ref || target), at most 0: chosen answers that come from it must fall.
    """
    return (sampler.exp() * (target - reference)).sum(-1)


@dataclass(frozen=True)
class Estimate:
    """An estimate of H(q) from draws: `entropy` and `log_z` in nats; `effective` is the effective number of draws,
    1 where a single one dominates and the estimate says nothing."""

    entropy: float
    log_z: float
    effective: float
    weights: tuple[float, ...]


def estimate_entropy(policy: Tensor, reference: Tensor) -> Estimate:
    """Estimate H(q) from answers drawn from the policy, by importance weights `1 / ref` (the paper draws 32; its
    estimator is not given, this one is ours). Takes their log-probabilities under both, `[K]` each."""
    policy, reference = policy.double(), reference.double()
    log_z = float(torch.logsumexp(-reference, 0)) - math.log(len(reference))
    weights = torch.softmax(-reference, 0)
    entropy = log_z - float((weights * (policy - reference)).sum())
    return Estimate(entropy, log_z, 1 / float(weights.square().sum()), tuple(weights.tolist()))


@dataclass(frozen=True)
class PowerLaw:
    """The fit of `log A/B = beta log(target / ref)` over pairs: DPO's reward is the optimal one exactly where nothing
    is left `unexplained` (a share of the squared margins), and then at this `beta` only."""

    beta: float
    unexplained: float
    pairs: int


def power_law(chosen: Tensor, rejected: Tensor, target: Tensor, reference: Tensor) -> PowerLaw:
    """Fit the power law to log-margins `log p(y_w) - log p(y_l)` of pairs under four distributions, `[N]` each: the
    sampler of chosen answers, that of rejected ones, the target policy, and the reference.

    With the reference as the sampler of chosen answers it reads `M_ref - M_l = beta (M_target - M_ref)`.
    """
    given, update = (chosen - rejected).double(), (target - reference).double()
    size, whole = float(update.square().sum()), float(given.square().sum())
    beta = float((given * update).sum()) / size if size else 0.0
    left = float((given - beta * update).square().sum())
    return PowerLaw(beta, left / whole if whole else 1.0, len(given))


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Compute the DPO loss of pairs, `[N]`, from sums of token log-probabilities `[N, 2]` of chosen and rejected."""
    margin = beta * (policy - reference)
    return -torch.nn.functional.logsigmoid(margin[:, 0] - margin[:, 1])


def resampling_weights(reference: Tensor, target: Tensor, beta: float) -> Tensor:
    """Compute the weights, which sum to 1, that turn draws of the reference into draws of `best_rejected`; with a
    negative `beta` of `best_chosen`. Takes log-probabilities of the draws, `[K]` each."""
    return torch.softmax(beta * (reference - target).double(), 0)


def effective(weights: Tensor) -> float:
    """Compute the effective number of draws behind weights that sum to 1."""
    return 1 / float(weights.square().sum())


def reinforcing(chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> list[Tensor]:
    """Combine the two parts of a DPO update so that it does not lower the chosen answers: of the rejected part, what
    points against the chosen part is taken away (DPO-PG; the paper's rule is not given, this is a reconstruction).

    Args:
        chosen, rejected: what each part adds to every parameter; the chosen part points along the gradient of the
            chosen answers' log-likelihood.
    """
    against = sum(float((a * b).sum()) for a, b in zip(chosen, rejected, strict=True))
    length = sum(float(a.square().sum()) for a in chosen)
    taken = against / length if against < 0 and length else 0.0
    return [(1 - taken) * a + b for a, b in zip(chosen, rejected, strict=True)]
