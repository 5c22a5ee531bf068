"""A guest's own time to handle its panic: what it does in it, and what comes when it is over."""

from typing import Final

from panicd.chronicle import Chronicle
from panicd.fleet import Domain
from panicd.qemu.event_buffer import Heard
from panicd.qemu.session import Session
from panicd.responder import Responder
from panicd.rules.incident import Ending, Observed, Source
from panicd.rules.qapi import (
    GuestCrashloadedEvent,
    GuestPanickedEvent,
    PanicAction,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
)

# QAPI ShutdownCause (4.0 and later): how a guest ends by itself. With reboot=shutdown a reset does.
_ENDED_ITSELF: Final = {
    "guest-shutdown": Ending.GUEST_SHUTDOWN,
    "guest-reset": Ending.GUEST_RESET,
}


class OwnTime:
    """Looks on while the guest of a connected domain handles its panic itself.

    Args:
        domain: which it is.
        session: its connection.
        responder: responds to its panics.

    Attributes:
        over: it is over, and a panic is to stop the guest again: its policy is to be applied anew.
    """

    def __init__(
        self,
        domain: Domain,
        session: Session,
        responder: Responder,
    ) -> None:
        self._domain = domain
        self._session = session
        self._responder = responder
        self.over = False
        self._crashloaded_in = ""  # the incident in which that was said already

    @property
    def until(self) -> float | None:
        """Until when the guest is left to itself, in seconds since the epoch; None: it is not."""
        chronicle = self._domain.chronicle
        return chronicle.incident.watched_until if chronicle is not None else None

    async def wait(self) -> None:
        """Wait for an event and take it, or have the policy applied when the time is over."""
        left = max(0.0, (self.until or 0.0) - self._chronicle.now)
        if await self._session.wait_event(left):
            await self._session.next_event()
        else:
            await self._end("no reset was seen in its time")

    async def take(self, heard: Heard) -> bool:
        """Deal with an event; return whether there is nothing more to do about it."""
        if isinstance(heard.event, GuestCrashloadedEvent):
            return await self._crashloaded(heard.event)
        if self._domain.chronicle is not None and self._chronicle.incident.runs_unproven:
            return await self._goes_on(heard)
        if self.until is None:
            return False
        match heard.event:
            case GuestPanickedEvent(action=action):
                await self._panicked(heard, action)
            case ResetEvent(guest=guest, reason=reason):
                # Before 4.0 nothing tells who reset it: it is taken for the guest itself.
                by_guest = guest or not reason
                if by_guest:
                    await self._close(Ending.GUEST_RESET)
                else:
                    self.over = True
                    await self._responder.reset_by_others()
            case ShutdownEvent(reason=reason) if reason in _ENDED_ITSELF:
                await self._close(_ENDED_ITSELF[reason], f"shutdown, {reason}")
            case StopEvent() if await self._session.query_status() is RunState.SHUTDOWN:
                await self._close(Ending.GUEST_SHUTDOWN, "guest stopped, run state shutdown")
            case ResumeEvent():
                pass  # somebody had paused it
            case _:
                return False
        return True

    @property
    def _chronicle(self) -> Chronicle:
        assert self._domain.chronicle is not None
        return self._domain.chronicle

    async def _crashloaded(self, event: GuestCrashloadedEvent) -> bool:
        """Follow a guest that handles its panic by kdump; flooding it adds nothing."""
        if self._domain.chronicle is None:
            run_state = self._session.run_state
            await self._responder.open(Source.KDUMP, event.information, run_state)
        elif self._chronicle.incident.id != self._crashloaded_in:
            self._crashloaded_in = self._chronicle.incident.id
            return False
        if self._domain.chronicle is not None:
            self._crashloaded_in = self._chronicle.incident.id
        return True

    async def _goes_on(self, heard: Heard) -> bool:
        """Take an event of a guest that may have reset itself unseen: a panic is a new one."""
        if isinstance(heard.event, GuestPanickedEvent):
            await self._responder.close(Ending.RAN_ON)
        return isinstance(heard.event, ResumeEvent)

    async def _panicked(self, heard: Heard, action: PanicAction) -> None:
        self._chronicle.repeat(heard.count)
        await self._chronicle.commit()
        if action is PanicAction.PAUSE:
            self._responder.heard_at = heard.at
            await self._end("it is stopped by a panic again")

    async def _end(self, why: str) -> None:
        self.over = True
        await self._responder.end_watch(why)

    async def _close(self, ending: Ending, what: str = "") -> None:
        if what:
            self._chronicle.note(Observed(self._chronicle.now, what))
        self.over = True
        await self._responder.close(ending)
