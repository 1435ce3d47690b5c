"""The differential information distribution: the paper's statements on tables, and the optimum of DPO's reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from waver.training.preferences import did

REF = tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
AIM = tensor([0.2, 0.3, 0.3, 0.2], dtype=torch.float64)


def near(values: Tensor, wanted: list[float]) -> None:
    assert values.tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_distribution_and_its_entropy() -> None:
    near(did.log_did(AIM.log(), REF.log()).exp(), [0.054054, 0.135135, 0.270270, 0.540541])
    entropy = float(did.did_entropy(AIM.log(), REF.log()))
    assert entropy == pytest.approx(1.114324, abs=1e-6)
    assert entropy / np.log(4) == pytest.approx(0.803815, abs=1e-6)
    q = did.log_did(AIM.log(), REF.log()).exp()
    assert np.log(7.4) - float((q * (AIM / REF).log()).sum()) == pytest.approx(entropy)
    assert float(did.did_entropy(REF.log(), REF.log())) == pytest.approx(np.log(4))
    near(REF * q / (REF * q).sum(), AIM.tolist())


def test_the_best_samplers() -> None:
    near(did.best_rejected(REF.log(), AIM.log(), 0.5).exp(), [0.647140, 0.245572, 0.086823, 0.020464])
    near(did.best_rejected(REF.log(), AIM.log(), 1).exp(), [0.763359, 0.183206, 0.045802, 0.007634])
    near(did.best_chosen(REF.log(), AIM.log(), 0.5).exp(), [0.340631, 0.323151, 0.228502, 0.107717])


def test_preferences_of_the_best_sampler_are_those_of_dpo() -> None:
    rejected = did.best_rejected(REF.log(), AIM.log(), 0.5)
    by_bayes = float(did.preferred(REF.log(), rejected, 3, 0))
    reward = 0.5 * (AIM / REF).log()
    assert by_bayes == pytest.approx(0.759747, abs=1e-6)
    assert float(torch.sigmoid(reward[3] - reward[0])) == pytest.approx(by_bayes)
    mirrored = did.best_chosen(REF.log(), AIM.log(), 0.5)
    assert float(did.preferred(mirrored, REF.log(), 3, 0)) == pytest.approx(by_bayes)


def test_chosen_answers_of_the_reference_must_fall() -> None:
    ref, aim = REF.log(), AIM.log()
    assert float(did.expected_change(ref, ref, aim)) == pytest.approx(-0.284859, abs=1e-6)
    assert float(did.expected_change(ref, ref, aim)) == pytest.approx(-float((REF * (REF / AIM).log()).sum()))
    assert float(did.expected_change(did.best_chosen(ref, aim, 0.5), ref, aim)) == pytest.approx(-0.004404, abs=1e-6)


def test_the_estimate_from_draws() -> None:
    drawn = tensor([0, 1, 2, 3, 1, 2])
    found = did.estimate_entropy(AIM.log()[drawn], REF.log()[drawn])
    wanted = [0.047619, 0.079365, 0.158730, 0.476190, 0.079365, 0.158730]
    assert list(found.weights) == pytest.approx(wanted, abs=1e-6)
    assert found.log_z == pytest.approx(1.945910, abs=1e-6)
    assert found.entropy == pytest.approx(1.109356, abs=1e-6)
    assert found.effective == pytest.approx(1 / sum(weight**2 for weight in wanted), rel=1e-4)


@pytest.mark.parametrize(
    ("draws", "repeats", "mean", "spread"), [(32, 2000, 1.1219, 0.0358), (2048, 200, 1.1148, 0.0048)]
)
def test_the_estimate_has_a_small_bias(draws: int, repeats: int, mean: float, spread: float) -> None:
    torch.manual_seed(0)
    drawn = torch.multinomial(AIM, draws * repeats, replacement=True).view(repeats, draws)
    found = [did.estimate_entropy(AIM.log()[each], REF.log()[each]).entropy for each in drawn]
    assert np.mean(found) == pytest.approx(mean, abs=4 * spread / repeats**0.5)
    assert np.std(found) == pytest.approx(spread, rel=0.2)


def test_the_power_law_is_found_in_margins() -> None:
    torch.manual_seed(0)
    ref, aim = (torch.randn(40, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    first, second = torch.randint(40, (2, 100))

    def margins(table: Tensor) -> Tensor:
        return table[first] - table[second]

    rejected = did.best_rejected(ref, aim, 0.3)
    found = did.power_law(margins(ref), margins(rejected), margins(aim), margins(ref))
    assert found.beta == pytest.approx(0.3)
    assert found.unexplained == pytest.approx(0, abs=1e-12)
    # The margins of the rejected sampler, the reference and the target lie on a line, with a constant ratio.
    assert torch.allclose(margins(ref) - margins(rejected), 0.3 * (margins(aim) - margins(ref)))
    mirrored = did.power_law(margins(did.best_chosen(ref, aim, 2)), margins(ref), margins(aim), margins(ref))
    assert mirrored.beta == pytest.approx(2)
    other = did.power_law(margins(ref), torch.zeros(100), margins(aim), margins(ref))
    assert other.unexplained > 0.2
    assert did.power_law(margins(ref), margins(ref), margins(aim), margins(ref)).unexplained == 1


def test_resampling_makes_the_best_sampler() -> None:
    drawn = torch.arange(4)
    weights = did.resampling_weights(REF.log()[drawn], AIM.log()[drawn], 0.5)
    near(REF * weights / (REF * weights).sum(), did.best_rejected(REF.log(), AIM.log(), 0.5).exp().tolist())
    weights = did.resampling_weights(REF.log(), AIM.log(), -0.5)
    near(REF * weights / (REF * weights).sum(), did.best_chosen(REF.log(), AIM.log(), 0.5).exp().tolist())
    assert did.effective(tensor([0.5, 0.5, 0.0])) == 2


def test_a_rejected_part_that_lowers_the_chosen_is_projected() -> None:
    chosen, against, along = [tensor([2.0, 0.0])], [tensor([-1.0, 3.0])], [tensor([1.0, 3.0])]
    assert did.reinforcing(chosen, against)[0].tolist() == [2.0, 3.0]
    assert did.reinforcing(chosen, along)[0].tolist() == [3.0, 3.0]
    assert did.reinforcing([tensor([0.0, 0.0])], along)[0].tolist() == [1.0, 3.0]


def js(a: np.ndarray, b: np.ndarray) -> float:
    middle = (a + b) / 2
    return float((a * np.log(a / middle)).sum() + (b * np.log(b / middle)).sum()) / 2


def optimum(ref: np.ndarray, weights: np.ndarray, reward: str, beta: float) -> np.ndarray:
    """Minimise the population loss over all ordered pairs by Adam; returns the policy."""
    z, m, v = np.log(ref), np.zeros(len(ref)), np.zeros(len(ref))
    for step in range(1, 6001):
        logp = z - np.log(np.exp(z - z.max()).sum()) - z.max()
        p = np.exp(logp)
        of = {"dpo": beta * (logp - np.log(ref)), "log": logp, "ratio": beta * p / ref}
        value = logp - np.log(ref) if reward == "ipo" else of[reward]
        apart = value[:, None] - value[None, :]
        slope = 2 * (apart - 1 / (2 * beta)) if reward == "ipo" else -1 / (1 + np.exp(apart))
        pull = (weights * slope).sum(1) - (weights * slope).sum(0)
        pull = pull * {"dpo": beta, "log": 1.0, "ipo": 1.0, "ratio": beta * p / ref}[reward]
        grad = pull - p * pull.sum()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        rate = 0.02 if step <= 4000 else 0.002
        z = z - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    found: np.ndarray = np.exp(z - np.log(np.exp(z).sum()))
    return found


def world() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ref = np.exp(rng.normal(size=32))
    ref = ref / ref.sum()
    aim = ref * np.exp(rng.normal(size=32))
    return ref, aim / aim.sum()


def rejected(ref: np.ndarray, aim: np.ndarray, beta: float) -> np.ndarray:
    found: np.ndarray = did.best_rejected(torch.from_numpy(ref).log(), torch.from_numpy(aim).log(), beta).exp().numpy()
    return found


def test_only_dpo_s_reward_ends_at_the_target() -> None:
    """The paper's synthetic claim: other rewards keep a gap, and so do other data."""
    ref, aim = world()
    assert js(ref, aim) == pytest.approx(6.889e-2, rel=1e-3)
    best = ref[:, None] * rejected(ref, aim, 0.5)[None, :]
    found = optimum(ref, best, "dpo", 0.5)
    assert js(found, aim) < 1e-6
    assert (ref * np.log(found / ref)).sum() == pytest.approx(-0.3162, abs=1e-4)
    mirrored = did.best_chosen(torch.from_numpy(ref).log(), torch.from_numpy(aim).log(), 0.5).exp().numpy()
    assert js(optimum(ref, mirrored[:, None] * ref[None, :], "dpo", 0.5), aim) < 1e-6
    gaps = {reward: js(optimum(ref, best, reward, 0.5), aim) for reward in ("ipo", "log", "ratio")}
    gaps["uniform"] = js(optimum(ref, ref[:, None] * np.full((1, 32), 1 / 32), "dpo", 0.5), aim)
    gaps["beta"] = js(optimum(ref, ref[:, None] * rejected(ref, aim, 1)[None, :], "dpo", 0.5), aim)
    assert min(gaps.values()) > 1e-3
    wanted = {"ipo": 4.01e-2, "log": 7.85e-2, "ratio": 1.61e-2, "uniform": 0.169, "beta": 0.0465}
    assert gaps == pytest.approx(wanted, rel=0.02)


def test_the_population_s_slope_is_that_of_the_loss() -> None:
    ref, aim = world()
    weights = torch.from_numpy(ref[:, None] * rejected(ref, aim, 0.5)[None, :])
    known = torch.from_numpy(np.log(ref))
    z = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    now = z.log_softmax(-1)
    pairs = torch.cartesian_prod(torch.arange(32), torch.arange(32))
    loss = (weights.flatten() * did.dpo_loss(now[pairs], known[pairs], 0.5)).sum()
    (slope,) = torch.autograd.grad(loss, z)
    value = 0.5 * (now - known)
    pull = -(weights * torch.sigmoid(value[None, :] - value[:, None]))
    pull = 0.5 * (pull.sum(1) - pull.sum(0))
    assert torch.allclose(slope, pull - now.exp() * pull.sum(), atol=1e-10)
