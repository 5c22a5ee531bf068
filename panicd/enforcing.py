"""``enforce: true``: a panicked guest that somebody else resumed is stopped again, a few times."""

from contextlib import suppress
from typing import Final

from panicd.chronicle import Chronicle
from panicd.qemu.monitor import CommandError
from panicd.qemu.session import Session
from panicd.rules.incident import Ending, Enforced
from panicd.rules.qapi import RunState

ENFORCED_AT_MOST: Final = 3  # times that a guest is stopped again in one incident

_STOPPED: Final = {RunState.PAUSED, RunState.GUEST_PANICKED}  # the latter: it panicked once more


async def stop_again(session: Session, chronicle: Chronicle) -> Ending | None:
    """Stop a guest that somebody else let run (QMP ``stop``), if that was not done too often.

    Args:
        session: the VM.
        chronicle: of its open incident; each time is noted before it is done.

    Returns:
        None: it is stopped, and still the guest that panicked. Else how its incident ends.

    Raises:
        MonitorError: the monitor failed.
        JournalError: it can't be noted, and is not to be done without.
    """
    resets = session.seen.resets
    while chronicle.incident.enforced < ENFORCED_AT_MOST:
        chronicle.note(Enforced(chronicle.now))
        await chronicle.commit()
        await session.drain()  # that took a moment: it may have been reset since
        if session.seen.resets == resets:
            with suppress(CommandError):  # its run state tells what became of it
                await session.execute("stop")
            await session.query_status()
            await session.drain()
        if session.seen.resets > resets:
            return Ending.GUEST_RESET if session.seen.reset_by_guest else Ending.FOREIGN_RESET
        if session.run_state in _STOPPED:
            return None
        if not session.run_state.executes:
            break
    return Ending.FOREIGN_RESUME
