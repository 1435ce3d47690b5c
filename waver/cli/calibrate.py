"""Run `waver calibrate`: find the threshold of a policy from one's own questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import filled
from waver.cli.servers import BaseUrl, Config, listed, parameters_of, server_at
from waver.clients.options import Calibration, Choosing, Measuring, Pursuit, Requests, Tuning


@filled(calibration=Calibration, requests=Requests)
def calibrate_l_rag(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    calibration: Calibration,
    requests: Requests,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, another parameter of `l_rag`; repeatable.")
    ] = None,
    base_url: BaseUrl = None,
    config: Config = None,
    out: Annotated[Path | None, typer.Option(help="Folder for calibration.json and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what calibration.json holds.")] = False,
) -> None:
    """Find the threshold at which `l_rag` looks things up as often as it should, and no more.

    Each question is asked without lookups, for its score, and again with one. With --rate the threshold is the one at
    which so many of them look things up. With --loss it is the one with the fewest lookups that loses at most so much
    accuracy against always looking up, on questions to come, with the confidence of --confidence: a quarter of the
    questions gives thresholds to try, the others test them, and where none can be promised, it says so. A loss of 1
    point takes 400 questions, one of 5 points 79, and more where some are lost. A threshold fits one model, collection
    and kind of question. The last line of the output goes into a preset.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver ingest handbook/ --collection handbook

        waver calibrate l_rag questions.jsonl --collection handbook --loss 0.05
    """
    from rich.console import Console

    from waver.clients.calibrate import calibrate, questions_for
    from waver.clients.questions import Refused

    wanted = replace(calibration, parameters=parameters_of(parameters))
    with in_sentences(ValueError, Refused):
        asked = questions_for(questions, wanted, Console(stderr=True))
        with server_at(base_url, config) as (address, key):
            status = calibrate(asked, wanted, requests, address, key, out, as_json)
    raise typer.Exit(status)


@filled(wanted=Measuring)
def calibrate_inv_entropy(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    out: Annotated[Path, typer.Option(help="Folder for the calibration; a stopped run there goes on.")],
    wanted: Measuring,
    base_url: BaseUrl = None,
    config: Config = None,
) -> None:
    """Turn measures of uncertainty into the probability that an answer is wrong.

    Every question is answered once, and measured by all measures, or those that --measure names. What is right is known
    from the file; isotonic regression does the rest. The table compares the measures: how well they find wrong answers
    (AUROC), how good the probabilities are on other questions (Brier), and with several --at whether they rise with the
    temperature (TSU). Bring some hundred questions of the kind that users ask: a calibration fits one model and one way
    of measuring.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver calibrate inv_entropy questions.jsonl --out calibrations/mine --model large
    """
    from waver.clients.questions import Refused, check, read
    from waver.clients.uncertainty import calibrate

    with in_sentences(ValueError, Refused):
        asked = read(questions)
        check(asked, wanted.scorer, questions)
        if unknown := [question.line for question in asked if not question.answers]:
            raise Refused(f"{questions}, line {unknown[0]} has no answer: calibration needs them all.")
        with server_at(base_url, config) as (address, key):
            status = calibrate(asked, wanted, address, key, out, typer.echo)
    raise typer.Exit(status)


@filled(wanted=Pursuit)
def calibrate_c_ip(
    task: Annotated[str, typer.Argument(help="A task of the server, such as animals.")],
    out: Annotated[Path, typer.Option(help="Folder for the thresholds; a stopped run there goes on.")],
    wanted: Pursuit,
    base_url: BaseUrl = None,
    config: Config = None,
) -> None:
    """Calibrate the conformal sets of `c_ip` for a task and a model.

    The model is shown random histories of questions and answers of every length, whose truth is known; how probable it
    holds that truth gives the thresholds, for any alpha. Fresh histories check that the sets hold the truth as often as
    they should. A configuration names the folder: `thresholds: {mine: OUT}`.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver calibrate c_ip animals --out thresholds/animals --model large
    """
    from waver.clients.asking import calibrate

    with in_sentences(ValueError), server_at(base_url, config) as (address, key):
        status = calibrate(task, wanted, address, key, out, typer.echo)
    raise typer.Exit(status)


@filled(wanted=Choosing)
def calibrate_arms(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    arm: Annotated[
        list[str],
        typer.Option(help="MODEL, or MODEL=POLICIES as YAML; at least two, the option is repeated."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report; a stopped run there goes on.")],
    wanted: Choosing,
    base_url: BaseUrl = None,
    config: Config = None,
) -> None:
    """Find which model, preset or threshold answers your questions best, with as few requests as --budget says.

    Each request asks one arm; which is next is chosen by what came before. `learned` is a policy that was trained in
    simulation for easy and hard cases alike (arXiv 2010.15382), some minutes before the first request; the other
    strategies are rules. What each would lose on simulated users is told at the end. With --price cheaper arms gain.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver calibrate arms questions.jsonl --arm small --arm large --arm waver/frugal --budget 60 --out arms

        waver calibrate arms questions.jsonl --budget 80 --out thresholds --arm 'small=[{name: ead, threshold: 0.01}]'
        --arm 'small=[{name: ead, threshold: 0.1}]'
    """
    from waver.clients.arms import calibrate, check, read_arm
    from waver.clients.questions import Refused, read
    from waver.clients.questions import check as check_answers

    with in_sentences(ValueError, Refused):
        asked, arms = read(questions), [read_arm(each) for each in arm]
        check_answers(asked, wanted.scorer, questions)
        check(asked, arms, wanted, questions)
        with server_at(base_url, config) as (address, key):
            status = calibrate(asked, arms, wanted, address, key, out, typer.echo)
    raise typer.Exit(status)


@filled(wanted=Tuning)
def calibrate_policy(
    name: Annotated[str, typer.Argument(help="A policy, such as ead, route or diffadapt.")],
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    out: Annotated[Path, typer.Option(help="Folder for answers and the report; a stopped run there goes on.")],
    wanted: Tuning,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE,VALUE,…: values of a parameter to try; repeatable. Without, those of ead, route "
                     "and adaptive_temperature follow from the entropies of your prompts; diffadapt has strategies."),
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, a parameter that stays; repeatable.")
    ] = None,
    base_url: BaseUrl = None,
    config: Config = None,
) -> None:  # fmt: skip
    """Find the cheapest setting of a policy that loses at most --loss against one engine alone, or the best within
    --budget or --share.

    A quarter of the questions compares all settings, in right answers, full cost, seconds and tokens. With --loss,
    those worth it are tested on the other questions, the dearest first, until one cannot be promised: the bound holds
    on questions to come with the confidence of --confidence. A loss of 5 points takes 79 questions, one of 1 point 400,
    and more where some are lost. If nothing can be promised, the exit status is 1. For --budget and --share the
    questions need no answers: then the best setting is the one whose texts are most like those of --against alone. The
    setting, with what to expect of it, is in OUT/preset.yaml.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver calibrate policy ead questions.jsonl --loss 0.05 --out tuned

        waver calibrate policy ead prompts.jsonl --share 0.3 --out tuned

        waver calibrate policy ead questions.jsonl --budget 0.5 --vary threshold=0.1,0.3,1 --vary window=1,5 --out tuned
    """
    from waver.clients.candidates import Search, calibrate, check
    from waver.clients.questions import Refused, read
    from waver.clients.questions import check as check_answers

    fixed = parameters_of(parameters)
    tried = {key: values if isinstance(values, list) else [values] for key, values in listed(vary).items()}
    with in_sentences(ValueError, Refused):
        asked, search = read(questions), Search(name, fixed, tried)
        check_answers(asked, wanted.scorer, questions)
        check(asked, wanted, search, questions)
        with server_at(base_url, config) as (address, key):
            status = calibrate(asked, search, wanted, address, key, out, typer.echo)
    raise typer.Exit(status)
