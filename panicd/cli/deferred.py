"""Commands that are known by name and by a line of help, and loaded when they are called."""

from importlib import import_module
from typing import cast

import click


class Deferred(click.Command):
    """Stands for a command in lists of commands.

    Args:
        name: the command's.
        help: the first sentence of its help.
        place: its module, a colon, and its name there.
    """

    def __init__(self, name: str, help: str, place: str) -> None:  # noqa: A002 - click's word
        super().__init__(name, help=help)
        self._place = place

    def load(self) -> click.Command:
        """Return the command itself."""
        module, _, attribute = self._place.partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))


class DeferringGroup(click.Group):
    """A group whose commands may be deferred."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, loaded, with its name and arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Deferred) else command, rest
