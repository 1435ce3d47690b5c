"""Run `waver train probe`: train probes for `diffadapt` from an engine's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import config_option, filled
from waver.training.options import ProbeAnswers, Tuning


@filled(answers=ProbeAnswers, tuning=Tuning)
def train_probe(
    out: Annotated[Path, typer.Option(help="Folder for the probes; a stopped run there goes on.")],
    answers: ProbeAnswers,
    tuning: Tuning,
    questions: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL: `question`, `answer`, and if known `level`, a number.",
            show_default="sums as the bundled pair has",
        ),
    ] = None,
    config: Annotated[Path | None, config_option("A YAML file.")] = None,
) -> None:
    """Train probes for `diffadapt`: small networks that tell from a question which strategy suits it.

    The engine's model answers every question several times; how often it is right, and the entropy of its tokens, give
    a question its class, and its hidden state is what the probe learns from. Bring some hundred questions of the kind
    that users ask, easy and hard ones: a probe fits one model, one chat template and one kind of question.

    OUT gets a probe for each rule of labels: `paper`, `strict_easy`, and with --strategy-samples `oracle`, which goes
    by the cheapest strategy that is right. README.md says how they came about. Run it again with other --words,
    --alpha, --beta or --gamma: the answers are there already.

    `--beta median` is the median entropy of questions with nine of ten answers right. `--beta solved` is the least at
    which the easy strategy solves what is called easy; it needs --strategy-samples. Strategies are those of `diffadapt`
    in the configuration.

        waver train probe questions.jsonl --out models/mine/probe --engine large --config mine.yaml
    """
    from waver.engines.base import EngineError

    with in_sentences(ValueError, OSError, EngineError):
        _train(questions, config, out, answers, tuning)


def _train(questions: Path | None, config: Path | None, out: Path, answers: ProbeAnswers, tuning: Tuning) -> None:
    """Load the configuration, the questions and the strategies, and train.

    Raises:
        ValueError: it cannot be done like this; the message is for the user. EngineError: the engine died.
    """
    from waver.engines import LoraConfig
    from waver.server.config import load_config
    from waver.training.probe.labels import PLAIN
    from waver.training.probe.questions import from_file, sums
    from waver.training.probe.run import Source, model_name, train, way
    from waver.training.probe.sampling import ProbeRun

    configured = load_config(config)
    if answers.engine not in configured.engines:
        there = ", ".join(configured.engines)
        raise ValueError(f"there is no engine {answers.engine!r} in the configuration: {there}")
    chosen = configured.engines[answers.engine]
    if isinstance(chosen, LoraConfig):
        raise ValueError(f"engine {answers.engine!r} is an adapter: merge it into its model to train a probe on it")
    if questions is not None:
        rows, reward = from_file(questions, answers.scorer)
        asked = str(questions)
    else:
        rows, reward = sums(answers.n, answers.seed, answers.chain)
        asked = f"sums of {answers.chain[0]} to {answers.chain[1]} steps"
    strategies, openings = _strategies(configured, answers) if answers.strategy_samples else ({}, {})
    ways = {PLAIN: way(answers.opening, answers.samples, answers.max_tokens)} | strategies
    run = ProbeRun(model_name(chosen.model), asked, ways, answers.seed)
    train(Source(answers.engine, chosen, openings, answers.at_once), rows, reward, run, tuning, out)


def _strategies(configured: Any, answers: ProbeAnswers) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the strategies of `diffadapt` in this configuration, by name, and how each opens an answer."""
    from functools import partial

    from waver.policies.registry import parse
    from waver.policies.think.difficulty import DIFFICULTIES
    from waver.policies.think.strategies import opening
    from waver.training.probe.run import way

    (policy,) = parse([{"name": "diffadapt"}], configured.engines, configured.policies)
    named: dict[str, Any] = {name: getattr(policy, name) for name in DIFFICULTIES}
    ways = {
        name: way(
            each.words,
            answers.strategy_samples,
            max(1, int(each.share * answers.max_tokens)),
            each.temperature,
            each.top_p,
        )
        for name, each in named.items()
    }
    return ways, {name: partial(opening, strategy=each) for name, each in named.items()}
