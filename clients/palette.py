"""Style tokens in the terminal: a colour for the entropy, an underline for the engine. Where no colours are wanted,
bold and reversed letters tell the entropy.

The scale runs from a cool grey over violet to a hot red. All colours have one relative luminance, 0.18, which stands
out equally from black and from white (contrast 4.6 to 1), so neither needs to be asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from rich.style import Style
from rich.text import Text

from waver.clients.client import TracedToken

BOUNDS = (0.03, 0.1, 0.3, 0.7, 1.2, 2.0)
"""Entropies, in nats, where the next colour begins."""
COLOURS = ("#657889", "#6574a4", "#7d6bb1", "#9d5dac", "#bb4d92", "#d23d63", "#dc3801")
WEIGHTS = (Style(), Style(), Style(), Style(bold=True), Style(bold=True), Style(reverse=True), Style(reverse=True))
"""Styles in place of the colours, where there are none: bold from 0.3 nats, reversed from 1.2."""
MARKS = (Style(), Style(underline=True), Style(underline2=True), Style(italic=True), Style(italic=True, underline=True))
"""Marks of the first, second, ... engine of the server's list."""


def style(entropy: float, engine: int, coloured: bool = True) -> Style:
    """Return the style of a token of the given entropy (nats) from the engine at this place in the server's list."""
    step = bisect_right(BOUNDS, entropy)
    return (Style(color=COLOURS[step]) if coloured else WEIGHTS[step]) + MARKS[engine % len(MARKS)]


def legend(engines: Sequence[str], coloured: bool = True) -> Text:
    """Return one line that explains the colours, or what stands for them, and the marks."""
    line = Text("entropy in nats ", style="dim")
    steps = list(zip((0.0, *BOUNDS), COLOURS, WEIGHTS, strict=True))
    for place, (low, colour, weight) in enumerate(steps):
        if coloured:
            line.append(f"█ {low:g} ", style=colour)
        elif place == 0 or weight != steps[place - 1][2]:
            line.append(f"from {low:g}", style=weight).append(" ")
    line.append("  written by ", style="dim")
    for place, engine in enumerate(engines):
        line.append(engine, style=MARKS[place % len(MARKS)]).append(" ")
    return line


def spans(content: str, tokens: Sequence[TracedToken]) -> Iterator[tuple[str, TracedToken]]:
    """Share a piece of text out among the tokens that made it.

    Where a token's own text is not what stands in `content` (half a code point, the start of a stop string), what is
    left belongs to the most uncertain of the tokens left.
    """
    left = list(tokens)
    while content and left:
        if left[0].token and content.startswith(left[0].token) and len(left) > 1:
            token = left.pop(0)
            yield content[: len(token.token)], token
            content = content[len(token.token) :]
        else:
            yield content, max(left, key=lambda token: token.entropy)
            return


CONTROL = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\n\t"} | dict.fromkeys(range(0x7F, 0xA0), 0x2421)


def printable(text: str) -> str:
    """Return control characters as symbols: a model's output must not command the terminal."""
    return text.translate(CONTROL)
