"""Draw the picture in the README: one answer, token by token, with its entropy and its writer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.benchmarks import report
from waver.benchmarks.answers import LARGE, SMALL, load_pair
from waver.engines.base import Sampling, Step
from waver.policies.base import Proceed
from waver.policies.job import Job
from waver.policies.registry import parse
from waver.policies.report import Report
from waver.policies.services import Services

POLICY = {"name": "ead", "threshold": 0.05, "monitor": "small", "window": 1, "min_tokens": 1}

app = report.command()


async def answer(question: str, models: Path | None) -> tuple[list[tuple[str, Step]], list[float]]:
    """Return the tokens of an answer, and the small model's entropies at each of them."""
    async with load_pair(models) as engines:
        tokens = engines[SMALL].tokens
        prompt = tuple(tokens.chat([{"role": "user", "content": question}]))
        job = Job(prompt, Sampling(temperature=0.0, max_tokens=200), SMALL, Services(engines), Report())
        steps = [step async for step in Proceed(parse([POLICY], engines))(job)]
        read = await engines[SMALL].score([*prompt, *(step.token for step in steps)])
        alone = [step.entropy for step in read[len(prompt) - 1 :]]
        return [(tokens.token_str(step.token) or "end", step) for step in steps], alone


def draw(question: str, written: Sequence[tuple[str, Step]], alone: Sequence[float], file: Path) -> None:
    """Draw the small model's entropy at each token as bars, coloured by the model that wrote it."""
    from matplotlib import pyplot as plt

    from waver.benchmarks.figures import GREY, INK, PALE, SHADES, STYLE  # chooses a backend that needs no screen

    style: dict[Any, Any] = STYLE | {"axes.grid": False, "svg.fonttype": "path"}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(12, 2.7), layout="constrained")
        colours = [SHADES[2] if step.engine == LARGE else PALE for _, step in written]
        axes.bar(range(len(written)), alone, color=colours, width=0.9)
        for place, (text, step) in enumerate(written):
            by_large = step.engine == LARGE
            axes.annotate(
                text.strip(),
                (place, 0),
                xytext=(0, -11 if len(text.strip()) < 4 else -22),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=SHADES[0] if by_large else INK,
                fontweight="bold" if by_large else "normal",
            )
        share = sum(step.engine == LARGE for _, step in written) / len(written)
        axes.set_title(
            f"{question}    orange: the {share:.0%} of tokens that the large model wrote", loc="left", fontsize=10
        )
        axes.set_ylabel("small model's\nentropy, nats", fontsize=8.5, color=GREY)
        axes.set_xticks([])
        axes.set_xlim(-1, len(written))
        axes.spines["bottom"].set_color(PALE)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


@app.command()
def main(
    question: Annotated[str, typer.Option(help="What is asked.")] = "What is 40 + 41 + 87 - 34 + 21 - 83?",
    models: report.Models = None,
    out: Annotated[Path, typer.Option(help="The file: .svg or .png.")] = Path("docs/idea.svg"),
) -> None:
    """Draw one answer of `ead`: the small model's entropies as bars, writers as colours. Takes seconds."""
    report.need_extra()
    written, alone = asyncio.run(answer(question, models))
    draw(question, written, alone, out)
    report.console.print(f"{''.join(text for text, _ in written[:-1])}\nwritten to {out}")


if __name__ == "__main__":
    app()
