"""The command tree of click, as Markdown."""

import inspect
import re
from collections.abc import Iterator

import click


def commands_page(group: click.Group, name: str) -> str:
    """Return the reference of a program and of all its commands."""
    root = click.Context(group, info_name=name, **group.context_settings)
    sections = [
        f"# The commands\n\n{_described(group)}",
        f"Options of the program, which stand before the command:\n\n{_options(root, group)}",
        "Each command takes `-h` and `--help` too.",
        *(
            _section(click.Context(command, info_name=child, parent=root), command)
            for child in group.list_commands(root)
            if (command := group.resolve_command(root, [child])[1])
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _section(context: click.Context, command: click.Command) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f"## {context.command_path}",
        f"```\n{context.command_path} {usage}\n```",
        _described(command),
        _options(context, command),
    ]
    return "\n\n".join(part for part in parts if part)


def _described(command: click.Command) -> str:
    """Return a command's help. What click must not wrap (after a backspace) is a block of code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(_paragraph(text) for text in paragraphs)


def _paragraph(text: str) -> str:
    if not text.startswith("\b\n"):
        return text
    lines = text.removeprefix("\b\n").splitlines()
    head, body = lines[0], lines[1:]
    return f"{head}\n\n```\n{inspect.cleandoc(chr(10).join(['', *body]))}\n```"


def _options(context: click.Context, command: click.Command) -> str:
    rows = [f"| `{option}` | {told} |" for option, told in _records(context, command)]
    return "\n".join(["| option | |", "|---|---|", *rows]) if rows else ""


def _records(context: click.Context, command: click.Command) -> Iterator[tuple[str, str]]:
    for parameter in command.params:  # without --help, which get_params() adds
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            option, told = record
            yield option.replace("|", r"\|"), re.sub(r"\s+", " ", told).replace("|", r"\|")
