"""What all sections of the settings share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Precision = Literal["auto", "fp32", "bf16"]
ServingPrecision = Literal["auto", "fp32", "bf16", "int8"]

# Most tokens in one forward pass. A core with AVX512-BF16 computes 8, 16 and 32 sentences of 28 tokens at 75, 81 and
# 81 texts per second (DistilBERT).
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 16_384

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def seconds(value: Any) -> Any:
    """Seconds of a text such as 90m or 1h30m; anything else as it is. Raises ValueError for another text."""
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch("".join(value.split()).lower())
    amounts = {unit: amount for unit, amount in found.groupdict().items() if amount} if found else {}
    if not amounts:
        raise ValueError(f"'{value}' is no time: write seconds as a number, or 45s, 90m, 1h30m or 2d")
    return sum(float(amount) * _UNITS[unit] for unit, amount in amounts.items())


Seconds = Annotated[float, BeforeValidator(seconds)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)
