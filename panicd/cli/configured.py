"""What commands read themselves: the configuration, and without a daemon the journal."""

import sys
from pathlib import Path
from typing import Final, cast

import click

from panicd.cli.base import BAD_USAGE, Context, fail
from panicd.config import config as configuration
from panicd.config.config import Config, ConfigError
from panicd.incident.records import JOURNAL, NoSuchIncidentError, incident_called, read_record
from panicd.journal.journal import JournalError
from panicd.service.control_client import Answer, DaemonUnreachableError, RefusedError, call

LIBVIRT: Final = "qemu:///system"


def load(file: Path) -> Config:
    """Return the configuration, or print its mistakes and exit with 2."""
    try:
        return configuration.load(file)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(BAD_USAGE)


def libvirt_uri(file: Path) -> str:
    """Return the URI of libvirt: as configured, or else the system's."""
    libvirt = load(file).libvirt if file.exists() else None
    return libvirt.uri if libvirt is not None else LIBVIRT


def record(context: Context, incident_id: str) -> Answer:
    """Return an incident's record: the daemon's, or without one the journal's."""
    try:
        answer = call(context.socket, "incident", {"incident": incident_id})
    except RefusedError as error:
        fail(str(error))
    except DaemonUnreachableError as unreachable:
        state_directory = load(context.config_file).state_directory
        try:
            incident_id = incident_called(state_directory / JOURNAL, incident_id)
            answer = read_record(state_directory / JOURNAL, state_directory, incident_id)
        except JournalError as error:
            fail(f"{unreachable}, and the journal can't be read: {error}")
        except NoSuchIncidentError as error:
            fail(f"{unreachable}, and in the journal {error}")
    return cast("Answer", answer)
