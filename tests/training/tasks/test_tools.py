"""The calculator: what it works out, and what it says of everything else."""

from __future__ import annotations

import pytest

from waver.training.tasks.tools import calculator


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 + 30", "42"),
        ("-(2 - 5) * 1.5", "4.5"),
        ("0.1 + 0.2", "0.3"),
        ("100 * 30", "3000"),
        ("1 / 0", "error: no such number"),
        ("9" * 201, "error: at most 200 characters"),
        ("2 ** 99999999", "error: only numbers, + - * / and brackets"),
        ("__import__('os')", "error: only numbers, + - * / and brackets"),
        ("True + 1", "error: only numbers, + - * / and brackets"),
        ("1 +", "error: only numbers, + - * / and brackets"),
        ("(" * 150, "error: only numbers, + - * / and brackets"),
    ],
)
def test_what_the_calculator_says(expression: str, result: str) -> None:
    assert calculator(expression) == result
