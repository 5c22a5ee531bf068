"""The fixture that runs each contract test twice: on the fake and on a real QEMU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.contract.subjects import Setup, Start, Subject, start_fake, start_real


@pytest.fixture(
    params=[
        pytest.param(start_fake, id="fake"),
        pytest.param(start_real, id="real", marks=pytest.mark.real),
    ]
)
def start(request: pytest.FixtureRequest, socket_dir: Path) -> Start:
    """Starts a QEMU: ``async with start(Setup(…)) as vm``."""
    starter: Callable[[Path, Setup], AbstractAsyncContextManager[Subject]] = request.param
    return partial(starter, socket_dir)
