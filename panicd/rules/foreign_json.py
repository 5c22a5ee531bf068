"""JSON that panicd has not just written itself. Pure.

Python gives up on JSON that is nested too deeply. How deep that is depends on its version, on the
thread, and on what is done with the value: reading it may succeed, and writing it fail. So panicd
takes nothing that comes near to that depth.
"""

import json
import math
import re
from itertools import accumulate
from typing import Final

MOST: Final = 500
"""Levels; Python 3.11 gives up at some 900. A QEMU's answers have one for each image behind another
(``query-block``), and some ten besides."""

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_STEP: Final = dict(zip(b"[{]}", (1, 1, -1, -1), strict=True))
_NO_BRACKETS: Final = bytes(set(range(256)) - _STEP.keys())


def is_too_nested(text: bytes) -> bool:
    """Tell whether JSON is nested more deeply than panicd takes it."""
    if len(text) <= MOST or text.count(b"[") + text.count(b"{") <= MOST:
        return False
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MOST


def loads(text: bytes) -> object:
    """Read JSON whose values can be written as JSON again.

    Raises:
        ValueError: it is none.
    """
    if is_too_nested(text):
        raise ValueError("nested too deeply")
    value: object = json.loads(text, parse_constant=_finite, parse_float=_finite)
    return value


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise ValueError(f"the number {written[:9]}")
    return number
