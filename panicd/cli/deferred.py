"""What is known by its place, ``module:name``, and loaded when it is called.

So a list of commands loads none of them, and ``--json`` nothing that draws.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, cast

import click


class Deferred(click.Command):
    """Stands for a command in lists of commands.

    Args:
        name: the command's.
        help: the first sentence of its help.
        place: where it is.
    """

    def __init__(self, name: str, help: str, place: str) -> None:  # noqa: A002 - click's word
        super().__init__(name, help=help)
        self._place = place

    def load(self) -> click.Command:
        """Return the command itself."""
        return cast("click.Command", _found(self._place))


class DeferringGroup(click.Group):
    """A group whose commands may be deferred."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, loaded, with its name and arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Deferred) else command, rest


def shown(place: str, *arguments: object) -> Callable[[], None]:
    """Return what prints an answer for people.

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
