"""Judges that are fitted: the same trees as scikit-learn's, and the behaviour on synthetic traces."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from waver.choice import Candidate, choose, early_stop
from waver.stats import auroc as auroc_of_wrong
from waver.training.judge.evaluate import evaluate
from waver.training.judge.fit import PAPER, fit, held_out, matrix
from waver.training.judge.report import _said


def test_the_arrays_predict_what_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 6))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[:, 5] = np.nan
    right = (np.nan_to_num(rows[:, 0] * rows[:, 1]) + rng.normal(size=300) > 0).tolist()
    made = fit(rows, right, tuple("abcdef"))
    assert made.names == tuple("abcde"), "what no run has is left out"
    filled = np.where(np.isnan(rows[:, :5]), np.nanmedian(rows[:, :5], axis=0), rows[:, :5])
    model = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.1, max_depth=6, random_state=42, early_stopping=False
    )
    model.fit(filled, right)
    np.testing.assert_allclose(made.probability(rows[:, :5]), model.predict_proba(filled)[:, 1], rtol=1e-9)
    assert (PAPER.trees, PAPER.learning_rate, PAPER.depth, PAPER.seed) == (100, 0.1, 6, 42)


def test_features_of_reports_become_rows() -> None:
    rows = matrix([{"a": 1.0, "b": None}, {"b": 2.0}], ("a", "b"))
    np.testing.assert_array_equal(rows, [[1.0, np.nan], [np.nan, 2.0]])
    with pytest.raises(ValueError, match="no run is right"):
        fit(rows, [False, False], ("a", "b"))


def auroc(probabilities: list[float], right: list[bool]) -> float:
    found = auroc_of_wrong([-p for p in probabilities], [not each for each in right])
    assert found is not None
    return found


ROUNDS, AGENTS = 2, 3


def synthetic(rng: np.random.Generator, questions: int, runs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs whose trouble shows as spikes of entropy in one round, told by the question's type.

    Returns:
        Features `[questions, runs, features]`, whether each run is right, and its mean entropy.
    """
    rows, right, mean = [], [], []
    for question in range(questions):
        kind, hard = question % 2, rng.uniform()
        for _ in range(runs):
            confusion = rng.normal()
            right.append(rng.random() < 1 / (1 + np.exp(-(1.2 - 2.4 * hard - 1.3 * confusion))))
            told = np.empty((ROUNDS, AGENTS, 8))
            for r in range(ROUNDS):
                chance = 0.03 * np.exp(0.9 * confusion) * (1.0 if r == kind else 0.25)
                for agent in range(AGENTS):
                    e = rng.gamma(0.5, 0.25 * (1 + 0.5 * hard), size=rng.integers(30, 120))
                    spikes = rng.random(len(e)) < chance
                    e[spikes] += rng.gamma(3, 0.5, size=spikes.sum())
                    q1, median, q3 = np.percentile(e, (25, 50, 75))
                    told[r, agent] = (e.max(), e.min(), e.mean(), median, e.std(), e.var(), q1, q3)
            means = told[:, :, 2]
            by_round = np.concatenate([means.mean(1), means.std(1), means.max(1)])
            rows.append([*told.mean((0, 1)), *by_round, means[1].mean() - means[0].mean(), kind])
            mean.append(told[:, :, 2].mean())
    shape = (questions, runs)
    return np.array(rows).reshape(*shape, -1), np.array(right).reshape(shape), np.array(mean).reshape(shape)


def test_a_judge_picks_better_runs_than_chance_and_stops_early() -> None:
    rng = np.random.default_rng(0)
    taught, truth, _ = synthetic(rng, 1200, 1)
    fresh, right, mean = synthetic(rng, 300, 10)
    names = tuple(map(str, range(taught.shape[-1])))
    made = fit(taught[:, 0], truth[:, 0].tolist(), names)
    p = made.probability(fresh.reshape(-1, fresh.shape[-1])).reshape(right.shape)
    assert auroc(p.ravel().tolist(), right.ravel().tolist()) == pytest.approx(0.73, abs=0.05)
    best = {}
    for k in (3, 5, 10):
        chosen = [choose([Candidate(None, 0.0, each) for each in row[:k]], "judge").place for row in p]
        best[k] = float(np.mean([row[place] for row, place in zip(right, chosen, strict=True)]))
        chance = float(right[:, :k].mean())
        if k < 10:
            assert best[k] >= chance + 0.10, (k, best[k], chance)
        least = [choose([Candidate(None, each) for each in row[:k]], "min_entropy").place for row in mean]
        assert np.mean([row[place] for row, place in zip(right, least, strict=True)]) > chance + 0.10
    stops = [early_stop(row.tolist(), 0.5) for row in p]
    assert np.mean([row[place] for row, place in zip(right, stops, strict=True)]) >= 0.9 * best[10]
    assert np.mean(stops) + 1 < 4


def test_held_out_questions_are_judged_by_others() -> None:
    rng = np.random.default_rng(1)
    rows, right, _ = synthetic(rng, 200, 2)
    p = held_out(rows, right, tuple(map(str, range(rows.shape[-1]))))
    assert p.shape == (200, 2)
    assert not np.isnan(p).any()
    assert 0.55 < auroc(p.ravel().tolist(), right.ravel().tolist()) < 0.9
    leak = rng.normal(size=(40, 1, 3))  # nothing to learn: questions are never judged by themselves
    chance = rng.random(40) < 0.5
    judged = held_out(leak, chance[:, None], ("a", "b", "c"))
    assert auroc(judged.ravel().tolist(), chance.tolist()) < 0.85


def test_more_runs_of_the_same_questions_make_a_better_judge() -> None:
    rng = np.random.default_rng(2)
    rows, right, _ = synthetic(rng, 150, 5)
    names = tuple(map(str, range(rows.shape[-1])))
    fresh, truth, _ = synthetic(rng, 400, 1)

    def worth(runs: int) -> float:
        taught = rows[:, :runs].reshape(-1, rows.shape[-1])
        made = fit(taught, right[:, :runs].ravel().tolist(), names)
        return auroc(made.probability(fresh[:, 0]).tolist(), truth[:, 0].tolist())

    assert worth(5) > worth(1) + 0.02
    p = held_out(rows, right, names)
    assert auroc(p[:, 0].tolist(), right[:, 0].tolist()) > auroc(
        held_out(rows[:, :1], right[:, :1], names)[:, 0].tolist(), right[:, 0].tolist()
    )


@pytest.mark.parametrize(
    ("votes", "words"),
    [(("a", "b", "b"), "+100.0 points from a plain vote (95 %: +77.2 to "), (("a", "a", "a"), "is not shown to beat")],
)
def test_a_judge_is_told_beside_a_vote_with_an_interval(votes: tuple[str, ...], words: str) -> None:
    runs = [{"answer": answer, "entropy": 0.5, "right": i == 0} for i, answer in enumerate(votes)]
    said = np.tile([0.9, 0.2, 0.1], (20, 1))
    found = evaluate([{"runs": runs}] * 20, said)
    assert words in _said(found)
    assert ("select: vote" in _said(found)) == (len(set(votes)) == 1)
