"""QEMU's own view of its panicked guest: a picture of the screen, the registers, QEMU's state.

It is taken by plain calls, one for each answer: a task would have to be woken for each, which takes
longer than QEMU's part. QEMU carries out commands in their order. So once it was asked for all of
this, it deals with that before any later command.

QEMU gets the writing end of a pipe, and no file: whoever has a file can fill its disk for as long
as they live. panicd keeps what comes through the pipe in memory, up to the size of a screen.

``/dev/fdset/N``, QEMU's own name for a descriptor that it got, can't be used: QEMU truncates what
it opens there (ftruncate(2)), and a pipe can't be truncated. Its name in /proc can be used. There
the pipe's mode counts, because QEMU may run as another user. panicd does not wait for the end of
the file, because QEMU closes the members of an fd set only when its guest runs: its answer says
that it has written everything.

Sources: QAPI ``screendump`` (``qapi/ui.json``), ``add-fd`` and ``remove-fd`` (``qapi/misc.json``);
QEMU ``util/osdep.c``, ``monitor/fds.c``; proc(5), pipe(7); QEMU's human monitor for ``info
registers``.
"""

import fcntl
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from panicd.evidence.screen import SIGNATURES, Picture
from panicd.host.timers import Timer, Timers
from panicd.qemu.monitor import Command, CommandError, MonitorError
from panicd.qemu.pending import Question
from panicd.qemu.session import Session
from panicd.rules.capability import Version

PNG_SINCE: Final[Version] = (7, 1, 0)
ALL_REGISTERS_SINCE: Final[Version] = (2, 10, 0)
WITHIN: Final = 5.0  # seconds, for all of it
LOOKS_AFTER: Final = 0.002  # seconds in which a picture that fits into the pipe may come
LOOKS_EVERY: Final = 0.02  # seconds at most, while QEMU draws
LARGE_PIPE: Final = 1 << 20  # bytes (/proc/sys/fs/pipe-max-size), for a picture that takes longer
WRITABLE: Final = 0o622  # by QEMU's user; only who already has it can find it in /proc
NO_CONSOLE: Final = "There is no console"  # QEMU, ui/console.c, qmp_screendump
NO_SCREEN: Final = "the VM has no screen"
NO_PICTURE: Final = "what QEMU wrote is no picture"
NO_FD: Final = -1
QUERIES: Final = (
    "query-status",
    "query-version",
    "query-current-machine",
    "query-kvm",
    "query-cpus-fast",
    "query-memory-size-summary",
    "query-memory-devices",
    "query-balloon",
    "query-iothreads",
    "query-migrate",
    "query-chardev",
    "query-block-jobs",
    "query-blockstats",
)
# Asks the images too, and so may wait for storage: last, as QEMU answers nobody meanwhile.
BLOCK_QUERY: Final = "query-block"


class QemuView:
    """QEMU's view of its guest, while it is taken.

    Args:
        session: the VM.
        timers: keep the time limit.
        asked: called once QEMU was asked for everything.
        done: called after that, once everything came or will not come.

    Attributes:
        picture: of the screen, in the format ``kind``; or why there is none.
        kind: ``png`` (QEMU 7.1 and later) or ``ppm``.
        registers: of all CPUs; or why there are none.
        state: QEMU's answers by command, or errors.
        devices: QEMU's block devices; or why they are not known.
    """

    def __init__(
        self,
        session: Session,
        timers: Timers,
        *,
        asked: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self.kind = "png" if session.capability.version >= PNG_SINCE else "ppm"
        self.picture: bytes | Exception = OSError("QEMU was not asked for it")
        self.registers: object = None
        self.state: dict[str, object] = {}
        self.devices: object = None
        self._session = session
        self._timers = timers
        self._asked = asked
        self._done = done
        self._drawn = Picture()
        self._pipe = self._writing = NO_FD
        self._questions: list[Question] = []
        self._answers: list[object] | None = None
        self._is_asked = False
        self._limit: Timer | None = None
        self._look: Timer | None = None
        self._seconds = 0.0

    def begin(self, seconds: float) -> None:
        """Take it, within so many seconds."""
        self._seconds = min(seconds, WITHIN)
        self._limit = self._timers.after(self._seconds, self.give_up)
        try:
            self._pipe, self._writing = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._pipe, False)  # QEMU's end shall block
            os.fchmod(self._writing, WRITABLE)
        except OSError as error:
            self._ask(error)
            return
        add: Command = ("add-fd", {})
        ask, seconds = self._session.qmp.ask_with_fd, self._seconds
        self._questions.append(ask(add, self._writing, self._handed_over, timeout=seconds))

    def give_up(self) -> None:
        """Wait no longer for what has not come."""
        for question in list(self._questions):
            question.give_up()
        for question in self._questions:  # the first one's end leads to another
            question.give_up()

    def _handed_over(self, answers: list[object]) -> None:
        (answer,) = answers
        match answer:
            case MonitorError():
                self._ask(answer)
            case {"fd": int(file), "fdset-id": int(fdset)}:
                arguments = {"filename": f"/proc/self/fd/{file}"}
                arguments |= {"format": self.kind} if self.kind == "png" else {}
                remove: Command = ("remove-fd", {"fdset-id": fdset})
                self._ask(None, [("screendump", arguments), remove])
            case _:
                self._ask(OSError("QEMU's answer to add-fd makes no sense"))

    def _ask(self, problem: Exception | None, draw: Sequence[Command] = ()) -> None:
        """Have QEMU draw its screen if nothing prevents that, and tell its state behind that."""
        self.picture = problem or self.picture
        self._close_writing()
        every = self._session.capability.version >= ALL_REGISTERS_SINCE
        registers = "info registers -a" if every else "info registers"
        commands: list[Command] = [
            *draw,
            ("human-monitor-command", {"command-line": registers}),
            *((name, {}) for name in (*QUERIES, BLOCK_QUERY)),
        ]
        question = self._session.monitor.ask(commands, self._answered, timeout=self._seconds)
        self._questions.append(question)
        if not question.is_over and draw:
            self._look_later(LOOKS_AFTER)
        self._is_asked = True
        self._asked()
        if self._answers is not None:
            self._finish(self._answers)

    def _look_later(self, after: float) -> None:
        self._look = self._timers.after(after, partial(self._look_at_pipe, after))

    def _look_at_pipe(self, after: float) -> None:
        """Take what QEMU has drawn so far, as the pipe may be full."""
        try:
            if after == LOOKS_AFTER:
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, LARGE_PIPE)
        except OSError:
            pass  # a user's pipes are limited in all: it takes longer
        try:
            came = self._drawn.take(self._pipe)
        except OSError as error:
            self.picture = error
            self._close_pipe()
        else:
            self._look_later(2 * LOOKS_AFTER if came else min(2 * after, LOOKS_EVERY))

    def _answered(self, answers: list[object]) -> None:
        self._answers = answers
        if self._is_asked:
            self._finish(answers)

    def _finish(self, answers: list[object]) -> None:
        for timer in (self._limit, self._look):
            if timer is not None:
                timer.cancel()
        *drawn, self.registers = answers[: -len(QUERIES) - 1]
        *state, self.devices = answers[-len(QUERIES) - 1 :]
        self.state = dict(zip(QUERIES, state, strict=True))
        if drawn and self._pipe != NO_FD:
            self.picture = self._picture(drawn[0])
        self._close_pipe()
        self._done()

    def _picture(self, answer: object) -> bytes | Exception:
        """Return what QEMU drew, or why that is no picture."""
        if isinstance(answer, CommandError) and NO_CONSOLE in answer.description:
            return OSError(NO_SCREEN)
        if isinstance(answer, MonitorError):
            return answer
        try:
            self._drawn.take(self._pipe)
        except OSError as error:
            return error
        data = self._drawn.data
        return data if data.startswith(SIGNATURES[self.kind]) else OSError(NO_PICTURE)

    def _close_writing(self) -> None:
        if self._writing != NO_FD:
            os.close(self._writing)
            self._writing = NO_FD

    def _close_pipe(self) -> None:
        if self._pipe != NO_FD:
            os.close(self._pipe)
            self._pipe = NO_FD
