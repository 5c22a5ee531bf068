"""Asks libvirt by virsh(1): a process of its own for each question, with a time limit.

A process and not libvirt's library: a call into the library blocks its thread until libvirtd
answers and can't be given up, and its Python binding has to be compiled. virsh takes some 20 ms,
comes with libvirt, and can be killed.
"""

import os
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

MESSAGE_MAX: Final = 400  # characters of an error that are kept
PROGRAM: Final = "virsh"


class LibvirtError(Exception):
    """libvirt did not do what it was asked for."""


class LibvirtSilentError(LibvirtError):
    """There is no answer; it may do it yet, or may have done it."""


class LibvirtRefusedError(LibvirtError):
    """It said no."""


async def virsh(uri: str, arguments: list[str], timeout: float) -> str:
    """Run one virsh, and return what it prints.

    Args:
        uri: of the libvirt.
        arguments: its command, and that one's arguments; or several commands in one argument,
            ``;`` between them, of which the last tells whether it went well.
        timeout: seconds; then it is killed.

    Raises:
        LibvirtSilentError: it was not done in time.
        LibvirtRefusedError: it failed, or could not be started.
    """
    try:
        with trio.fail_after(timeout):
            finished = await trio.run_process(
                [PROGRAM, "--quiet", "--connect", uri, *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
    except trio.TooSlowError:
        raise LibvirtSilentError(f"libvirt did not answer within {timeout:g} s") from None
    except OSError as error:
        raise LibvirtRefusedError(f"virsh can't be run: {error.strerror}") from error
    if finished.returncode != 0:
        said = " ".join(finished.stderr.decode(errors="replace").split())
        raise LibvirtRefusedError(said.removeprefix("error: ")[:MESSAGE_MAX] or "virsh failed")
    return finished.stdout.decode(errors="replace")


async def virsh_events(uri: str, heard: Callable[[], None]) -> None:
    """Listen to what libvirt tells of domains that start and end, for as long as it can be heard.

    Args:
        uri: of the libvirt.
        heard: called when there was something.
    """
    command = [PROGRAM, "--quiet", "--connect", uri, "event", "--event", "lifecycle", "--loop"]
    try:
        async with trio.open_nursery() as nursery:
            run = partial(
                trio.run_process,
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
                start_new_session=True,
            )
            process: trio.Process = await nursery.start(run)
            assert process.stdout is not None
            async for _ in process.stdout:
                heard()
    except* OSError:
        pass  # there is no virsh, which is told of where it is asked
