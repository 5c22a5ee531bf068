"""``panicd demo``: the guests that panic, for people to look at."""

import click

from panicd.demo.story import tell


@click.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Let guests of real QEMUs panic, and show what panicd does.

    It takes less than a minute, needs qemu-system-x86_64, and leaves nothing behind.
    """
    context.exit(tell())
