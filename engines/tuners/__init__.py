"""Adapters whose updates depend on the token, as tuners of PEFT: `DynMoleConfig` and `QueryableLoraConfig`.

Once their modules are imported PEFT knows them: `get_peft_model`, `save_pretrained` and `PeftModel.from_pretrained`
work as for its own. `register()` imports them, and PEFT with them; whoever has no adapters need not have it.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waver.extras import how_to_install

if TYPE_CHECKING:
    from waver.engines.tuners.routing import RoutedTuner

ROUTED = ("DYNMOLE", "QUERYABLE_LORA")
"""Their names in `adapter_config.json`."""


def register() -> None:
    """Make PEFT know both; again, it changes nothing.

    Raises:
        ModuleNotFoundError: PEFT is not installed.
    """
    import_module("waver.engines.tuners.dynmole")
    import_module("waver.engines.tuners.queryable")


def adapter_type(folder: str) -> str | None:
    """Return the type that a folder's `adapter_config.json` states; None where there is no such file."""
    try:
        found = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found.get("peft_type")) if isinstance(found, dict) else None


def load_adapter(model: Any, folder: str) -> tuple[Any, RoutedTuner | None]:
    """Put an adapter of any of PEFT's types on a model, to serve it: merged where that is exact, else in its place.

    Returns:
        The model, of its own class, and the tuner where tokens are routed.

    Raises:
        ValueError, OSError: the adapter cannot be loaded; the message says why.
    """
    if find_spec("peft") is None:
        raise ValueError(f"adapters need peft: {how_to_install('train')}")
    register()
    from peft import PeftModel

    from waver.engines.tuners.routing import RoutedTuner

    adapted = PeftModel.from_pretrained(model, folder, torch_device=str(model.device))
    tuner = adapted.base_model
    if not isinstance(tuner, RoutedTuner) or tuner.mergeable:
        return adapted.merge_and_unload(), None
    return adapted.eval().base_model.model, tuner
