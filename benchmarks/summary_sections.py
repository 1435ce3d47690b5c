"""Sections of docs/results.md: a policy's measurements, its rivals in the same table, and a verdict in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from waver.benchmarks import choosing_tables, quality_tables, report

Found = Mapping[str, Any]
FIXED = ("plain", "easy", "normal", "hard")
"""Ways of `diffadapt`'s benchmark that think alike about all questions."""
SHOWN = 6
"""Settings of a frontier that are listed."""


@dataclass(frozen=True)
class Section:
    """A part of the page: the policy that it is about, the verdict, and the body."""

    policy: str
    verdict: str
    body: Sequence[str]


def frontier(found: Found, link: str) -> Section:
    """Sum up `waver bench frontier`."""
    rows = found["points"]
    alone = {row["method"]: row for row in rows if row["method"].endswith("alone")}
    ead = pareto([row for row in rows if row["method"] == "ead"])
    rivals = [row for row in rows if row["method"] in ("route", "random_switch")]
    limit = alone["large alone"]["accuracy"]
    told = [found["bars"][name]["at"] for name in ("c", "b") if found["bars"][name]["at"]]
    best = told[0] if told else max(ead, key=lambda row: row["accuracy"])
    how = "chosen on another draw" if told else "the best on these very questions, which flatters it"
    near = min(rivals, key=lambda row: abs(row["share"] - best["share"]))
    right = report.percent(best["accuracy"], best["accuracy_interval"])
    verdict = (
        f"`ead` ({named(best['settings'])}; {how}): {right} right with {report.percent(best['share'])} of the "
        f"tokens on the large model, which alone has {report.percent(limit)}; "
        f"`{near['method']}` near that share has {report.percent(near['accuracy'])}. These shares count generated "
        "tokens; full cost and wall clock are in the section on quality."
    )
    chosen = [*alone.values(), *_some(ead), *_some(pareto(rivals))]
    table = report.table(
        ("", "right", "share of large", "switches"),
        [
            (
                f"`{row['method']}` {named(row['settings'])}".strip(),
                report.percent(row["accuracy"], row["accuracy_interval"]),
                report.percent(row["share"]),
                f"{row['switches']:.1f}",
            )
            for row in chosen
        ],
    )
    return Section("ead", verdict, [f"The best settings at each share, of {len(rows)} ({link}):", table])


def pareto(rows: Sequence[Found]) -> list[Found]:
    """Return the rows that no other beats in both accuracy and share, by share."""
    kept, highest = [], -1.0
    for row in sorted(rows, key=lambda row: (row["share"], -row["accuracy"])):
        if row["accuracy"] > highest:
            kept.append(row)
            highest = row["accuracy"]
    return kept


def quality(found: Found, link: str) -> Section:
    """Sum up `waver bench quality`."""
    rows = found["rows"]
    said = quality_tables.verdicts(dict(found), found["reference"])
    policies = sorted({row["family"] for row in rows if not row["baseline"]})
    table = report.table(
        ("", "right", "full cost", "wall clock", "share of large"),
        [
            (
                f"`{row['name']}`",
                report.percent(row["accuracy"], row["accuracy_interval"]),
                "–" if row["cost"] is None else f"{row['cost']:.2f}",
                f"{row['wall']:.2f}",
                report.percent(row["share"]),
            )
            for row in rows
        ],
    )
    note = f", {found['note'].rstrip('.')}" if found["note"] else ""
    conditions = (
        f"{rows[0]['questions']} questions, {found['settings']['at_once']} at a time{note}; "
        f"cost and wall clock against `{found['reference']}` ({link}):"
    )
    return Section(", ".join(policies) or "baselines", " ".join(said), [f"{found['title']}: {conditions}", table])


def speed(found: Found, link: str) -> Section:
    """Sum up `waver bench speed`."""
    rows, said = [], []
    for concurrency, told in found["loads"].items():
        for name, peer in told["peers"].items():
            whole, tokens = peer["ratios"]["median_e2el_ms"], peer["ratios"]["output_throughput"]
            rows.append(
                (
                    f"`{name}`, {concurrency} at a time",
                    f"{peer['medians']['median_ttft_ms']:.0f}",
                    f"{peer['medians']['median_tpot_ms']:.1f}",
                    f"{whole['ratio']:.2f}",
                    f"{tokens['ratio']:.2f}",
                )
            )
            if name not in ("small", "large"):
                said.append(f"`{name}` takes {whole['ratio']:.2f} of the large model's time at {concurrency} at a time")
    head = ("", "first token, ms", "output token, ms", "whole answer / large", "tokens/s / large")
    verdict = "; ".join(said) + "."
    return Section(
        "speed", verdict, [f"{found['title']}, client {found['client']} ({link}):", report.table(head, rows)]
    )


def l_rag(found: Found, link: str) -> Section:
    """Sum up `waver bench l-rag`, the large engine's table."""
    told = found["engines"]["large"]
    rows = {row["policy"]: row for row in told["rows"]}
    own, always, never = rows["entropy"], rows["always"], rows["never"]
    verdict = (
        f"`l_rag`: {report.percent(own['accuracy'], own['accuracy_interval'])} right with lookups for "
        f"{report.percent(own['rate'])} of the questions; always looking up has {report.percent(always['accuracy'])}, "
        f"never {report.percent(never['accuracy'])}. Where lookups cost nothing, always looking up wins."
    )
    table = report.table(
        ("", "right", "lookups"),
        [
            (
                f"`{name}`",
                report.percent(row["accuracy"], row["accuracy_interval"]),
                report.percent(row["rate"]),
            )
            for name, row in rows.items()
            if name != "oracle"
        ],
    )
    return Section("l_rag", verdict, [f"The large model, gates by name ({link}):", table])


def diffadapt(found: Found, link: str) -> Section:
    """Sum up `waver bench diffadapt` against the best fixed setting."""
    rows = {row["way"]: row for row in found["rows"]}
    fixed = [row for name, row in rows.items() if name in FIXED]
    own = max((row for name, row in rows.items() if name.startswith("diffadapt")), key=lambda row: row["saving"])
    best = min(
        (row for row in fixed if row["accuracy"] >= own["accuracy"]), key=lambda row: row["tokens"], default=None
    )  # fmt: skip
    right = report.percent(own["accuracy"], own["accuracy_interval"])
    told = f"`{own['way']}`: {right} right with {own['tokens']:.1f} tokens"
    rival = (
        "; no fixed setting has as many right answers."
        if best is None
        else f"; the fixed setting `{best['way']}` has {report.percent(best['accuracy'])} with {best['tokens']:.1f}. "
        + ("**The fixed setting wins.**" if best["tokens"] <= own["tokens"] else "It takes more tokens.")
    )
    table = report.table(
        ("", "right", "tokens", "seconds"),
        [
            (
                f"`{name}`",
                report.percent(row["accuracy"], row["accuracy_interval"]),
                f"{row['tokens']:.1f}",
                f"{row['seconds']:.1f}",
            )
            for name, row in rows.items()
        ],
    )
    return Section("diffadapt", told + rival, [f"Sums on the bundled large model ({link}):", table])


def truncation(found: Found, link: str) -> Section:
    """Sum up `waver bench truncation`: `top_w`, its rivals and greedy decoding on the large model."""
    cells = found["models"]["large"]["cells"]
    temperatures = sorted({cell["temperature"] for cell in cells})
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    by = {(cell["method"], cell["temperature"]): cell for cell in cells}
    hottest = temperatures[-1]
    own, greedy = by["top_w", hottest], by["greedy", hottest]
    rivals = [m for m in methods if m != "greedy" and not m.startswith("top_w")]
    best = max(rivals, key=lambda method: by[method, hottest]["accuracy"])
    wins = greedy["accuracy"] >= own["accuracy"]
    verdict = (
        f"`top_w` at temperature {hottest:g}: {report.percent(own['accuracy'])} right; the best other truncation, "
        f"`{best}`, has {report.percent(by[best, hottest]['accuracy'])}, greedy decoding "
        f"{report.percent(greedy['accuracy'])}. {'**Greedy decoding is never worse here.**' if wins else ''}"
    )
    table = report.table(
        ("", *(f"T = {t:g}" for t in temperatures)),
        [
            (f"`{method}`", *(report.percent(by[method, t]["accuracy"]) for t in temperatures))
            for method in methods
        ],
    )  # fmt: skip
    return Section("top_w and its rivals", verdict.strip(), [f"Right answers by temperature ({link}):", table])


def named(settings: Found) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)


def _some(rows: Sequence[Found]) -> list[Found]:
    """Return at most `SHOWN` rows, evenly spread, the first and the last among them."""
    if len(rows) <= SHOWN:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def choosing(found: Found, link: str) -> Section:
    """Sum up `waver bench choosing`: every rule on the same runs, and the measures that find wrong answers best."""
    runs, rules = max(found["rules"].items(), key=lambda each: int(each[0]))
    vote = rules["vote"]
    own = max(choosing_tables.INSTEAD, key=lambda rule: rules[rule]["accuracy"])
    best, over = rules[own], report.points(rules[own]["accuracy"] - vote["accuracy"], rules[own]["over_vote"])
    better = best["accuracy"] > vote["accuracy"] and best["p"] < 0.05
    told = "**It is better than a plain vote.**" if better else "**It is not shown to beat a plain vote.**"
    verdict = (
        f"of {runs} runs, `{own}` picks a right one for {report.percent(best['accuracy'], best['interval'])}, a vote "
        f"for {report.percent(vote['accuracy'], vote['interval'])} ({over} points, p {best['p']:.3f} after a "
        f"correction for {len(choosing_tables.INSTEAD)} rules); an oracle has "
        f"{report.percent(rules['oracle']['accuracy'])}, the first run {report.percent(found['right'])}. {told}"
    )
    evidence = found["evidence"]
    rows = [(row["measure"], row["worked"]["auroc"], row["tokens"]) for row in found["of_runs"]]
    rows += [
        (choosing_tables.named(row), row["worked"]["auroc"], row["tokens"])
        for row in (evidence or {}).get("measures", [])
    ]
    known = sorted((row for row in rows if row[1] is not None), key=lambda row: -row[1])[:SHOWN]
    table = report.table(("measure", "AUROC for a wrong answer", "tokens"),
                         [(name, f"{area:.2f}", f"{tokens:.0f}") for name, area, tokens in known])  # fmt: skip
    return Section(
        "entropy_judger, inv_entropy",
        verdict,
        [f"{found['model']}, {found['task']}; the best measures ({link}):", table],
    )


def bes(found: Found, link: str) -> Section:
    """Sum up `waver bench bes` at the most tokens."""
    row = found["rows"][-1]
    shares = {name: report.percent(each["share"], each["interval"]) for name, each in row["solved"].items()}
    rivals = {name: report.points(each["mean"], each["interval"]) for name, each in row["over"].items()}
    lost = [f"`{name}`" for name, each in row["over"].items() if each["interval"][0] <= 0]
    verdict = (
        f"{shares['bes']} of {found['puzzles']} solved with {row['tokens']} tokens; "
        + ", ".join(f"`{name}` {shares[name]} ({over} points)" for name, over in rivals.items())
        + (f". **It is not shown to beat {' and '.join(lost)}.**" if lost else ". **It beats both.**")
    )
    table = report.table(
        ("tokens", *row["solved"]),
        [(str(each["tokens"]), *(report.percent(own["share"]) for own in each["solved"].values()))
         for each in found["rows"]],
    )  # fmt: skip
    return Section("bes", verdict, [f"{found['model']}, {found['settings']['task']} ({link}):", table])


def asking(found: Found, link: str) -> Section:
    """Sum up `waver bench asking`: questions for the most right guesses that C-IP and IP both reach, by task."""
    told, rows = list[str](), list[tuple[str, ...]]()
    for name, each in found["tasks"].items():
        for level in each["levels"][::-1]:
            if "ip" in level["over"]:
                told.append(f"{name}, {level['right']:.0%} right: {_fewer(level)}")
                break
        else:
            told.append(f"{name}: `c_ip` and `ip` reach none of the shares of right guesses that were looked at")
        rows += [
            (name, f"{level['right']:.0%}", *("" if n is None else f"{n:.1f}" for n in level["questions"].values()))
            for level in each["levels"]
        ]
    ways = [f"`{way}`" for way in next(iter(found["tasks"].values()))["levels"][0]["questions"]]
    by = "the task's own table" if found["settings"]["predictor"] == "table" else found["model"]
    said = f"Questions at equal shares of right guesses, weighed by {by} ({link}):"
    return Section("c_ip", "; ".join(told) + ".", [said, report.table(("task", "right", *ways), rows)])


def _fewer(level: Found) -> str:
    questions, over = level["questions"], level["over"]["ip"]
    low, high = over["interval"]
    told = "**fewer**" if high < 0 else "**more**" if low > 0 else "not told apart"
    difference = f"{over['mean']:+.1f}, {low:+.1f} to {high:+.1f}"
    return f"`c_ip` asks {questions['c_ip']:.1f} questions, `ip` {questions['ip']:.1f} ({difference}: {told})"


READERS: Mapping[str, Callable[[Found, str], Section]] = {
    "quality": quality,
    "speed": speed,
    "frontier": frontier,
    "l-rag": l_rag,
    "diffadapt": diffadapt,
    "truncation": truncation,
    "choosing": choosing,
    "bes": bes,
    "asking": asking,
}
"""Readers by the benchmark that a result's command names."""
