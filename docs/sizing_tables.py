"""Make the page of sizes (docs/sizing.md) from the models' configurations. `docs/generate.py` writes it."""

from __future__ import annotations

from waver.clients.plan import HEADROOM, Plan, need
from waver.engines.footprint import GIB, KNOWN, read_shape

NOTICE = "<!-- Written by docs/generate.py. -->"
CONTEXTS = (4096, 8192, 32768)
PAIRS = (("0.6B", "4B"), ("0.6B", "8B"), ("1.7B", "8B"), ("1.7B", "14B"), ("4B", "32B"))
LOADS = ((4096, 8), (8192, 16), (32768, 8))
"""Context in tokens, and answers at a time."""
CARDS = (16, 24, 40, 48, 80, 96, 141)
"""Memory of GPUs that there are, in GiB."""


def page() -> str:
    """Make the page."""
    return "\n".join(
        [
            "# Sizes",
            "",
            NOTICE,
            "",
            "Computed from the models' configurations (`engines/footprint.py`), not measured. A model's weights are "
            "its parameters times 2 bytes in bfloat16, 1 in fp8 and about 0.5 in four bits; its KV cache holds, for "
            "each token, a key and a value of `head_dim` numbers for each of `num_key_value_heads` in each layer. "
            "`waver plan` computes the same for other models, types and GPUs.",
            "",
            "## One model",
            "",
            "GiB; the KV cache in 16 bits, for one sequence of that length.",
            "",
            *_models(),
            "",
            "## Two engines",
            "",
            "What both engines need together, in bfloat16, with 2 GiB for each besides (activations, CUDA graphs: an "
            "assumption), and the smallest GPUs it goes into, where engines may fill "
            f"{HEADROOM:.0%} of one: both on one GPU, or a GPU for each.",
            "",
            *_pairs(),
            "",
        ]
    )


def _models() -> list[str]:
    head = ["model", "parameters", "bfloat16", "fp8", "four bits", *(f"KV of {each}" for each in CONTEXTS)]
    rows = []
    for name in KNOWN:
        shape = read_shape(name)
        weights = [f"{shape.weights(dtype) / GIB:.1f}" for dtype in ("bfloat16", "fp8", "int4")]
        caches = [f"{shape.kv(each) / GIB:.2f}" for each in CONTEXTS]
        rows.append([f"{name}", f"{shape.parameters / 1e9:.2f} B", *weights, *caches])
    return _table(head, rows)


def _pairs() -> list[str]:
    head = ["small and large"]
    head += [f"{count} answers of {context}" for context, count in LOADS]
    rows = []
    for small, large in PAIRS:
        cells = []
        for context, count in LOADS:
            plan = Plan(context=context, sequences=count)
            needs = [need(read_shape(f"Qwen/Qwen3-{each}"), plan) for each in (small, large)]
            both = sum(each.total for each in needs)
            cells.append(f"{both:.0f}: {_card(both)}, or {' and '.join(_card(each.total) for each in needs)}")
        rows.append([f"Qwen3 {small} and {large}", *cells])
    return _table(head, rows)


def _card(gib: float) -> str:
    return next((str(card) for card in CARDS if gib <= HEADROOM * card), "several")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
