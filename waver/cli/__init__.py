"""Define the command line, one module per command.

A command imports what it needs when it runs, so that `waver --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from waver import __version__
from waver.cli.bench import bench
from waver.cli.calibrate import (
    calibrate_arms,
    calibrate_c_ip,
    calibrate_inv_entropy,
    calibrate_l_rag,
    calibrate_policy,
)
from waver.cli.chat import chat
from waver.cli.check import check
from waver.cli.classify import classify
from waver.cli.compress import compress
from waver.cli.data import data
from waver.cli.edit import edit
from waver.cli.facts import facts
from waver.cli.forget import forget
from waver.cli.ingest import ingest
from waver.cli.inspect import inspect_attention, inspect_collapse
from waver.cli.keys import keys
from waver.cli.memory import memory
from waver.cli.plan import plan
from waver.cli.preferences import preferences
from waver.cli.route import route
from waver.cli.serve import serve
from waver.cli.train_bundled import train_bundled
from waver.cli.train_distil import train_distil
from waver.cli.train_dpo import train_dpo
from waver.cli.train_draft import train_draft
from waver.cli.train_guard import train_guard
from waver.cli.train_instructions import train_instructions
from waver.cli.train_judge import train_judge
from waver.cli.train_paraphrases import train_paraphrases
from waver.cli.train_probe import train_probe
from waver.cli.train_rl import train_rl
from waver.cli.train_tool_light import train_tool_light
from waver.cli.train_vision import train_vision
from waver.cli.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An OpenAI-compatible server that spends compute where a language model is uncertain.",
    epilog="Start with `waver serve`, then `waver chat` in a second terminal, or open the address in a browser. "
    "Completion in your shell: `waver --install-completion`. Exit status: 0 done, 1 not done, 2 wrong usage, 3 done in "
    "part, 130 stopped by ctrl-C before it was done.",
)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"waver {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command()(serve)
app.command()(check)
app.command()(chat)
app.command()(ingest)
app.command()(plan)
app.command()(tune)
app.command()(edit)
app.command()(forget)
app.command()(classify)
app.command()(compress)
app.add_typer(keys, name="keys")
app.add_typer(memory, name="memory")
app.add_typer(facts, name="facts")
app.add_typer(preferences, name="preferences")

inspect = typer.Typer(no_args_is_help=True, help="Look into a model.")
inspect.command("attention")(inspect_attention)
inspect.command("collapse")(inspect_collapse)
app.add_typer(inspect, name="inspect")
app.add_typer(route, name="route")

train = typer.Typer(no_args_is_help=True, help="Train models.")
train.command("bundled")(train_bundled)
train.command("vision")(train_vision)
train.command("rl")(train_rl)
train.command("distil")(train_distil)
train.command("paraphrases")(train_paraphrases)
train.command("instructions")(train_instructions)
train.command("probe")(train_probe)
train.command("guard")(train_guard)
train.command("judge")(train_judge)
train.command("dpo")(train_dpo)
train.command("tool-light")(train_tool_light)
train.command("draft")(train_draft)
app.add_typer(train, name="train")

calibrate = typer.Typer(no_args_is_help=True, help="Set policies from questions of your own.")
calibrate.command("policy")(calibrate_policy)
calibrate.command("l_rag")(calibrate_l_rag)
calibrate.command("inv_entropy")(calibrate_inv_entropy)
calibrate.command("c_ip")(calibrate_c_ip)
calibrate.command("arms")(calibrate_arms)
app.add_typer(calibrate, name="calibrate")

app.add_typer(data, name="data")

app.add_typer(bench, name="bench")
