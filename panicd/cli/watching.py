"""``panicd status --watch``: the same again and again, one window at a time."""

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from panicd.cli.render_status import window
from panicd.host import terminal
from panicd.host.terminal import line
from panicd.service.control_client import Answer, DaemonUnreachableError, RefusedError

WATCH_EVERY: Final = 1.0  # seconds
_WINDOW: Final = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor (xterm's ctlseqs)
_BACK: Final = "\x1b[?25h\x1b[?1049l"
_NEXT: Final = {" ", "n", "j", "\x1b[6~", "\x1b[B", "\x1b[C"}
_BEFORE: Final = {"b", "p", "k", "\x1b[5~", "\x1b[A", "\x1b[D"}
_QUIT: Final = {"q", "Q", "\x03", "\x04"}
_KEY: Final = re.compile(r"\x1b\[[0-9]*[A-Z~]|.", re.DOTALL)


def show_again(ask: Callable[[], Answer]) -> None:
    """Show what ``panicd status`` shows, anew every second, until it is interrupted."""
    try:
        if terminal.console.is_terminal:
            _show_windows(ask)
        while True:
            lines, _ = window(ask(), None)
            terminal.console.print(*lines, "")
            time.sleep(WATCH_EVERY)
    except KeyboardInterrupt:
        sys.exit(0)


def _show_windows(ask: Callable[[], Answer]) -> None:
    pages = [0]  # the first domain of each page so far; the last page is shown
    with ExitStack() as stack:
        stack.enter_context(_whole_window())
        keys = stack.enter_context(_keys())
        while True:
            shown, of = _show(ask, pages[-1])
            typed = _KEY.findall(keys())
            if _QUIT.intersection(typed):
                sys.exit(0)
            turned = sum((key in _NEXT) - (key in _BEFORE) for key in typed)
            if turned > 0 and pages[-1] + shown < of:
                pages.append(pages[-1] + shown)
            elif turned < 0 and len(pages) > 1:
                pages.pop()
            elif "g" in typed or pages[-1] >= of:
                pages = [0]


def _show(ask: Callable[[], Answer], first: int) -> tuple[int, int]:
    """Fill the window; return how many domains it shows, and how many there are."""
    height = terminal.console.height or 24
    try:
        answer = ask()
    except (DaemonUnreachableError, RefusedError) as error:
        lines, shown, of = [line((str(error), "red"))], 0, 0
    else:
        of = len(answer["domains"])
        lines, shown = window(answer, height - 1, first)
    written = [*terminal.console.lines(lines)][: height - 1]
    written.append(f"{time.strftime('%H:%M:%S %Z')}  space, b: page   q: quit")
    text = "\n".join(f"{each}\x1b[K" for each in written)
    terminal.console.file.write(f"\x1b[H{text}\x1b[J")
    terminal.console.file.flush()
    return shown, of


@contextmanager
def _whole_window() -> Iterator[None]:
    terminal.console.file.write(_WINDOW)
    try:
        yield
    finally:
        terminal.console.file.write(_BACK)
        terminal.console.file.flush()


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Yield a function that waits up to a second for keys and returns them, or nothing."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin)
    try:
        yield lambda: _key(stdin)
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _key(stdin: int) -> str:
    ready, _, _ = select.select([stdin], [], [], WATCH_EVERY)
    if not ready:
        return ""
    return os.read(stdin, 16).decode(errors="replace") or "q"  # at its end nobody is there


def _no_key() -> str:
    time.sleep(WATCH_EVERY)
    return ""
