"""Make tables of what `choosing` drew: accuracy by rule and number of runs, AUROC and cost by measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from waver.benchmarks import report
from waver.benchmarks.stats import holm, mcnemar, percentiles, resamples
from waver.choice import Candidate, Rule, choose
from waver.entropy.inverse import temperature_score
from waver.policies.uncertainty.evidence import Evidence, Matrix, Said
from waver.policies.uncertainty.measures import MEASURES, Reading
from waver.policies.uncertainty.similarity import of_cosines, shared_words
from waver.stats import auroc, wilson
from waver.training.judge.evaluate import RULES, Evaluation, evaluate
from waver.training.judge.fit import Rows, held_out, tabulate

Line = Mapping[str, Any]
HEATS, OWN_HEAT = (0.3, 1.0, 1.4), 0.7
"""Temperatures at which answers are drawn besides the one that measures take."""
SIZES = (1, 3, 5)
"""Numbers of runs that rules choose among."""
INSTEAD: tuple[Rule, ...] = ("min_entropy", "judge", "auto")
"""Rules that can be used instead of a vote."""


def summary(lines: Sequence[Line], embedder: str | None) -> dict[str, Any]:
    """Compute all figures.

    Raises:
        ValueError: there are too few lines to say anything.
    """
    if len(lines) < 2:
        raise ValueError(f"there are {len(lines)} questions, which say nothing: let it run longer")
    ordered = sorted(lines, key=lambda line: line["place"])
    probabilities = judged(ordered)
    full = [line for line in ordered if "answers" in line]
    kinds: dict[str, Callable[[Sequence[str]], Matrix]] = {"words": lambda texts: shared_words(texts, texts)}
    if embedder is not None:
        kinds["embedding"] = _embedding(embedder)
    measured = {kind: [_scores(line, alike) for line in full] for kind, alike in kinds.items()}
    warmed = {kind: _heated(full, measured[kind], alike) for kind, alike in kinds.items()}
    return {
        "questions": len(ordered),
        "right": fmean(line["runs"][0]["right"] for line in ordered),
        "rules": rules(ordered, probabilities),
        "stopping": _stopping(ordered, probabilities),
        "of_runs": of_runs(ordered, probabilities),
        "run_tokens": fmean(run["tokens"] for line in ordered for run in line["runs"]),
        "evidence": _evidence(full, measured) if len(full) > 1 else None,
        "heated": None if len(warmed["words"]) < 2 else {"questions": len(warmed["words"]), "tsu": _rises(warmed)},
    }


def _evidence(full: Sequence[Line], measured: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Compute what is known of the questions of which other wordings were answered."""
    wrong = {
        "worked": [not line["runs"][0]["right"] for line in full],
        "short": [not line["short"]["right"] for line in full],
    }
    return {
        "questions": len(full),
        "right": {name: 1 - fmean(each) for name, each in wrong.items()},
        "short_tokens": fmean(line["tokens"]["short"] for line in full),
        "measures": measures(full, measured, wrong),
    }


def judged(lines: Sequence[Line]) -> Rows:
    """Return `[questions, runs]`: what a judge that was fitted on other questions says of each run; NaN where none
    could be fitted."""
    return held_out(*tabulate(lines))


def rules(lines: Sequence[Line], probabilities: Rows) -> dict[str, dict[str, Any]]:
    """Compute the accuracy of each rule by the number of runs, with Wilson's interval, and its difference to a vote in
    a paired bootstrap over questions. `random` is its expectation. `p` of the rules that a user would try instead of a
    vote is McNemar's, after Holm's correction for their number."""
    rows = [[_candidate(run, p) for run, p in zip(line["runs"], own, strict=True)]
            for line, own in zip(lines, probabilities.tolist(), strict=True)]  # fmt: skip
    weights = resamples(len(rows))
    found: dict[str, dict[str, Any]] = {}
    for k in SIZES:
        if k > len(rows[0]):
            break
        hits = {rule: np.array([_hit(own[:k], rule) for own in rows]) for rule in RULES}
        found[str(k)] = {
            rule: {
                "accuracy": float(each.mean()),
                "interval": wilson(round(float(each.sum())), len(each)),
                "over_vote": percentiles(weights @ (each - hits["vote"])),
            }
            for rule, each in hits.items()
        }
        against = holm([mcnemar((hits[rule] > 0).tolist(), (hits["vote"] > 0).tolist()) for rule in INSTEAD])
        for rule, p in zip(INSTEAD, against, strict=True):
            found[str(k)][rule]["p"] = p
    return found


def _candidate(run: Mapping[str, Any], probability: float) -> Candidate:
    known = None if math.isnan(probability) else probability
    return Candidate(run["answer"], run["entropy"], known, bool(run["right"]))


def _hit(runs: Sequence[Candidate], rule: Any) -> float:
    if rule == "random":
        return fmean(each.right for each in runs)
    if rule == "judge" and any(each.probability is None for each in runs):
        return float(runs[0].right)  # there was no judge for this part: the first run
    return float(runs[choose(runs, rule).place].right)


def _stopping(lines: Sequence[Line], probabilities: Rows) -> dict[str, Any]:
    try:
        found: Evaluation = evaluate(lines, probabilities)
    except ValueError:  # no judge could be fitted at all
        return {}
    return {f"{t:g}": {"accuracy": a, "runs": k} for t, (a, k) in found.stopping.items()}


def _embedding(name: str) -> Callable[[Sequence[str]], Matrix]:
    from waver.retrieval.embedder import Embedder

    embedder = Embedder(name)

    def alike(texts: Sequence[str]) -> Matrix:
        places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = np.asarray(embedder.embed(list(places)), np.float64)[[places[text] for text in texts]]
        return of_cosines(vectors @ vectors.T, "embedding")

    return alike


def _heated(
    lines: Sequence[Line], scores: Sequence[dict[str, float]], alike: Callable[[Sequence[str]], Matrix]
) -> list[list[dict[str, float]]]:
    """Return every measure of the questions that were answered at all temperatures, at rising ones; `scores` are those
    at the temperature that measures take."""
    found = []
    for line, own in zip(lines, scores, strict=True):
        if "heated" in line:
            by = {OWN_HEAT: own} | {t: _scores({**line, "answers": line["heated"][f"{t:g}"]}, alike) for t in HEATS}
            found.append([by[t] for t in sorted(by)])
    return found


def _rises(warmed: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> list[dict[str, Any]]:
    """Compute TSU over the whole chain of temperatures and over its last step (arXiv 2506.09684), with Wilson's
    interval: of measures that compare answers, for the others have nothing that could rise."""
    rows = []
    for kind, questions in warmed.items():
        for name in (name for name in MEASURES if _compares(name) or (_samples(name) and kind == "words")):
            table = [[at[name] for at in own] for own in questions]
            found = {"chain": temperature_score(table), "last": temperature_score([own[-2:] for own in table])}
            spans = {key: wilson(round(value * len(table)), len(table)) for key, value in found.items()}
            rows.append({"measure": name, "similarity": kind if _compares(name) else None, **found, "intervals": spans})
    return rows


def _samples(name: str) -> bool:
    """Tell whether a measure takes drawn answers."""
    return bool(MEASURES[name].needs & {"samples", "variants"})


def _compares(name: str) -> bool:
    """Tell whether a measure compares texts."""
    return _samples(name) and name != "predictive_entropy"


def _scores(line: Line, alike: Callable[[Sequence[str]], Matrix]) -> dict[str, float]:
    """Compute every measure of the short answer's evidence; `mean_entropy` and `max_entropy` are of its own tokens."""
    answers = tuple(tuple(Said(**said) for said in own) for own in line["answers"])
    texts = [said.text for own in answers for said in own]
    outputs, inputs = alike(texts), alike(line["variants"])
    for table, said in ((outputs, texts), (inputs, line["variants"])):
        table[np.array([[x == y for y in said] for x in said])] = 1.0
    first = len(answers[0])
    evidence = Evidence(
        tuple(line["short"]["entropies"]) or (0.0,),
        tuple(line["variants"]),
        answers,
        inputs,
        outputs,
        outputs[:first, :first],  # short answers are one sentence each
        line["true"]["short"],
    )
    reading = Reading(evidence)
    return {name: float(measure.score(reading)) for name, measure in MEASURES.items()}


def measures(
    lines: Sequence[Line],
    measured: Mapping[str, Sequence[Mapping[str, float]]],
    wrong: Mapping[str, Sequence[bool]],
) -> list[dict[str, Any]]:
    """Compute the AUROC of every measure, on the same answers, and its cost: tokens that are drawn for a question."""
    rows: list[dict[str, Any]] = []
    first = next(iter(measured))
    for kind, scores in measured.items():
        for name in MEASURES:
            if _compares(name) or kind == first:
                found = {"measure": name, "similarity": kind if _compares(name) else None, "tokens": _cost(lines, name)}
                rows.append(found | _aurocs([each[name] for each in scores], wrong))
    asked = [1 - line["true"]["worked"] for line in lines]
    return [
        *rows,
        {"measure": "p_true of the worked answer", "similarity": None, "tokens": 1.0} | _aurocs(asked, wrong),
    ]


def of_runs(lines: Sequence[Line], probabilities: Rows) -> list[dict[str, Any]]:
    """Compute the AUROC for a wrong first run of what the runs themselves tell."""
    runs = [line["runs"] for line in lines]
    wrong = {"worked": [not own[0]["right"] for own in runs]}
    own = fmean(run["tokens"] for each in runs for run in each)
    found: dict[str, tuple[list[float], float]] = {
        "mean entropy of its tokens": ([each[0]["features"]["sample_mean"] for each in runs], 0.0),
        "largest entropy of its tokens": ([each[0]["features"]["sample_max"] for each in runs], 0.0),
        "share of runs that disagree with most": ([_disagreement(each) for each in runs], (len(runs[0]) - 1) * own),
    }
    if not np.isnan(probabilities).any():
        found["judge, fitted on other questions"] = ([1 - float(p) for p in probabilities[:, 0]], 0.0)
    return [{"measure": name, "tokens": tokens} | _aurocs(values, wrong) for name, (values, tokens) in found.items()]


def _aurocs(values: Sequence[float], wrong: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, truth in wrong.items():
        found[label] = {"auroc": auroc(values, truth), "interval": _interval(values, truth)}
    return found


def _interval(values: Sequence[float], wrong: Sequence[bool], draws: int = 300) -> tuple[float, float]:
    """Return the bootstrap's 95 % interval over questions; NaN where most resamples have one kind of answer only."""
    rng, n = np.random.default_rng(0), len(values)
    made = [auroc([values[i] for i in at], [wrong[i] for i in at]) for at in rng.integers(n, size=(draws, n))]
    known = [each for each in made if each is not None]
    return percentiles(np.array(known)) if len(known) > draws / 2 else (float("nan"), float("nan"))


def _cost(lines: Sequence[Line], name: str) -> float:
    needs = MEASURES[name].needs
    if "variants" in needs:
        return fmean(line["tokens"]["variants"] for line in lines)
    if "samples" in needs:
        return fmean(sum(said["tokens"] for said in line["answers"][0]) for line in lines)
    return 1.0 if "verdict" in needs else 0.0


def _disagreement(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of runs whose answer is not that of the most."""
    keys = [run["answer"] for run in runs]
    return 1 - max(keys.count(each) for each in keys) / len(keys)


def page(found: Mapping[str, Any]) -> list[str]:
    """Write the page."""
    settings, evidence = found["settings"], found["evidence"]
    table = [
        (k, *(report.percent(row[rule]["accuracy"], row[rule]["interval"]) for rule in RULES))
        for k, row in found["rules"].items()
    ]
    others = [rule for rule in RULES if rule != "vote"]
    against = [
        (k, *(report.points(row[rule]["accuracy"] - row["vote"]["accuracy"], row[rule]["over_vote"])
              + (f", p {row[rule]['p']:.3f}" if rule in INSTEAD else "") for rule in others))
        for k, row in found["rules"].items()
    ]  # fmt: skip
    stops = [(t, report.percent(each["accuracy"]), f"{each['runs']:.2f}") for t, each in found["stopping"].items()]
    runs = [(row["measure"], _area(row["worked"]), f"{row['tokens']:.0f}") for row in found["of_runs"]]
    return [
        "# Choosing among answers, and telling which are wrong",
        f"{found['model']}, {found['questions']} questions of {found['task']}, each worked {settings['samples']} times "
        f"at temperature 0.6 and top_p 0.95 ({found['run_tokens']:.0f} tokens a run); "
        f"{report.percent(found['right'])} of the first runs are right. Intervals are 95 %: Wilson's for shares, a "
        "bootstrap over questions for the others.",
        "## Right answers by rule",
        report.table(("runs", *RULES), table),
        "The judge is fitted on the runs of other questions (five folds). Points over a plain vote; p: McNemar's "
        f"exact test, after Holm's correction for {len(INSTEAD)} rules:",
        report.table(("runs", *others), against),
        *(
            [
                "Stopping at the first run that the judge holds for right:",
                report.table(("probability", "right", "runs"), stops),
            ]
            if stops
            else []
        ),
        "## Which answers are wrong",
        "AUROC for a wrong first run, of what the runs tell. Tokens are those drawn besides the answer.",
        report.table(("measure", "AUROC", "tokens"), runs),
        *([] if evidence is None else _evidence_page(evidence, settings)),
        *([] if found["heated"] is None else _heated_page(found["heated"])),
    ]


def _heated_page(heated: Mapping[str, Any]) -> list[str]:
    rows = [
        (named(row), *(report.percent(row[key], row["intervals"][key]) for key in ("chain", "last")))
        for row in heated["tsu"]
    ]
    *others, last = sorted((OWN_HEAT, *HEATS))
    return [
        "## What rises with the temperature",
        f"TSU: of {heated['questions']} of these questions, the share on which a measure rises strictly with every "
        f"step from {others[0]:g} over {', '.join(f'{t:g}' for t in others[1:])} to {last:g}, and with the last step "
        "alone. By chance alone one chain of four rises in 1 of 24.",
        report.table(("measure", "whole chain", f"{others[-1]:g} to {last:g}"), rows),
    ]


def _evidence_page(evidence: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            named(row),
            *(_area(row[label]) for label in ("worked", "short")),
            f"{row['tokens']:.0f}",
        )
        for row in evidence["measures"]
    ]
    right = evidence["right"]
    return [
        f"Of {evidence['questions']} of the questions, answers to {settings['perturbations']} other wordings were "
        f"drawn as well, without working, {settings['replications']} to each, and one greedily "
        f"({evidence['short_tokens']:.0f} tokens): {report.percent(right['short'])} of these are right, and "
        f"{report.percent(right['worked'])} of the first worked ones. AUROC of every measure of the short answers on "
        "both:",
        report.table(("measure", "worked answer wrong", "short answer wrong", "tokens"), rows),
    ]


def named(row: Mapping[str, Any]) -> str:
    """Return a measure's name, with how it compares texts, if it does."""
    return f"{row['measure']}, {row['similarity']}" if row["similarity"] else str(row["measure"])


def _area(value: Mapping[str, Any]) -> str:
    if value["auroc"] is None:
        return "–"
    low, high = value["interval"]
    return f"{value['auroc']:.2f} ({low:.2f}–{high:.2f})"
