"""Make instructions whose following can be checked by rule, and reward answers by what they follow.

The constraints are those of IFEval (arXiv 2311.07911); the dense reward is that of Light-IF (arXiv 2508.03178).
"""

from waver.training.tasks.instructions.base import Constraint
from waver.training.tasks.instructions.families import FAMILIES, parse
from waver.training.tasks.instructions.generate import instructions
from waver.training.tasks.instructions.reward import Followed, follow, follows, no_constraints

__all__ = [
    "FAMILIES",
    "Constraint",
    "Followed",
    "follow",
    "follows",
    "instructions",
    "no_constraints",
    "parse",
]
