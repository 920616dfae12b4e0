"""The `model` section as results keep it."""

import json
from typing import Any

from pydantic import TypeAdapter

from quadscape.config.sections import Model


def model_section(values: Any) -> Any:
    """The `model` section that a training's manifest or a checkpoint names.

    Args:
        values: JSON values.

    Returns:
        The section.
    """
    adapter: Any = TypeAdapter(Model)
    # As JSON, where a list may stand for a tuple.
    return adapter.validate_json(json.dumps(values), strict=True)
