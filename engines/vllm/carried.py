"""Carry what is Waver's to vLLM's processes, within vLLM's configuration.

It must be no field of the configuration and no item of one: of these vLLM makes the key of its compile cache, and what
is carried is another at each start. Nor may it be an attribute of the configuration itself, which vLLM copies field by
field for the text part of a vision model.
"""

from __future__ import annotations

from typing import Any


class Additional(dict[str, Any]):
    """vLLM's `additional_config`, with attributes that are pickled along and are no items of it."""


def carry(config: Any, name: str, value: Any) -> None:
    """Add something to a configuration, under a name."""
    if not isinstance(config.additional_config, Additional):
        config.additional_config = Additional(config.additional_config)
    setattr(config.additional_config, name, value)


def carried(config: Any, name: str) -> Any:
    """Return what a configuration carries under a name; None where there is nothing."""
    additional = config.additional_config
    return getattr(additional, name, None) if isinstance(additional, Additional) else None
