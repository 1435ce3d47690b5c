"""Run `waver train judge`: train a judge for `entropy_judger` from a server's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from waver.cli.fill import config_option, filled, pairs
from waver.training.options import JudgeAnswers


@filled(answers=JudgeAnswers)
def train_judge(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question` and `answer`.")],
    out: Annotated[Path, typer.Option(help="Folder for the judge; a stopped run there goes on.")],
    answers: JudgeAnswers,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, another parameter of `entropy_judger`; repeatable.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A server's address, with /v1.", show_default="one is started for the while")
    ] = None,
    config: Annotated[Path | None, config_option("A YAML file, for the server that is started.")] = None,
) -> None:
    """Train a judge for `entropy_judger`: it tells right answers from wrong ones by the entropies of their tokens.

    The server answers every question several times and tells the features of each run. The judge learns from the first
    run of each question; the others, and questions that were held out, show what it is worth beside a plain vote, the
    least entropy and chance. Bring some hundred questions of the kind that users ask, of which some are answered
    wrongly: a judge fits one model, one way of drawing and one kind of question.

    OUT gets the judge and README.md with tables and plots. A configuration names it: `judges: {mine: OUT}`.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver train judge questions.jsonl --out judges/mine --model large

        waver train judge questions.jsonl --out judges/debate --set topology=debate --set rounds=2
    """
    import os

    import openai
    import yaml

    from waver.clients.chat import explain
    from waver.clients.questions import Refused

    try:
        given = {
            key: yaml.safe_load(value)
            for key, value in pairs(parameters, "a parameter is given as KEY=VALUE.", "--set")
        }
        if base_url is not None:
            _train(questions, out, answers, given, base_url, os.environ.get("WAVER_API_KEY"))
        else:
            from waver.server.run import serving

            with serving(config) as (address, key):
                _train(questions, out, answers, given, address, key)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"the value cannot be read: {error}", param_hint="--set") from None
    except openai.OpenAIError as error:
        typer.echo(explain(error, base_url or ""), err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError, Refused) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _train(
    questions: Path, out: Path, answers: JudgeAnswers, given: dict[str, Any], base_url: str, key: str | None
) -> None:
    """Read the questions and train at a server.

    Raises:
        ValueError, Refused: it cannot be done like this; the message is for the user.
        openai.OpenAIError: the server refuses.
    """
    from importlib.util import find_spec

    from waver.clients.client import AsyncWaver
    from waver.clients.runs import RunSource
    from waver.extras import how_to_install
    from waver.training.judge.run import JudgeRun, train
    from waver.training.probe.questions import from_file

    if find_spec("sklearn") is None:
        raise ValueError(f"Training a judge needs scikit-learn: {how_to_install('train')}")
    rows, reward = from_file(questions, answers.scorer)
    policy = {"samples": answers.samples, **given}
    run = JudgeRun(answers.model, str(questions), answers.scorer, policy, answers.max_tokens, answers.seed)

    async def ask(question: str, seed: int) -> dict[str, Any]:
        async with AsyncWaver(base_url=base_url, api_key=key, max_retries=5) as client:
            return await RunSource(client, answers.model, policy, answers.max_tokens).ask(question, seed)

    train(ask, rows, reward, run, answers.at_once, out)
