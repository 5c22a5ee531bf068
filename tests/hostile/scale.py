"""How much of this suite is run: a part of it in ``make test``, the whole in ``make hostile``."""

from __future__ import annotations

import os


def whole() -> bool:
    """Whether the whole suite was asked for (``PANICD_HOSTILE=whole``)."""
    return os.environ.get("PANICD_HOSTILE") == "whole"
