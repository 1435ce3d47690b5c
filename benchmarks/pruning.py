"""Measure EntropyPrune: answers about pictures at three budgets against other ways to choose, the time of a prompt, and
the cost of a matrix entropy by the smaller of two matrices."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from waver.benchmarks import report
from waver.engines import TransformersConfig
from waver.engines.base import NO_TOKEN, Sampling
from waver.engines.pictures import Picture, Pruning
from waver.engines.transformers import TransformersEngine
from waver.engines.visual_pruning import VisualPruner
from waver.entropy.matrix import matrix_entropy, primal_matrix_entropy, tokens_to_keep
from waver.resources import MODELS
from waver.stats import wilson
from waver.training.inspect.collapse import inspect_collapse
from waver.training.vision.pictures import draw, questions

WAYS = ("entropy", "entropy, not normalised", "attention", "random")
KEEPS = (0.75, 0.5, 0.25)
HEADS, WIDTH, TOKENS = 32, 128, 576
"""The shape of LLaVA-1.5-7B: heads of a query, numbers of a head, tokens of an image."""

app = report.command()


def prunings(layer: int, keep: float) -> dict[str, Pruning]:
    """Return the ways to choose, by name."""
    by = {way: Pruning(layer, keep, by=way.split(",")[0]) for way in WAYS}
    return {**by, WAYS[1]: Pruning(layer, keep, normalise=False)}


async def answers(engine: TransformersEngine, count: int, seed: int, pruning: Pruning | None) -> list[tuple[str, bool]]:
    """Ask every question about so many pictures; return its kind, and whether the answer is right."""
    assert engine.vision is not None
    found: list[tuple[str, bool]] = []
    for number in range(count):
        drawn = draw(seed, number)
        data = drawn.pixels.tobytes()
        picture = Picture(32, 32, data, hashlib.blake2b(data).hexdigest())
        for asked, wanted in questions(drawn):
            parts = [{"type": "image"}, {"type": "text", "text": asked}]
            ids, placed = engine.vision.place(engine.tokens.chat([{"role": "user", "content": parts}]), [picture])
            how = Sampling(temperature=0.0, max_tokens=24, logprobs=False, pictures=placed, pruning=pruning)
            made = [step.token async for step in engine.generate(ids, how) if step.token != NO_TOKEN]
            found.append((kind(asked), engine.tokens.decode(made).strip() == wanted))
    return found


def kind(asked: str) -> str:
    """Return a question's kind: its first words."""
    return " ".join(asked.split()[:2]).lower()


def accuracy(found: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    right = sum(each for _, each in found)
    kinds = {name: [each for own, each in found if own == name] for name in dict.fromkeys(name for name, _ in found)}
    return {
        "right": right,
        "of": len(found),
        "interval": wilson(right, len(found)),
        "kinds": {name: sum(own) / len(own) for name, own in kinds.items()},
    }


def random_llava(width: int, layers: int) -> LlavaForConditionalGeneration:
    """Make a LLaVA with random weights whose images have 576 tokens, as those of LLaVA-1.5."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=96, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=width // HEADS, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=255, vision_feature_layer=-1)
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config).eval()
    return model


@torch.inference_mode()
def prefill(width: int, layers: int, layer: int, repeats: int) -> dict[str, Any]:
    """Measure the pass over a prompt of an image and 60 tokens of text, in turns with and without pruning: medians of
    the ratios within a turn, of the decoder alone (the image's own encoder is the same for all)."""
    model = random_llava(width, layers)
    ids = torch.tensor([[5] * 30 + [255] * TOKENS + [7] * 30])
    pixels = torch.randn(1, 3, 96, 96)
    features = model.model.get_image_features(
        pixel_values=pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output
    embedded = model.get_input_embeddings()(ids)
    embedded[ids == 255] = torch.cat(list(features))

    def seconds(pruning: Pruning | None) -> float:
        pruner = None if pruning is None else VisualPruner(model, 255, pruning)
        begun = time.perf_counter()
        with pruner.watching(ids) if pruner else nullcontext():
            model.model.language_model(inputs_embeds=embedded)
        return time.perf_counter() - begun

    wanted = {(keep, way): how for keep in KEEPS for way, how in prunings(layer, keep).items() if way != WAYS[1]}
    seconds(None)
    ratios: dict[tuple[float, str], list[float]] = {key: [] for key in wanted}
    whole = []
    for _ in range(repeats):
        whole.append(seconds(None))
        for key, how in wanted.items():
            ratios[key].append(seconds(how) / whole[-1])
    return {
        "width": width,
        "layers": layers,
        "layer": layer,
        "repeats": repeats,
        "seconds": statistics.median(whole),
        "ratios": [
            {"keep": keep, "by": way, "ratio": statistics.median(each), "least": min(each), "most": max(each)}
            for (keep, way), each in ratios.items()
        ],
    }


def gram(repeats: int) -> dict[str, Any]:
    """Count the multiplications of a matrix entropy by both matrices, and measure them: the heads' (32 by 32) and the
    columns' (128 by 128), for the tokens of an image."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(TOKENS, HEADS, WIDTH, generator=generator)

    def seconds(work: Callable[[torch.Tensor], torch.Tensor]) -> float:
        begun = time.perf_counter()
        work(queries)
        return time.perf_counter() - begun

    primal_few = queries[: TOKENS // 8]
    dual, primal = [], []
    for _ in range(repeats):
        dual.append(seconds(matrix_entropy))
        begun = time.perf_counter()
        primal_matrix_entropy(primal_few)
        primal.append(8 * (time.perf_counter() - begun))
    ratios = [p / d for p, d in zip(primal, dual, strict=True)]
    return {
        "tokens": TOKENS,
        "eigen": {"dual": HEADS**3, "primal": WIDTH**3, "ratio": WIDTH**3 / HEADS**3},
        "product": {"dual": HEADS**2 * WIDTH, "primal": WIDTH**2 * HEADS, "ratio": WIDTH / HEADS},
        "dual_seconds": statistics.median(dual),
        "primal_seconds": statistics.median(primal),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "difference": float((matrix_entropy(primal_few) - primal_matrix_entropy(primal_few)).abs().max()),
    }


def page(found: Mapping[str, Any]) -> list[str]:
    layers, layer, all_tokens = found["layers"], found["layer"], found["answers"]["all"]
    rows = [("all 64", "", *_cells(all_tokens))]
    for keep in KEEPS:
        kept = tokens_to_keep(layers, layer, 64, keep * 64)
        rows += [
            (f"{keep:g}: {kept} from layer {layer} on", way, *_cells(found["answers"][f"{keep:g} {way}"]))
            for way in WAYS
        ]
    kinds = list(all_tokens["kinds"])
    timing, cost = found["prefill"], found["gram"]
    entropies = ", ".join(f"{each:.3f}" for each in found["entropies"])
    return [
        "# EntropyPrune",
        "## Answers about pictures",
        f"`models/vision` ({layers} layers, 64 tokens a picture) on {found['settings']['pictures']} drawn pictures "
        "that training cannot name, every question about each, greedily; right is what equals the wanted answer to "
        f"the letter. The mean matrix entropy of a picture's tokens behind each layer is {entropies}: the collapse is "
        f"before layer {layer}. A budget is the share of the tokens that remain on average over all layers. Wilson "
        "intervals at 95 %.",
        report.table(("budget", "chosen by", "right", *kinds), rows),
        "## Time of a prompt",
        f"A LLaVA with random weights ({timing['layers']} layers of width {timing['width']}, 32 heads, 576 tokens of "
        "an image and 60 of text), float32, one thread, pruned before layer 2, the decoder's pass alone: its time over "
        f"that of all tokens, in {timing['repeats']} turns; the median, with the least and the most. All tokens took "
        f"{timing['seconds']:.2f} s. Scoring the tokens is part of it.",
        report.table(
            ("budget", *(way for way in WAYS if way != WAYS[1])),
            [(f"{keep:g}", *(_ratio(each) for each in timing["ratios"] if each["keep"] == keep)) for keep in KEEPS],
        ),
        "## The smaller matrix",
        f"The entropies of {cost['tokens']} tokens of 32 heads by 128, float64, one thread. The cost of eigenvalues "
        f"grows with the cube: the heads' matrix takes {cost['eigen']['ratio']:.0f} times fewer operations than the "
        f"columns' ({cost['eigen']['dual']:,} against {cost['eigen']['primal']:,} for a token), and the product that "
        f"makes it {cost['product']['ratio']:.0f} times fewer. Measured: {cost['ratio']:.0f} times less time "
        f"({cost['least']:.0f} to {cost['most']:.0f}; {cost['dual_seconds']:.2f} s against "
        f"{cost['primal_seconds']:.1f} s, the latter from an eighth of the tokens). The two differ by at most "
        f"{cost['difference']:.0e}.",
    ]


def _cells(found: Mapping[str, Any]) -> list[str]:
    low, high = found["interval"]
    right = f"{100 * found['right'] / found['of']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
    return [right, *(f"{100 * each:.0f} %" for each in found["kinds"].values())]


def _ratio(each: Mapping[str, float]) -> str:
    return f"{each['ratio']:.2f} ({each['least']:.2f}–{each['most']:.2f})"


async def ask_all(model: Path, layer: int, pictures: int, seed: int) -> dict[str, Any]:
    """Ask about every picture, with all tokens and in each way at each budget."""
    engine = TransformersEngine("vision", TransformersConfig(model=str(model), threads=1))
    ways: dict[str, Pruning | None] = {"all": None}
    ways |= {f"{keep:g} {way}": how for keep in KEEPS for way, how in prunings(layer, keep).items()}
    found = {}
    with report.progress() as bar:
        for name, how in bar.track(ways.items(), description="answers"):
            found[name] = accuracy(await answers(engine, pictures, seed, how))
    await engine.aclose()
    return found


@app.command()
def main(
    context: typer.Context,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures to ask about.")] = 40,
    layer: Annotated[int | None, typer.Option(min=1, help="Layer to drop before.", show_default="collapse")] = None,
    width: Annotated[int, typer.Option(min=32, help="Of the random model.")] = 512,
    depth: Annotated[int, typer.Option(min=4, help="Layers of the random model.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each measurement of time.")] = 3,
    seed: report.Seed = 10_000_019,
    model: Annotated[
        Path | None, typer.Option(help="A model as `waver train vision` makes them.", show_default="the bundled one")
    ] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure accuracy, time and cost; writes pruning.json and .md. Some minutes of one core."""
    report.need_extra()
    torch.set_num_threads(1)
    conditions = report.conditions("pruning", dict(context.params))
    model = model or MODELS / "vision"
    collapse, entropies = inspect_collapse(str(model), [])
    at = collapse if layer is None else layer
    found = conditions | {
        "layer": at,
        "layers": len(entropies),
        "entropies": entropies,
        "gram": gram(repeats),
        "prefill": prefill(width, depth, 2, repeats),
        "answers": asyncio.run(ask_all(model, at, pictures, seed)),
    }
    report.write(out, "pruning", found, page(found))


if __name__ == "__main__":
    app()
