"""Asks libvirt by virsh(1): a process of its own for each question, with a time limit.

A process and not libvirt's library: a call into the library blocks its thread until libvirtd
answers and can't be given up, and its Python binding has to be compiled. virsh takes some 20 ms,
comes with libvirt, and can be killed.
"""

import os
import subprocess
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
