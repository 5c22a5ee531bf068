"""Tells others of incidents: by a webhook, by a command.

A notification is written to the journal with the entry that it tells of, and removed when it was
accepted. So a restart loses none; one that was accepted just before may come twice, with the same
id. Whoever acts on a panic neither waits for this nor knows of it. Each channel delivers one
notification at a time. If a receiver fails, panicd tries ever less often; what was tried least
goes first.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import reduce
from typing import Final
from urllib.parse import quote

import trio

from panicd.config.config import Config
from panicd.config.web import WebConfig
from panicd.host.logs import get_logger
from panicd.host.problems import Problems
from panicd.incident.records import incident_view
from panicd.journal.chronicle import Clock
from panicd.journal.journal import Journal, JournalError
from panicd.journal.outbox import Pending
from panicd.notify.delivery import DeliveryError
from panicd.notify.hook import run_hook
from panicd.notify.webhook import post
from panicd.qemu.threads import NoThreadError, needing_a_thread
from panicd.rules.incident import Incident, Opened, apply
from panicd.rules.notification import Notice, notice_of
from panicd.rules.printable import escape

FIRST_DELAY: Final = 1.0  # seconds after the first failure; doubled with each further one
LONGEST_DELAY: Final = 300.0  # seconds
AMISS_AFTER: Final = 60.0  # seconds that a notification waits until `status` says so
AMISS: Final = "notifications have waited for more than a minute; the log says why"
TYPE_PREFIX: Final = "panicd.incident."


class Channel(StrEnum):
    """How somebody is told."""

    WEBHOOK = "webhook"
    HOOK = "hook"


@dataclass(frozen=True, slots=True)
class Message:
    """A notification.

    Attributes:
        id: the same each time it is sent.
        notice: what it is about.
        at: when the entry that it tells of was made, in seconds since the epoch.
        incident: as it stood then.
        dry_run: panicd only decided, and did nothing.
    """

    id: str
    notice: Notice
    at: float
    incident: Incident
    dry_run: bool = False

    def body(self) -> bytes:
        """Return it as JSON."""
        told = {"id": self.id, "notice": self.notice, "at": self.at, "dry_run": self.dry_run}
        return json.dumps({**told, "incident": incident_view(self.incident)}).encode()

    def headers(self, host: str) -> dict[str, str]:
        """Return it as CloudEvents 1.0 has it in HTTP's binary mode; without guest output."""
        return {
            "Content-Type": "application/json",
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-source": f"//{quote(host, safe='')}/panicd",
            "ce-type": f"{TYPE_PREFIX}{self.notice}",
            "ce-subject": self.incident.id,
            "ce-time": datetime.fromtimestamp(self.at, UTC).isoformat().replace("+00:00", "Z"),
        }

    def environment(self, page: str) -> dict[str, str]:
        """Return it as environment variables for a command; names are made printable."""
        incident, decision = self.incident, self.incident.decision
        return {
            "PANICD_NOTIFICATION": self.id,
            "PANICD_NOTICE": self.notice,
            "PANICD_INCIDENT": incident.id,
            "PANICD_DOMAIN": escape(incident.opened.domain),
            "PANICD_UUID": escape(incident.opened.uuid),
            "PANICD_STATE": incident.state,
            "PANICD_ACTION": decision.effective if decision else "",
            "PANICD_REASON": decision.reason if decision else "",
            "PANICD_ENDING": incident.closed.ending if incident.closed else "",
            "PANICD_SIGNATURE": incident.signature.hash if incident.signature else "",
            "PANICD_DRY_RUN": "yes" if self.dry_run else "",
            "PANICD_PAGE": page,
        }


Send = Callable[[Message], Awaitable[None]]
"""Delivers a message, or raises ``DeliveryError``."""


@dataclass(slots=True)
class _Work:
    """What one channel remembers between deliveries.

    Attributes:
        failures: how often each was tried in vain since the daemon's start.
        taken: those that were accepted, and are still to be removed from the journal.
    """

    failures: Counter[Pending] = field(default_factory=Counter)
    taken: set[Pending] = field(default_factory=set)


class Notifier:
    """Delivers notifications.

    Args:
        journal: has them.
        config: returns the configuration in force.
        clock: returns the time, in seconds since the epoch.
        problems: is told when notifications wait for long.
        dry_run: panicd only decides, and does nothing.
    """

    def __init__(
        self,
        journal: Journal,
        config: Callable[[], Config],
        clock: Clock,
        problems: Problems,
        *,
        dry_run: bool,
    ) -> None:
        self._dry_run = dry_run
        self._journal = journal
        self._config = config
        self._clock = clock
        self._problems = problems
        self._host = os.uname().nodename
        self._listens = config().metrics_listen  # as long as it runs
        self._bell = trio.Event()
        journal.on_notification = self._ring
        self.reload()

    def reload(self) -> None:
        """Take over a new configuration."""
        self._journal.channels = tuple(c for c in Channel if self._sender(c) is not None)
        self._ring()

    async def run(self) -> None:
        """Deliver, for as long as the daemon runs."""
        async with trio.open_nursery() as nursery:
            for channel in Channel:
                nursery.start_soon(self._serve, channel)

    def _ring(self) -> None:
        """Wake up whoever waits for something to deliver."""
        self._bell.set()
        self._bell = trio.Event()

    def _sender(self, channel: Channel) -> Send | None:
        notify = self._config().notify
        match channel:
            case Channel.WEBHOOK if notify.webhook is not None:
                webhook = notify.webhook
                return lambda message: post(webhook, message.headers(self._host), message.body())
            case Channel.HOOK if notify.hook is not None:
                hook = notify.hook
                page = page_address(self._listens, self._config().web, self._host)
                return lambda message: run_hook(hook, message.environment(page), message.body())
        return None

    async def _serve(self, channel: Channel) -> None:
        """Deliver by one channel, one at a time."""
        work = _Work()
        in_a_row = 0
        while True:
            bell = self._bell  # taken before the look: whatever comes later rings it
            try:
                with needing_a_thread():
                    idle = not await self._deliver_next(channel, work)
            except (DeliveryError, JournalError, NoThreadError) as error:
                get_logger().warning(
                    "notification not delivered", channel=channel, problem=str(error)
                )
                in_a_row += 1
                with trio.move_on_after(_delay(in_a_row)):
                    await bell.wait()
            else:
                in_a_row = 0
                if idle:
                    await bell.wait()

    async def _deliver_next(self, channel: Channel, work: "_Work") -> bool:
        """Deliver the oldest of those that were tried least; return whether there was any.

        Raises:
            DeliveryError: it was not accepted.
            JournalError: panicd could not read or write the journal.
        """
        for done in tuple(work.taken):
            await self._journal.delivered(channel, done)
            work.taken.discard(done)
        waiting = await trio.to_thread.run_sync(self._journal.pending, channel)
        if not waiting:
            work.failures.clear()
            self._problems.end(_place(channel))
            return False
        send = self._sender(channel)
        if send is None:
            await self._journal.drop_other_channels()
            return False
        pending = min(waiting, key=lambda each: (work.failures[each], each))
        try:
            message = await trio.to_thread.run_sync(self._load, pending)
            if message is not None:
                await self._send(channel, send, message)
        except (DeliveryError, JournalError):
            work.failures[pending] += 1
            raise
        work.taken.add(pending)
        return True

    async def _send(self, channel: Channel, send: Send, message: Message) -> None:
        log = get_logger(channel=channel, id=message.id, notice=message.notice)
        try:
            await send(message)
        except DeliveryError as error:
            waited = self._clock() - message.at
            if waited > AMISS_AFTER:
                self._problems.begin(_place(channel), AMISS, bearable=True)
            if waited <= self._config().notify.retry_for:
                raise
            log.warning("notification given up", problem=str(error))
        else:
            log.info("notification delivered")

    def _load(self, pending: Pending) -> Message | None:
        """Return a notification; None if its incident was removed meanwhile. Blocking."""
        history = self._journal.history(pending.incident)
        if pending.position >= len(history):
            return None
        opened, entry = history[0], history[pending.position]
        assert isinstance(opened, Opened)
        incident = Incident(pending.incident, opened)
        before = reduce(apply, history[1 : pending.position], incident)
        notice = notice_of(before, entry)
        assert notice is not None
        after = apply(before, entry)
        return Message(message_id(pending), notice, entry.at, after, self._dry_run)


def page_address(listens: tuple[str, int] | None, web: WebConfig, host: str) -> str:
    """Return the address of panicd's page by its host's name; empty where it is not known."""
    if listens is None or not listens[1]:
        return ""
    scheme = "http" if web.tls is None else "https"
    return f"{scheme}://{host}:{listens[1]}"


def _place(channel: Channel) -> str:
    return f"notify.{channel}"


def message_id(pending: Pending) -> str:
    """Return a notification's id: the same each time it is sent."""
    return f"{pending.incident}.{pending.position}"


def _delay(in_a_row: int) -> float:
    """Return how long to wait after so many failures, at random, so that daemons spread out."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (min(in_a_row, 20) - 1))
    return random.SystemRandom().uniform(longest / 2, longest)
