"""The command line. A sub-command imports what it needs when it runs, so that `waver --help` answers at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from waver import __version__
from waver.extras import how_to_install

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An OpenAI-compatible server that spends compute where a language model wavers.",
    epilog="Start with `waver serve`, then `waver chat` in a second terminal, or open the address in a browser.",
)

training = typer.Typer(no_args_is_help=True, help="Train models.")
app.add_typer(training, name="train")

calibrating = typer.Typer(no_args_is_help=True, help="Set a policy's threshold from questions of your own.")
app.add_typer(calibrating, name="calibrate")

bench = typer.Typer(no_args_is_help=True, help="Measure quality and speed; each writes numbers, tables and figures.")
app.add_typer(bench, name="bench")


def config_option(words: str) -> Any:
    """The option that names a configuration."""
    return typer.Option("--config", "-c", envvar="WAVER_CONFIG", help=words, show_default="the bundled pair")


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"waver {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def serve(
    config: Annotated[Path | None, config_option("A YAML file.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for a free one.", show_default="8000")] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests decoded at a time.", show_default="64")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait.", show_default="256")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a request may take.", show_default="600")] = None,
    allow_no_keys: Annotated[
        bool | None, typer.Option("--allow-no-keys", help="Serve other machines without asking for keys.")
    ] = None,
) -> None:
    """Serve the OpenAI API and the playground page.

    What is not given comes from the configuration's file, and `WAVER_*` variables such as WAVER_SERVER__PORT go over
    that. API keys, separated by commas, are taken from WAVER_API_KEYS.
    """
    from waver.server.run import serve as run

    status = run(
        config,
        host=host,
        port=port,
        max_concurrency=max_concurrency,
        max_queue=max_queue,
        timeout=timeout,
        allow_no_keys=allow_no_keys,
    )
    raise typer.Exit(status)


@app.command()
def chat(
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this, print the answer, leave.")] = None,
    base_url: Annotated[
        str, typer.Option(envvar="WAVER_BASE_URL", help="The server's address, with /v1.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="An engine, or waver/PRESET.", show_default="the first preset")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="A preset's name, a JSON list, or `none`.", show_default="the model's")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens an answer may have.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.")] = None,
) -> None:
    """Chat in the terminal: colours show entropy, underlines show which engine wrote.

    In a pipe, the message is read from standard input, the answer goes to standard output, the report to standard
    error. A server that wants a key gets the one in WAVER_API_KEY.
    """
    from waver.clients.chat import chat as run

    status = run(message, base_url, model, policy, system, temperature=temperature, max_tokens=max_tokens, seed=seed)
    raise typer.Exit(status)


@app.command()
def ingest(
    path: Annotated[Path, typer.Argument(help="A file, or a folder of text, Markdown, HTML and PDF files.")],
    collection: Annotated[str, typer.Option("--collection", "-n", help="The collection; made if it is not there.")],
    config: Annotated[Path | None, config_option("A YAML file; its `retrieval` says where collections are.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A server's address, with /v1: files go there.", show_default="no server")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", help="KEY=VALUE that all documents carry; repeatable.")
    ] = None,
) -> None:
    """Bring documents into a collection, from which answers can be fetched when a model is unsure.

    A document is named by its path below PATH. What has not changed is left alone, and what cannot be read is skipped
    with the reason. Without a server, everything becomes searchable at once in the end; an ingestion that was stopped
    changes nothing, and goes on where it was when it is run again. A server that uses the same folder sees the result
    at once. With --base-url, a server that wants a key gets the one in WAVER_API_KEY.
    """
    import json
    import os

    from waver.clients.ingest import Refused, show, upload
    from waver.retrieval.base import NoCollection, RetrievalError
    from waver.retrieval.ingest import files
    from waver.retrieval.ingest import ingest as take_in

    pairs = [entry.partition("=") for entry in metadata or []]
    if any(not key or not sign for key, sign, _ in pairs):
        raise typer.BadParameter("metadata is given as KEY=VALUE.")
    carried = {key: value for key, _, value in pairs}
    try:
        found = files(path)
        if base_url is not None:
            outcomes = upload(found, base_url, os.environ.get("WAVER_API_KEY"), collection, json.dumps(carried))
            raise typer.Exit(show(outcomes, len(found), collection))
        from waver.retrieval.library import Library
        from waver.server.config import load_config

        library = Library(load_config(config).retrieval)
        try:
            try:
                target = library.open(collection)
            except NoCollection:
                target = library.create(collection)
            status = show(take_in(target, library.parsers, path, carried), len(found), collection)
        finally:
            library.close()
    except (RetrievalError, ValueError, Refused) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(status)


@calibrating.command("l_rag")
def calibrate_l_rag(
    questions: Annotated[Path, typer.Argument(help="JSONL: `question`, and `answer`, a text or a list of texts.")],
    collection: Annotated[str, typer.Option("--collection", "-n", help="Where things are looked up.")],
    gate: Annotated[str, typer.Option(help="entropy, margin, targ, seakr, flare or dragin.")] = "entropy",
    pooling: Annotated[
        str | None, typer.Option(help="mean, first, max or prefix_k; of the gate entropy.", show_default="mean")
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, another parameter of `l_rag`; repeatable.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="The share of requests that may look things up.")] = None,
    loss: Annotated[
        float | None,
        typer.Option(help="Accuracy that may be lost against always looking up.", show_default="0.01, with answers"),
    ] = None,
    scorer: Annotated[str, typer.Option(help="When an answer is right: contains, exact or number.")] = "contains",
    model: Annotated[
        str | None, typer.Option(help="An engine, or waver/PRESET with its other policies.", show_default="as in chat")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens an answer may have.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Requests in the air at a time.")] = 8,
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
    from functools import partial

    import yaml
    from rich.console import Console

    from waver.clients.calibrate import Wanted, calibrate, questions_for
    from waver.clients.questions import Refused

    pairs = [entry.partition("=") for entry in parameters or []]
    if any(not key or not sign for key, sign, _ in pairs):
        raise typer.BadParameter("a parameter is given as KEY=VALUE.", param_hint="--set")
    try:
        wanted = Wanted(
            collection, gate, pooling, {key: yaml.safe_load(value) for key, _, value in pairs}, rate, loss, scorer
        )
        asked = questions_for(questions, wanted, Console(stderr=True))
        run = partial(
            calibrate,
            asked,
            wanted,
            model=model,
            at_once=at_once,
            out=out,
            temperature=temperature,
            max_tokens=max_tokens,
        )
        if base_url is not None:
            status = run(base_url, os.environ.get("WAVER_API_KEY"))
        else:
            from waver.server.run import serving

            with serving(config) as (address, key):
                status = run(address, key)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"the value cannot be read: {error}", param_hint="--set") from None
    except (ValueError, Refused) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(status)


@training.command()
def bundled(
    out: Annotated[Path, typer.Option(help="Folder for the models; a stopped run there goes on.")],
    only: Annotated[str | None, typer.Option(help="`small` or `large`.", show_default="both")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps than the recipe's, for a trial.")] = None,
) -> None:
    """Train the bundled small and large model from scratch."""
    from waver.training.pair.bundled import train

    try:
        train(out, ("small", "large") if only is None else (only,), seed=seed, threads=threads, steps=steps)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@training.command()
def rl(
    out: Annotated[Path, typer.Option(help="Folder for the run; a stopped run there goes on.")],
    model: Annotated[
        str | None, typer.Option(help="A causal language model: a folder, or a name.", show_default="the bundled small")
    ] = None,
    task: Annotated[
        str, typer.Option(help="`arithmetic`; with --data `gsm8k`, `verilog` or, with --reward too, `custom`.")
    ] = "arithmetic",
    data: Annotated[
        Path | None, typer.Option(help="JSONL: in each line `question`, and `answer` or `testbench`.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="MODULE:FUNCTION, called as TRL calls a reward function.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML: `base`, `methods` and settings.")] = None,
    base: Annotated[str, typer.Option(help="`grpo`, `dapo`, `dr_grpo`, `gspo` or `rloo`.")] = "grpo",
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="A method; repeatable.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the base, METHOD.KEY=VALUE of a method; repeatable.")
    ] = None,
    chain: Annotated[tuple[int, int], typer.Option(min=1, help="Shortest and longest sums, in operations.")] = (4, 8),
    steps: Annotated[int, typer.Option(min=1, help="Generations.")] = 100,
    prompts: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 16,
    group: Annotated[int, typer.Option(min=2, help="Answers to each.")] = 8,
    updates: Annotated[int, typer.Option(min=1, help="Optimizer steps on the rows of a step.")] = 2,
    micro_batches: Annotated[int, typer.Option(min=1, help="Passes an update; more take less memory.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the draws.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of AdamW, constant.")] = 1e-4,
    held_out: Annotated[int, typer.Option(min=0, help="Questions to judge by; 0 for none.")] = 128,
    every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints, and between judgements.")] = 20,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep, the last ones.")] = 2,
    vllm: Annotated[bool, typer.Option("--vllm", help="Draw the rows with vLLM, in this process.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of questions and draws.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train a model by reinforcement learning on questions whose answers can be checked.

    The trained model is in OUT/model, ready for `waver serve`, beside metrics.jsonl, curves.png and TensorBoard's
    runs. Needs the extra `train`. docs/training-methods.md tells the methods apart.

    Example: `waver train rl --out run --base dapo --set clip_high=0.25`
    """
    try:
        from waver.training.rl.run import Run, parse_settings, train
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error.name} is missing: {how_to_install('train')}") from None
    try:
        run = Run(
            model=model or str(files("waver") / "models" / "small"),
            recipe=parse_settings(base, method or [], setting or [], recipe),
            task=task,
            data=None if data is None else str(data),
            reward=reward,
            chain=chain,
            steps=steps,
            prompts=prompts,
            group=group,
            updates=updates,
            micro_batches=micro_batches,
            length=length,
            temperature=temperature,
            learning_rate=learning_rate,
            held_out=held_out,
            every=every,
            keep=keep,
            vllm=vllm,
            seed=seed,
        )
        train(run, out, threads)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


@training.command()
def probe(
    out: Annotated[Path, typer.Option(help="Folder for the probes; a stopped run there goes on.")],
    questions: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL: `question`, `answer`, and if known `level`, a number.",
            show_default="sums as the bundled pair has",
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="The engine whose model is asked and read.")] = "large",
    config: Annotated[Path | None, config_option("A YAML file.")] = None,
    scorer: Annotated[
        str,
        typer.Option(help="When an answer is right: number (its last one is), contains, or MODULE:FUNCTION."),
    ] = "number",
    n: Annotated[int, typer.Option(min=2, help="Sums, where no file is given.")] = 600,
    chain: Annotated[tuple[int, int], typer.Option(min=1, help="Shortest and longest of them, in operations.")] = (
        1,
        8,
    ),
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question, for labels.")] = 10,
    strategy_samples: Annotated[
        int, typer.Option(min=0, help="Answers in each strategy besides, for oracle labels; 0 for none.")
    ] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 4096,
    opening: Annotated[str, typer.Option(help="Words that the answers for labels begin with.")] = "",
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="Words behind which the probe reads; repeat it to try several.",
            show_default="a sentence that is about to say how hard the question is",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Above this rate of right answers none is hard.")] = 0.85,
    beta: Annotated[
        str, typer.Option(help="Entropy from which a question is easy: nats, `median`, or `solved` (see below).")
    ] = "median",
    gamma: Annotated[float, typer.Option(min=0, max=1, help="Below this rate of right answers all are hard.")] = 0.6,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each probe; the best is kept.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the answers, and of the sums.")] = 1,
    at_once: Annotated[int, typer.Option(min=1, help="Answers in the making at a time.")] = 64,
) -> None:
    """Train probes for `diffadapt`: small networks that tell from a question which strategy suits it.

    The engine's model answers every question several times; how often it is right, and how much its tokens waver, gives
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
    from waver.engines import LoraConfig
    from waver.engines.base import EngineError
    from waver.server.config import load_config
    from waver.training.probe.labels import PLAIN
    from waver.training.probe.questions import from_file, sums
    from waver.training.probe.run import Run, Source, Tuning, model_name, train, way

    try:
        configured = load_config(config)
        if engine not in configured.engines:
            raise ValueError(f"there is no engine {engine!r} in the configuration: {', '.join(configured.engines)}")
        chosen = configured.engines[engine]
        if isinstance(chosen, LoraConfig):
            raise ValueError(f"engine {engine!r} is an adapter: merge it into its model to train a probe on it")
        rows, reward = from_file(questions, scorer) if questions else sums(n, seed, chain)
        asked = str(questions) if questions else f"sums of {chain[0]} to {chain[1]} steps"
        strategies, openings = _strategies(configured, strategy_samples, max_tokens) if strategy_samples else ({}, {})
        ways = {PLAIN: way(opening, samples, max_tokens)} | strategies
        tuning = Tuning(tuple(words or ()), alpha, _beta(beta), gamma, seeds)
        run = Run(model_name(chosen.model), asked, ways, seed)
        train(Source(engine, chosen, openings, at_once), rows, reward, run, tuning, out)
    except (ValueError, OSError, EngineError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _beta(given: str) -> Any:
    """A number of nats, or the name of a way to find one."""
    if given in ("median", "solved"):
        return given
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"--beta is a number of nats, `median` or `solved`, not {given!r}") from None


def _strategies(configured: Any, samples: int, max_tokens: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How `diffadapt` answers in this configuration: its strategies as ways to train with, and how they begin."""
    from functools import partial

    from waver.policies.registry import parse
    from waver.policies.think.difficulty import DIFFICULTIES
    from waver.policies.think.strategies import opening
    from waver.training.probe.run import way

    (policy,) = parse([{"name": "diffadapt"}], configured.engines, configured.policies)
    named: dict[str, Any] = {name: getattr(policy, name) for name in DIFFICULTIES}
    ways = {
        name: way(each.words, samples, max(1, int(each.share * max_tokens)), each.temperature, each.top_p)
        for name, each in named.items()
    }
    return ways, {name: partial(opening, strategy=each) for name, each in named.items()}


BENCHMARKS = {
    "frontier": "Accuracy against the share of tokens by the large model: `ead` and its controls.",
    "truncation": "Top-W and its rivals at five temperatures: accuracy, kept tokens, diversity.",
    "l-rag": "Lookups only where the model wavers: accuracy, lookups and time, against its rivals.",
    "diffadapt": "As much thought as a question needs: accuracy, tokens, time, against fixed strategies and chance.",
    "retrieval": "FAISS by kind and size: recall, speed, memory; how fast documents are taken in.",
    "truncation-speed": "What truncating costs a step, against `top_p`.",
    "throughput": "16 requests at once against one after another; what a hand-over costs.",
    "vllm-serving": "Waver over vLLM against vLLM's own server, with vLLM's own client.",
    "vllm-steps": "Gates and entropies inside vLLM: time, hand-overs, memory.",
    "rl-methods": "Training methods against their plain base on a toy task: accuracy, entropy, tokens learned from.",
    "rl-text": "Reinforcement learning on real text: reward, held-out accuracy, and what it does for `ead`.",
    "rl-cost": "What training methods cost against plain GRPO: time of a step, memory.",
    "bundled": "What the bundled pair knows: accuracy by task, entropy of wrong answers, ways to answer.",
    "entropy-check": "Whether reported entropies are those of a float64 softmax.",
    "replay": "The same requests to two versions: what is answered otherwise, and what a step takes.",
}


def _benchmark(name: str) -> Callable[[typer.Context], None]:
    """A command that leaves its options, `--help` too, to the benchmark's own."""

    def run(context: typer.Context) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end what it has started
        module = import_module(f"waver.benchmarks.{name.replace('-', '_')}")
        module.app(args=context.args, prog_name=f"waver bench {name}")

    return run


for _name, _help in BENCHMARKS.items():
    bench.command(
        _name,
        help=_help,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_benchmark(_name))
