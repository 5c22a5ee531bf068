"""Looks up a system in libosinfo's database by osinfo-query(1), where that is installed."""

import os
import subprocess
from typing import Final

import trio

from panicd.rules.guest_system import GuestSystem, parse_osinfo

PROGRAM: Final = "osinfo-query"
ANSWERS_WITHIN: Final = 10.0  # seconds; osinfo-query reads the whole database in some 0.3 s


async def look_up(id_: str) -> GuestSystem | None:
    """Return osinfo-db's facts about a system; None without osinfo-query, or without such facts.

    Args:
        id_: libosinfo's id, a URL, or its short id, such as ``debian11``.
    """
    column = "id" if "://" in id_ else "short-id"
    command = [PROGRAM, "os", "--fields=id,name,family,release-date", f"{column}={id_}"]
    try:
        with trio.fail_after(ANSWERS_WITHIN):
            finished = await trio.run_process(
                command,
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                check=False,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
    except (OSError, trio.TooSlowError):
        return None
    return parse_osinfo(finished.stdout.decode(errors="replace"))
