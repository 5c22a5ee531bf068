"""``panicd qemu-args``: the arguments to start a VM with."""

from collections.abc import Iterable
from pathlib import Path
from shlex import quote

import click

from panicd.host.terminal import console
from panicd.rules.qemu_args import Argument, Wanted, qemu_arguments


@click.command("qemu-args")
@click.option("--name", required=True, help="The VM's name.")
@click.option(
    "--qemu-version",
    default="7.2",
    show_default=True,
    metavar="X.Y",
    callback=lambda _context, _parameter, text: _version(text),
    help="The version of the QEMU that runs the VM.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/run/qemu"),
    show_default=True,
    help="The directory of the VM's monitor socket.",
)
@click.option(
    "--dial-in",
    type=click.Path(path_type=Path),
    help="Let the VM connect to this socket of panicd instead.",
)
@click.option("--machine", default="", metavar="TYPE", help="The machine type, as in -machine.")
@click.option(
    "--pci", is_flag=True, help="Use a PCI panic device, for a machine without an ISA bus."
)
@click.option(
    "--no-notifier", is_flag=True, help="Leave the panic device out: the guest reports no panic."
)
def qemu_args(  # noqa: PLR0917 - click calls it, each by its name
    name: str,
    qemu_version: tuple[int, int, int],
    directory: Path,
    dial_in: Path | None,
    machine: str,
    pci: bool,
    no_notifier: bool,
) -> None:
    """Print the arguments to start a VM with, and why.

    Piped, it prints the arguments alone: qemu-system-x86_64 … $(panicd qemu-args --name web-1)
    """
    socket = dial_in or directory / f"{name}.qmp"
    wanted = Wanted(
        qemu_version,
        str(socket),
        dial_in=bool(dial_in),
        machine=machine,
        pci=pci,
        notifier=not no_notifier,
    )
    try:
        arguments = qemu_arguments(wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _show(name, arguments)


def _show(name: str, wanted: Iterable[Argument]) -> None:
    """Print QEMU arguments, quoted for a shell; for people, each with its reason."""
    lines = [("-name " + quote(name), "what panicd calls it")]
    lines += [(f"{a.option} {quote(a.value)}" if a.value else a.option, a.why) for a in wanted]
    width = max(len(argument) for argument, _ in lines)
    for argument, why in lines:
        print(f"{argument:{width}}  # {why}" if console.is_terminal else argument)


def _version(text: str) -> tuple[int, int, int]:
    numbers = text.split(".")
    if not all(number.isascii() and number.isdecimal() for number in numbers) or len(numbers) > 3:
        raise click.BadParameter("expected a version such as 7.2 or 10.0.2")
    major, minor, micro = [int(number) for number in (*numbers, "0", "0")[:3]]
    return major, minor, micro
