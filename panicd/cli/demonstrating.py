"""``panicd demo``: the guests that panic, for people to look at."""

import click

from panicd.demo.keeping import keep as keep_running
from panicd.demo.story import tell


@click.command()
@click.option(
    "--keep",
    is_flag=True,
    help="Start three VMs and a daemon for you to try the commands on, until Ctrl-C.",
)
@click.pass_context
def demo(context: click.Context, keep: bool) -> None:
    """Let guests of real QEMUs panic, and show what panicd does.

    It takes less than a minute, needs qemu-system-x86_64, and leaves nothing behind.
    """
    context.exit(keep_running() if keep else tell())
