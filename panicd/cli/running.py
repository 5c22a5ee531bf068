"""``panicd run``: the daemon itself."""

from collections.abc import Iterator

import click
import trio

from panicd.cli.base import Context, fail
from panicd.cli.configured import load
from panicd.config.config import ConfigError
from panicd.host.logs import configure, last_words
from panicd.journal.journal import JournalError
from panicd.service.control import ControlSocketError
from panicd.service.daemon import Daemon
from panicd.web.http import HttpBindError


@click.command()
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Log entries of this severity and above.",
)
@click.option(
    "--dry-run", is_flag=True, help="Decide, record and report, but do nothing to any VM."
)
@click.pass_obj
def run(context: Context, log_level: str, dry_run: bool) -> None:
    """Run the daemon, in the foreground.

    It logs to standard error, one JSON object a line, or to systemd's journal. SIGHUP makes it read
    its configuration again. SIGTERM stops it; guests stay armed.
    """
    config = load(context.config_file)
    configure(level=log_level)
    problems: list[str] = []
    try:
        with last_words():
            daemon = Daemon(context.config_file, config, dry_run=dry_run)
            trio.run(daemon.run)
    except* (ConfigError, ControlSocketError, HttpBindError, JournalError, OSError) as errors:
        problems += map(str, _leaves(errors))
    if problems:  # an exception that is raised within except* comes out in a group
        fail("; ".join(problems))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Return the exceptions that nested groups hold."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
