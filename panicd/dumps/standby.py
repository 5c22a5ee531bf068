"""Keeps a process ready that filters a dump before there is one, because a guest is down meanwhile.

Python takes some 10 ms of a processor to start, and 7 ms to import what the ELF filter needs. QEMU
writes a kdump of 1 GiB of empty memory in 17 ms, and waited for the filter as long again. So where
a domain's policy asks for a dump, one process has done all that before (``filter.stand_by``).
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final, Self

from panicd.dumps.filter.stand_by import SEPARATOR
from panicd.dumps.own_program import ONE_THREAD, own_program

ELF_FILTER: Final = "panicd.dumps.filter.elf_filter"
STAND_BY: Final = "panicd.dumps.filter.stand_by"
_PATIENCE: Final = 5.0  # seconds for a killed process to end; a dead disk may hold it


class Filter:
    """A filter that has begun, from the process that stood by; it is used as a ``Popen`` is.

    Args:
        process: the process.
        orders: the socket to it.
        stdin: the filter's input.
        ended: gets the process when it has ended, or is about to end.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        orders: socket.socket,
        stdin: IO[bytes],
        ended: Callable[[subprocess.Popen[bytes]], None],
    ) -> None:
        self.stdin = stdin
        self._process = process
        self._orders = orders
        self._ended = ended

    def kill(self) -> None:
        """Kill it; see ``Popen.kill``."""
        self._process.kill()

    def wait(self) -> int:
        """Wait until it has written everything, and return its exit status; see ``Popen.wait``."""
        with suppress(OSError):  # it was killed
            if status := self._orders.recv(1):
                return status[0]
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # it has written everything, or nobody wants it
        with suppress(OSError):
            self.stdin.close()
        self._orders.close()
        self._ended(self._process)


class Standby:
    """Keeps one process ready, once somebody wants it. Any thread may call it."""

    def __init__(self) -> None:
        self._renewing = threading.Lock()
        self._lock = threading.Lock()  # held for no wait: who gives a dump up may wait for it
        self._is_wanted = False
        self._ready: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._ending: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process that stands by; none will any more."""
        with self._lock:
            self._is_wanted = False
            self._let_go()
        self._reap()

    def want(self) -> None:
        """Have a process stand by from now on; the first call takes a millisecond or two.

        It starts no thread: one that ends leaves its stack, on which another may start and then
        find no memory, and whoever started that one would wait for it for ever.
        """
        if not self._is_wanted:
            self._is_wanted = True
            self.renew()

    def renew(self) -> None:
        """Start a process, if it is wanted and none stands by; wait for those that end."""
        with self._renewing:
            with self._lock:
                if self._ready is not None and self._ready[0].poll() is not None:
                    self._let_go()
                is_needed = self._is_wanted and self._ready is None
            if is_needed:
                with suppress(OSError, MemoryError):  # a dump can do without
                    started = _start()
                    with self._lock:
                        self._ready = started
                        if not self._is_wanted:
                            self._let_go()
            self._reap()

    def take(self, arguments: list[str], output: int) -> Filter | None:
        """Have the process filter a dump; None: none stands by.

        Args:
            arguments: of ``filter.elf_filter``.
            output: the file that it writes.

        Raises:
            OSError: no file descriptor is left.
        """
        with self._lock:
            if self._ready is None:
                return None
            source, target = os.pipe2(os.O_CLOEXEC)
            (process, orders), self._ready = self._ready, None
        filtering = Filter(process, orders, os.fdopen(target, "wb", buffering=0), self._ends)
        try:
            said = SEPARATOR.join(arguments).encode(errors="surrogateescape")
            socket.send_fds(orders, [said], [source, output])
        except OSError:  # it has died, or the message is too long
            with filtering:
                return None
        finally:
            os.close(source)
        return filtering

    def _ends(self, process: subprocess.Popen[bytes]) -> None:
        self._ending.append(process)

    def _let_go(self) -> None:
        if self._ready is not None:
            (process, orders), self._ready = self._ready, None
            process.kill()
            orders.close()
            self._ends(process)

    def _reap(self) -> None:
        """Take leave of those that end."""
        with suppress(IndexError):  # several threads may be at it
            while True:
                with suppress(subprocess.TimeoutExpired):
                    self._ending.pop().wait(_PATIENCE)


@dataclass(frozen=True, slots=True)
class DumpHost:
    """What a dump owes to its host, and has of it.

    Attributes:
        give_way: called before each part that is moved, in the writer's thread; may wait a moment.
        standby: has a filter ready; None: each is started when it is needed.
    """

    give_way: Callable[[], None] = lambda: None
    standby: Standby | None = None

    def start(
        self, program: Sequence[str], output: int | IO[bytes], given: int | None
    ) -> subprocess.Popen[bytes] | Filter:
        """Start a filter, or take the one that stands by.

        Args:
            program: its module and its arguments.
            output: what it writes.
            given: another descriptor that it gets, under its number.

        Raises:
            OSError: it can't be started.
        """
        module, *arguments = program
        if self.standby is not None and module == ELF_FILTER and isinstance(output, int):
            taken = self.standby.take(arguments, output)
            if taken is not None:
                return taken
        return subprocess.Popen(
            own_program(*program),
            stdin=subprocess.PIPE,
            stdout=output,
            bufsize=0,
            cwd="/",
            env=os.environ | ONE_THREAD,
            pass_fds=() if given is None else (given,),
            process_group=0,  # a terminal's Ctrl-C is panicd's, which keeps or gives up the dump
        )

    def renew(self) -> None:
        """Have a filter stand by for the next dump."""
        if self.standby is not None:
            self.standby.renew()


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                own_program(STAND_BY, str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=os.environ | ONE_THREAD,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # see above
            )
        except BaseException:
            ours.close()
            raise
    return process, ours
