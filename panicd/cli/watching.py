"""``panicd status --watch``: the same, again and again."""

import time
from collections.abc import Callable
from typing import Final

from rich.console import Group
from rich.live import Live

from panicd.cli.render import console, status_parts
from panicd.service.control_client import Answer

WATCH_EVERY: Final = 1.0  # seconds


def show_again(ask: Callable[[], Answer]) -> None:
    """Show what ``panicd status`` shows, anew every second, until interrupted."""
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(Group(*status_parts(ask())), refresh=True)
            time.sleep(WATCH_EVERY)
