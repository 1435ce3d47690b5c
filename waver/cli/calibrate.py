"""Run `waver calibrate`: find the threshold of a policy from one's own questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.fill import config_option, filled, pairs
from waver.clients.options import Calibration, Requests


@filled(calibration=Calibration, requests=Requests)
def calibrate_l_rag(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    calibration: Calibration,
    requests: Requests,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, another parameter of `l_rag`; repeatable.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A server's address, with /v1.", show_default="one is started for the while")
    ] = None,
    config: Annotated[Path | None, config_option("A YAML file, for the server that is started.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for calibration.json and a plot.")] = None,
) -> None:
    """Find the threshold at which `l_rag` looks things up as often as it should, and no more.

    Each question is asked without lookups, for its score, and again with one. With --rate the threshold is the one at
    which so many of them look things up; with --loss, the one with the fewest lookups that stays within so much of the
    accuracy of always looking up. Bring some hundred questions of the kind that users ask: a threshold fits one model,
    collection and kind of question. The last line of the output goes into a preset.

    A server that wants a key gets the one in WAVER_API_KEY.

        waver ingest handbook/ --collection handbook

        waver calibrate l_rag questions.jsonl --collection handbook --loss 0.01
    """
    import os

    import yaml
    from rich.console import Console

    from waver.clients.calibrate import calibrate, questions_for
    from waver.clients.questions import Refused

    given = pairs(parameters, "a parameter is given as KEY=VALUE.", "--set")
    try:
        wanted = replace(calibration, parameters={key: yaml.safe_load(value) for key, value in given})
        asked = questions_for(questions, wanted, Console(stderr=True))
        if base_url is not None:
            status = calibrate(asked, wanted, requests, base_url, os.environ.get("WAVER_API_KEY"), out)
        else:
            from waver.server.run import serving

            with serving(config) as (address, key):
                status = calibrate(asked, wanted, requests, address, key, out)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"the value cannot be read: {error}", param_hint="--set") from None
    except (ValueError, Refused) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(status)
