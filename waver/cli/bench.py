"""Run `waver bench`: the benchmarks of a checkout, each with its own options."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import typer

from waver.cli.endings import importing, in_sentences

bench = typer.Typer(
    no_args_is_help=find_spec("waver.benchmarks") is not None,
    invoke_without_command=True,
    help="Measure quality and speed; each writes numbers, tables and figures.",
)


@bench.callback()
def need_benchmarks() -> None:
    if find_spec("waver.benchmarks") is None:
        typer.echo("The benchmarks come with Waver's repository, not with the installed package: clone it.", err=True)
        raise typer.Exit(1)


BENCHMARKS = {
    "quality": "Your own questions: policies, presets and sweeps against what you would pick instead, on any server.",
    "speed": "The same under load: time to the first token, between tokens, whole answers, tokens a second.",
    "summary": "docs/results.md from all results; with --quick, everything anew with the bundled pair.",
    "frontier": "Accuracy against the share of tokens by the large model: `ead` and its controls.",
    "switching": "Settings of `ead` on stored entropies of several pairs: tokens that matter, and time.",
    "truncation": "Top-W and its rivals at five temperatures: accuracy, kept tokens, diversity.",
    "l-rag": "Retrieval only at high uncertainty: accuracy, lookups and time of `l_rag`, against its rivals.",
    "diffadapt": "Thinking by difficulty: accuracy, tokens, time of `diffadapt`, against fixed strategies and chance.",
    "bes": "Search for answers that meet goals: BES, tree search and best-of-N at equal tokens.",
    "asking": "Asking back: questions that `c_ip` and its rivals need, and how often its sets hold the truth.",
    "choosing": "Rules that choose among answers, and measures of uncertainty, on the same questions of a real model.",
    "guard": "The gate of `safeharbor`: which labelled requests pass at once, against single thresholds.",
    "guard-engine": "Refusals and over-refusals of `safeharbor` with a language model behind it.",
    "locomo": "Long conversations: recall of what was said by `simplemem` and `memgas`, against search over turns.",
    "locomo-answers": "Long conversations: a model's answers with memories, with search, with history and without.",
    "facts": "Counterfactual facts: `scr` against always quoting the nearest one, a threshold, and none.",
    "memory-kills": "Writers of memory stores under kill -9: what is left, at 50 points.",
    "consistency": "Answers to other wordings of a question: retriever, generator and both, on any collection.",
    "retrieval": "FAISS by kind and size: recall, speed, memory; how fast documents are ingested.",
    "search": "Search on a collection with judgements (BEIR, TREC): nDCG@10, recall, MRR, time, by mode and reranked.",
    "embedding": "Ways to embed the chunks of documents: document by document, together, in bfloat16, by ONNX.",
    "round-trip": "Words of real Markdown and HTML files that are lost, against pandoc or a browser.",
    "truncation-speed": "The time that truncations add to a step, against `top_p`.",
    "throughput": "16 requests at once against one after another; what a hand-over costs.",
    "faults": "Hostile requests, fuzz, a soak and an overload: what neighbours notice of them.",
    "conformance": "Thousands of requests that schemathesis makes of the OpenAPI description: do answers conform.",
    "overload": "Four times what a server can serve: time of accepted requests, and of refusals.",
    "soak": "Every policy, tens of thousands of times, a tenth left early: memory, and answers that change.",
    "streams": "Streams that clients leave in every way: what a server holds afterwards.",
    "capacity": "What breaks first at 10, 1,000 and 100,000 requests a second: a simulation by measured times.",
    "kills": "What clients lose when an upstream, an engine, the database or the server is killed, stopped, restarted.",
    "vllm-serving": "Waver over vLLM against vLLM's own server, with vLLM's own client.",
    "vllm-steps": "Gates and entropies inside vLLM: time, hand-overs, memory.",
    "vllm-hand-over": "A hand-over between two engines under vLLM: its parts, and when it pays.",
    "vllm-pictures": "Pictures under vLLM and under transformers: are the answers the same, token by token.",
    "rl-methods": "Training methods against their plain base on a toy task: accuracy, entropy, tokens learned from.",
    "rl-text": "Reinforcement learning on real text: reward, held-out accuracy, and what it does for `ead`.",
    "rl-search": "Training on sums whose plain groups are all wrong: plain rows against groups by search.",
    "rl-cost": "What training methods cost against plain GRPO: time of a step, memory.",
    "weights": "Methods that change weights, on small experiments: what is learned or forgotten, at what price.",
    "adaptation": "Methods that learn from few examples or keep entropy, on small experiments over several seeds.",
    "compression": "Compression by search against uniform levels and removal by cosine, on the bundled large model.",
    "epiplexity": "Texts of several kinds by the structure that a small model learns from them, and the noise.",
    "weights-edit-model": "Edits of a language model, by editor: what is said afterwards, and what changed besides.",
    "draft": "Drafts of the bundled small model for the large one: acceptance before and after training, by loss.",
    "pruning": "EntropyPrune: answers about pictures, the time of a prompt, the cost of scores, against its rivals.",
    "bundled": "The bundled pair: accuracy by task, entropy of wrong answers, ways to answer.",
    "entropy-check": "Reported entropies against those of a float64 softmax.",
    "forms": "Forced calls and JSON forms, on one engine and handed over between two: how many are valid.",
    "client-matrix": "Other people's clients, unmodified, against a server: what works with each.",
    "replay": "The same requests to two versions: what is answered otherwise, and what a step takes.",
}


def benchmark(name: str) -> Callable[[typer.Context], None]:
    """Make a command that passes all of its options, `--help` included, to a benchmark's own command line."""

    def run(context: typer.Context) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end what it has started
        from waver.retrieval.base import Unavailable

        with importing(), in_sentences(Unavailable):
            module = import_module(f"waver.benchmarks.{name.replace('-', '_')}")
        module.app(args=context.args, prog_name=f"waver bench {name}")

    return run


for _name, _help in BENCHMARKS.items():
    bench.command(
        _name,
        help=_help,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(benchmark(_name))
