"""Run `vllm bench serve` once for many loads: JSON lists of arguments in, one a line; results out, one a line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from waver.benchmarks.processes import go_first

FOUND = ("completed", "failed", "duration", "total_input_tokens", "total_output_tokens", "output_throughput")
WHOLE = "median_e2el_ms"
TIMES = ("median_ttft_ms", "median_tpot_ms", "median_itl_ms")


def essence(result: dict[str, Any]) -> dict[str, float]:
    """Keep of a result of vLLM's counts, tokens a second, and median times in milliseconds; that of whole answers
    where it was asked for."""
    return {key: float(result[key]) for key in (*FOUND, *TIMES, WHOLE) if key != WHOLE or key in result}


def main() -> None:
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    go_first()
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # it prints tables
        for line in sys.stdin:
            result = asyncio.run(main_async(parser.parse_args(json.loads(line))))
            print(json.dumps(essence(result)), file=answers, flush=True)


if __name__ == "__main__":
    main()
