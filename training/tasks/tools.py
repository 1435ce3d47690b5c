"""Tools that a model may call while it answers, for tasks of several turns. TRL shows a model their docstrings."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any

LONGEST = 200
"""Characters of an expression."""
OPERATIONS: dict[type[ast.AST], Callable[..., Decimal]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculator(expression: str) -> str:
    """Work out a sum.

    Args:
        expression: numbers, + - * / and brackets, such as (12 + 30) * 2

    Returns:
        The result, or what is wrong with the expression.
    """
    if len(expression) > LONGEST:
        return f"error: at most {LONGEST} characters"
    try:
        return f"{_value(ast.parse(expression, mode='eval').body).normalize():f}"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: only numbers, + - * / and brackets"
    except DecimalException:
        return "error: no such number"


def _value(node: ast.AST) -> Decimal:
    """Return the value of a part of an expression.

    Raises:
        ValueError: it is something else than numbers and the four operations. DecimalException: it has no value.
    """
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Decimal(str(number))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATIONS:
            return OPERATIONS[type(sign)](_value(left), _value(right))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return OPERATIONS[ast.USub](_value(inner))
    raise ValueError("an expression has numbers and the four operations only")


TOOLS: dict[str, Callable[..., Any]] = {"calculator": calculator}
"""Tools that have a name on the command line."""
