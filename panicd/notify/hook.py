"""Runs the command that gets notifications."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import trio

from panicd.config.notify import Hook
from panicd.notify.delivery import DeliveryError
from panicd.rules.printable import escape

OUTPUT_GRACE: Final = 0.5
"""Seconds for which the output is still read after the command has ended."""

OUTPUT_KEPT: Final = 1024
"""Bytes of the command's output that are kept for the message if it fails."""


async def run_hook(hook: Hook, environment: Mapping[str, str], body: bytes) -> None:
    """Run a command, without a shell, and check that it exits with 0.

    Args:
        hook: the command.
        environment: what it gets beside panicd's own environment.
        body: its standard input.

    Raises:
        DeliveryError: it did not. When its time is over, SIGKILL ends it and its process group.
    """
    said = bytearray()
    program = hook.command[0]
    try:
        process = await trio.lowlevel.open_process(
            list(hook.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        raise DeliveryError(str(error)) from error
    try:
        with trio.fail_after(hook.timeout):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process, body)
                nursery.start_soon(_keep_output, process, said)
                status = await process.wait()
                # A process that it left running may hold its output open for ever.
                nursery.cancel_scope.deadline = trio.current_time() + OUTPUT_GRACE
    except trio.TooSlowError:
        raise DeliveryError(f"{program}: ran longer than {hook.timeout:g} s") from None
    finally:
        await _end(process)
    if status != 0:
        words = escape(said.decode(errors="replace").strip(), OUTPUT_KEPT)
        raise DeliveryError(f"{program}: exit status {status}: {words}")


async def _feed(process: trio.Process, body: bytes) -> None:
    assert process.stdin is not None
    async with process.stdin as stream:
        with suppress(trio.BrokenResourceError):  # the command may ignore its input
            await stream.send_all(body)


async def _keep_output(process: trio.Process, said: bytearray) -> None:
    assert process.stdout is not None
    async with process.stdout as stream:
        async for chunk in stream:
            said += chunk[: OUTPUT_KEPT - len(said)]


async def _end(process: trio.Process) -> None:
    """End a process that still runs, with its group, and wait for it."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            await trio.aclose_forcefully(pipe)
