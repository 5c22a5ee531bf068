"""The parts of the configuration about what starts VMs: libvirt, units, commands."""

import os
from dataclasses import replace

from panicd.config.section import Value
from panicd.config.values import (
    WrongValueError,
    boolean,
    line_of_text,
    one_of,
    positive_duration,
    program,
    text,
    unit,
)
from panicd.config.yaml_document import Scalar
from panicd.rules.libvirt_place import UnusableUriError, find_place
from panicd.rules.settings import InheritOnCrash, LibvirtSettings, OnStop, Relaunch


def local_libvirt(scalar: Scalar) -> str:
    """Read the URI of a libvirt of this host."""
    try:
        find_place(uri := line_of_text(scalar), os.environ)
    except UnusableUriError as error:
        raise WrongValueError("the URI of a libvirt of this host", f": {error}") from error
    return uri


def read_libvirt(value: Value) -> LibvirtSettings | None:
    """Read ``libvirt``; None where it is not given."""
    with value.section() as keys:
        uri, on_crash, take_over = keys["uri"], keys["on_crash"], keys["take_over"]
        settings = LibvirtSettings(
            uri=uri.read(local_libvirt, ""),
            on_crash=on_crash.read(one_of(*InheritOnCrash), InheritOnCrash.INHERIT),
            take_over=take_over.read(boolean, True),
            on_stop=keys["on_stop"].read(one_of(*OnStop), OnStop.KEEP),
        )
        if value.given and keys.sound and not settings.uri:
            uri.wrong("the URI of the libvirt that runs the domains, such as qemu:///system")
    return settings if settings.uri else None


def read_relaunch(value: Value, base: Relaunch | None) -> Relaunch | None:
    """Read ``relaunch``.

    Args:
        value: what is given.
        base: what applies if nothing is given.
    """
    inherited = base or Relaunch()
    with value.section() as keys:
        command, by_unit, libvirt = keys["command"], keys["unit"], keys["libvirt"]
        given = [way for way in (command, by_unit, libvirt) if way.given]
        words = [
            item.read(text if index else program, "") for index, item in enumerate(command.items())
        ]
        relaunch = Relaunch(
            command=tuple(words),
            timeout=keys["timeout"].read(positive_duration, inherited.timeout),
            unit=by_unit.read(unit, ""),
            libvirt_uri=libvirt.read(local_libvirt, ""),
        )
        if not given:
            relaunch = replace(inherited, timeout=relaunch.timeout)
        if len(given) > 1:
            value.wrong("only one of command, unit and libvirt", "several")
        elif command.given and keys.sound and not words:
            command.wrong("the program to run and its arguments")
        elif value.given and keys.sound and relaunch == Relaunch(timeout=relaunch.timeout):
            value.wrong("one of command, unit and libvirt", "none")
    return relaunch if relaunch != Relaunch(timeout=relaunch.timeout) else None
