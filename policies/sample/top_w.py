"""Top-W, arXiv 2602.10346: truncation that weighs the geometry, the entropy and the mass of the tokens it keeps.

At every step, with p the distribution to draw from, d a distance between tokens' whitened input embeddings, and S the
first tokens of the pool that hold `warm_mass` of it, repeat until S stays the same, at most `iterations` times:

    f_i   = -min_{j in S} d(i, j)                        how far a token is from the set (0 inside)
    φ_i   = geometry_scale f_i + entropy_weight log p_i
    S     = the prefix of the tokens by descending φ that has the largest
            E_q[φ] + (mass_weight - entropy_weight) log Γ,   Γ its mass, q = p/Γ on it

and draw from q. `waver.entropy.top_w` has the method with its two shortcuts, both exact.

What to expect:
- The default weights keep one to three tokens where the model has a preference: it is near to greedy decoding, and the
  report's `truncation` shows how near. A larger `mass_weight` keeps more, `mass_weight <= entropy_weight` one token.
- With the default warm start the geometry decides nothing in all but the flattest distributions. A `warm_mass` of 0.05
  or less, or the k-NN potential, lets it act.
- The objective as published rewards sets of similar tokens. It does not lower the Wasserstein distance to p.
- The k-NN potential, `f_i = -(mean distance to the `neighbours` nearest members)`, is a reconstruction: the paper names
  it without a formula.
- The most likely token is always kept. Input embeddings are needed: an engine that has no access to them is refused.
"""

from __future__ import annotations

from typing import ClassVar

from waver.engines import transforms
from waver.policies.sample.shaping import Shaping


class TopW(transforms.TopW, Shaping):
    """Keep the set of tokens that best trades geometry, entropy and mass; sharp at any temperature."""

    paper: ClassVar[str] = "arXiv 2602.10346"
