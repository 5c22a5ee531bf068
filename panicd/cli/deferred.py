"""Things that are named by their place, ``module:name``, and loaded when they are called.

So a list of commands loads none of them, and ``--json`` loads nothing that draws.
"""

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import groupby
from typing import Any, Final, cast

import click

from panicd.cli.base import shared_options

COMPLETING: Final = "_PANICD_COMPLETE"  # the variable by which a shell asks for completions (click)
INTERRUPTED: Final = 130  # the status that a shell has for a program that SIGINT ended


class Deferred(click.Command):
    """Stands for a command in lists of commands.

    Args:
        name: the command's.
        help: the first sentence of its help.
        place: where it is.
        purpose: the heading of its list.
    """

    def __init__(self, name: str, help: str, place: str, purpose: str) -> None:  # noqa: A002 - click's word
        super().__init__(name, help=help)
        self.purpose = purpose
        self._place = place

    def load(self) -> click.Command:
        """Return the command itself, which also takes the program's options."""
        command = cast("click.Command", _found(self._place))
        if not gc.isenabled():  # see panicd.__main__
            gc.freeze()
            gc.enable()
        there = {parameter.name for parameter in command.params}
        command.params += [each for each in shared_options() if each.name not in there]
        return command


class DeferringGroup(click.Group):
    """A group whose commands are deferred, and listed by their purpose."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, loaded, with its name and arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Deferred) else command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands' names in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without cutting any line."""
        deferred = [
            c for c in map(self.commands.get, self.list_commands(ctx)) if isinstance(c, Deferred)
        ]
        width = max(len(str(command.name)) for command in deferred)
        for purpose, commands in groupby(deferred, key=lambda command: command.purpose):
            with formatter.section(purpose):
                formatter.write_dl([(f"{c.name:{width}}", str(c.help)) for c in commands])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Carry out a command line; a shell that completes one has its own script."""
        if COMPLETING in os.environ:
            import_module("panicd.cli.completing")
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Carry out the command that is called; an interrupt is not a failure of it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            sys.exit(INTERRUPTED)


def shown(place: str, *arguments: object) -> Callable[[], None]:
    """Return a function that prints an answer for people.

    Args:
        place: of a function that prints.
        arguments: of that function.
    """
    return partial(_call, place, *arguments)


def _call(place: str, *arguments: object) -> None:
    _found(place)(*arguments)


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
