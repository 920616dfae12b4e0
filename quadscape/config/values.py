"""Types of values in the experiment file, and the base of its sections."""

import json
import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _scientific(value: Any) -> Any:
    # YAML 1.1 reads `1e-3` as a string (it wants `1.0e-3`): a trap that no user should fall into.
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


Real = Annotated[float, BeforeValidator(_scientific), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("at least one entry is needed")
    return value


NotEmpty = AfterValidator(_not_empty)
FloatType = Literal["float32", "float64"]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, types are not coerced, instances are immutable.

    Attributes:
        later: Keys that were added after results had been made without them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
    later: ClassVar[tuple[str, ...]] = ()

    def without_meaning(self) -> set[str]:
        """Keys that are left out of what fingerprints are made of: those added later, while they have their default."""
        return {key for key in self.later if getattr(self, key) == type(self).model_fields[key].default}


def resolved(section: Section) -> dict[str, Any]:
    """A section as plain JSON values: what fingerprints and Snakemake's params are made of."""
    return _meant(section, json.loads(section.model_dump_json()))


def _meant(section: Section, values: dict[str, Any]) -> dict[str, Any]:
    left_out = section.without_meaning()
    parts = {key: getattr(section, key) for key in values if key not in left_out}
    return {key: _meant(own, values[key]) if isinstance(own, Section) else values[key] for key, own in parts.items()}


def finite(value: float) -> float | None:
    """A float for JSON: None instead of NaN or infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def listed(values: list[str]) -> str:
    """Names for a sentence."""
    return ", ".join(values) if values else "none"
