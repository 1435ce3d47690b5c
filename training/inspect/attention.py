"""Draw how widely each attention head of a model looks on a text: entropies of its rows, as a heat map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from waver import job
from waver.engines.attention import each_attention
from waver.entropy.attention import head_fractions
from waver.training import checkpoints

COLLAPSED, OVERLOADED = 0.1, 0.9
"""Parts of the largest entropy below which a head looks at single places, and above which everywhere alike."""


@torch.inference_mode()
def head_entropies(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Return each head's mean row entropy on a text as a part of the largest, `[layers, heads]`.

    Raises:
        ValueError: the text has one token, or the model hands out no attention.
    """
    if len(ids) < 2:
        raise ValueError("a text of two tokens at least is needed")
    found: list[torch.Tensor] = []
    with each_attention(model.eval(), lambda weights: found.append(head_fractions(weights).cpu())):
        model(torch.tensor([list(ids)], device=model.device), use_cache=False)
    if not found:
        raise ValueError("this model hands out no attention")
    return torch.stack(found)


def inspect_attention(model: str, text: str, out: Path) -> torch.Tensor:
    """Write the heat map of a model on a text to `out` (PNG) and its numbers beside it (JSON); returns them.

    Raises:
        ValueError: the model cannot be loaded, or hands out no attention. OSError: nothing can be written there.
    """
    from matplotlib.figure import Figure

    loaded, tokens = checkpoints.load(model)
    ids = tokens.encode(text)[: loaded.config.max_position_embeddings]
    found = head_entropies(loaded, ids)
    layers, heads = found.shape
    figure = Figure(figsize=(1.6 + 0.45 * heads, 1.4 + 0.32 * layers), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(found.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xlabel="head", ylabel="layer", xticks=range(heads), yticks=range(layers))
    figure.colorbar(image, label="entropy of a row / its largest")
    out.parent.mkdir(parents=True, exist_ok=True)
    job.replace_file(out, partial(figure.savefig, format="png"))
    numbers = {"model": model, "tokens": len(ids), "heads": [[round(float(x), 4) for x in row] for row in found]}
    content = json.dumps(numbers) + "\n"
    job.replace_file(out.with_suffix(".json"), partial(Path.write_text, data=content, encoding="utf-8"))
    return found


def summary(found: torch.Tensor) -> list[str]:
    """Describe heads in a line for each layer: the mean, and which have collapsed or look everywhere alike."""
    lines = []
    for layer, row in enumerate(found):
        low = [str(head) for head, each in enumerate(row) if float(each) < COLLAPSED]
        high = [str(head) for head, each in enumerate(row) if float(each) > OVERLOADED]
        said = [f"layer {layer}: mean {float(row.mean()):.2f}"]
        said += [f"at single places: {', '.join(low)}"] if low else []
        said += [f"everywhere alike: {', '.join(high)}"] if high else []
        lines.append("; ".join(said))
    return lines
