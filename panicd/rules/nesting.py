"""How deeply the JSON of other programs may be nested. Pure.

Python gives up on JSON that is nested too deeply. How deep that is depends on its version, on the
thread, and on what is done with the value: reading it may succeed, and writing it fail. So panicd
takes nothing that comes near to that depth.
"""

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
    if text.count(b"[") + text.count(b"{") <= MOST:
        return False
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MOST
