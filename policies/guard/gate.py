"""The dual gate of `safeharbor`: a request passes unchanged where it looks harmless and is near known harmless ones.

SafeHarbor, arXiv 2605.05704, section III: S_harm < tau_low and S_benign > tau_high, with S_benign = 1 - ||z - b||² / 2
of the nearest known harmless request b; for unit vectors, their cosine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOW, HIGH = 0.2, 0.75


def similarity(vectors: npt.NDArray[np.floating], benign: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return S_benign of unit vectors `[n, dimension]` with known harmless ones `[m, dimension]`; 0 without any."""
    if not len(benign):
        return np.zeros(len(vectors))
    out: npt.NDArray[np.float64] = (vectors @ benign.T).max(axis=1).astype(np.float64)
    return out


def verdict(harm: float, benign: float, low: float = LOW, high: float = HIGH) -> bool:
    """Return whether a request passes unchanged."""
    return harm < low and benign > high
