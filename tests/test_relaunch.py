"""The command that brings a VM back."""

import pytest
import trio

from panicd.relaunch import run_relaunch
from panicd.rules.incident import Outcome
from panicd.rules.plan import RunRelaunch


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
async def test_a_name_that_no_environment_can_hold_is_a_failure(name: str) -> None:
    """A QEMU that was taken over may call itself anything; that must not end the daemon."""
    with trio.fail_after(10):
        result = await run_relaunch(
            RunRelaunch(5.0, command=("/bin/true",)), {"PANICD_DOMAIN": name}
        )
    assert result.outcome is Outcome.FAILED
