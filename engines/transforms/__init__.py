"""Transforms of the next-token distribution, as plain data that can be sent to the process with the logits. One class
in one file each.

They are plain JSON (`as_data`, `from_data`), so that they can travel to the process that holds the logits. The order of
what shapes a draw is the same in all engines:

1. a grammar's mask, `logit_bias`, `min_tokens` and penalties, on the raw logits; 2. temperature: the request's own,
times what an adaptive one among its transforms makes of it (`waver.engines.temperature`); 3. the request's truncations,
in the order of `Sampling.transforms`; 4. `min_p`, `top_k` and `top_p` of the request itself, in this order; 5. one draw
from what is left.

So a truncation sees the distribution that would be drawn from, and its entropy is that of the penalised, masked and
tempered one. An adaptive temperature follows the entropy of the raw one. At temperature 0 the top token is taken and no
transform is run.

A file of this package, or a module that `waver.engines.plugins` loads, adds a transform by defining a subclass of
`Truncation`; it is a policy of the same name and parameters without another edit (`waver.policies.sample`).
"""

from waver.engines.transforms.adaptive_temperature import AdaptiveTemperature
from waver.engines.transforms.base import Context, Transform, Truncation
from waver.engines.transforms.batch import needs_geometry, truncate, truncations
from waver.engines.transforms.epsilon import Epsilon
from waver.engines.transforms.eta import Eta
from waver.engines.transforms.min_p import MinP
from waver.engines.transforms.registry import from_data, transform_classes
from waver.engines.transforms.top_h import TopH
from waver.engines.transforms.top_n_sigma import TopNSigma
from waver.engines.transforms.top_p import TopP
from waver.engines.transforms.top_w import TopW
from waver.engines.transforms.typical import Typical

__all__ = [
    "AdaptiveTemperature",
    "Context",
    "Epsilon",
    "Eta",
    "MinP",
    "TopH",
    "TopNSigma",
    "TopP",
    "TopW",
    "Transform",
    "Truncation",
    "Typical",
    "from_data",
    "needs_geometry",
    "transform_classes",
    "truncate",
    "truncations",
]
