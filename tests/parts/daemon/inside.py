"""A daemon in the test's own process."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import structlog
import trio

from panicd.config.config import Config, load
from panicd.host import logs
from panicd.service.daemon import Daemon
from tests.parts.background import background
from tests.parts.daemon.observed import TIME_LIMIT, ObservedDaemon
from tests.parts.patience import fail_after


class DaemonInside(ObservedDaemon):
    """The daemon in the test's own process: it starts in milliseconds, and can be monkeypatched.

    Its limits: if the test fakes its monitors, the daemon's own process is at their other end, so
    nothing can be tested on it that goes by process id. It also gets no signals.
    """

    @classmethod
    @asynccontextmanager
    async def start(
        cls, directory: Path, *arguments: Any, time_limit: float = TIME_LIMIT, **keywords: Any
    ) -> AsyncIterator[Self]:
        """Run a daemon until this ends; arguments as for :meth:`RunningDaemon.start`."""
        daemon = cls(directory, *arguments, **keywords)
        try:
            with fail_after(time_limit), daemon._logging(), _switch_interval_kept():
                inside = _StoppableDaemon(
                    daemon.config_file, load(daemon.config_file), dry_run=False
                )
                async with background() as nursery:
                    nursery.start_soon(inside.run_and_tell)
                    await daemon.wait_log("configuration in force")
                    yield daemon
                    inside.stop.set()
                    await inside.stopped.wait()
        except BaseException as error:
            error.add_note(daemon.last_words())
            raise
        finally:
            daemon._remove_runtime()
        daemon._check_journal()

    @contextmanager
    def _logging(self) -> Iterator[None]:
        before = structlog.get_config()
        processors = [structlog.processors.add_log_level, logs._clean_event, self._take_event]
        structlog.configure(processors=processors)
        try:
            yield
        finally:
            structlog.configure(**before)

    def _take_event(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        # What the program would write, and read back.
        line = json.loads(json.dumps({"timestamp": _now(), **event}, default=str))
        self._take(line)
        raise structlog.DropEvent


class _StoppableDaemon(Daemon):
    def __init__(self, config_file: Path, config: Config, *, dry_run: bool) -> None:
        super().__init__(config_file, config, dry_run=dry_run)
        self.stop, self.stopped = trio.Event(), trio.Event()

    async def run_and_tell(self) -> None:
        await self.run()
        self.stopped.set()

    async def _until_told_to_stop(self, _signals: AsyncIterator[int]) -> None:
        await self.stop.wait()


@contextmanager
def _switch_interval_kept() -> Iterator[None]:
    interval = sys.getswitchinterval()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _now() -> str:
    return datetime.now(UTC).isoformat()
