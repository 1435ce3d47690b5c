"""Run `waver train judge`: train a judge for `entropy_judger` from a server's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from waver.cli.endings import in_sentences
from waver.cli.fill import filled
from waver.cli.servers import BaseUrl, Config, parameters_of, server_at
from waver.training.options import JudgeAnswers


@filled(answers=JudgeAnswers)
def train_judge(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question` and `answer`.")],
    out: Annotated[Path, typer.Option(help="Folder for the judge; a stopped run there goes on.")],
    answers: JudgeAnswers,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, another parameter of `entropy_judger`; repeatable.")
    ] = None,
    base_url: BaseUrl = None,
    config: Config = None,
) -> None:
    """Train a judge for `entropy_judger`: it tells right answers from wrong ones by the entropies of their tokens.

    The server answers every question several times and tells the features of each run. The judge learns from all
    of them; questions that are held out in turn show what it is worth beside a plain vote, the least entropy and
    chance. Bring some hundred questions of the kind that users ask, of which some are answered
    wrongly: a judge fits one model, one way of drawing and one kind of question.

    OUT gets the judge and README.md with tables and plots. A configuration names it: `judges: {mine: OUT}`.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver train judge questions.jsonl --out judges/mine --model large

        waver train judge questions.jsonl --out judges/debate --set topology=debate --set rounds=2
    """
    import openai

    from waver.clients.chat import explain
    from waver.clients.questions import Refused

    given = parameters_of(parameters)
    with in_sentences(ValueError, OSError, Refused), server_at(base_url, config) as (address, key):
        try:
            _train(questions, out, answers, given, address, key)
        except openai.OpenAIError as error:
            raise Refused(explain(error, base_url or "")) from None


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
