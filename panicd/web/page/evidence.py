"""The evidence on an incident's page: the screen, the ends of the logs, files."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from panicd.evidence.bundle import read_manifest
from panicd.evidence.screen import MOST, SIGNATURES
from panicd.web.html import Html, block, element
from panicd.web.page.parts import WITHHELD

TEXT_KEPT: Final = 64 * 1024
"""How many bytes of a text are shown, from its end."""

SCREEN: Final = "screen.png"
TEXTS: Final = re.compile(r"kernel\.log|bug-check\.txt|console-[0-9]+\.log|registers\.txt")
"""Which files are shown as text."""


def evidence(directory: Path, incident_id: str, host: str, shows_guests: bool) -> Iterable[Html]:
    """Yield an incident's evidence for its page; nothing if there is none. Blocking.

    Args:
        directory: the evidence's.
        incident_id: the incident's.
        host: this host's name.
        shows_guests: whether the client has logged in.
    """
    manifest = read_manifest(directory)
    if not isinstance(manifest, dict):
        return
    files, problems = manifest.get("files"), manifest.get("problems")
    if not isinstance(files, dict) or not isinstance(problems, dict):
        return
    yield element("h2", "Evidence")
    yield element("p", f"In {directory}, on {host}.")
    if shows_guests:
        links = (element("a", name, href=f"/incident/{incident_id}/file/{name}") for name in files)
        yield element("ul", *(element("li", link) for link in links), class_="files")
    if shows_guests and SCREEN in files:
        address = f"/incident/{incident_id}/{SCREEN}"
        picture = element("img", src=address, alt="The guest's screen when it panicked")
        yield element("a", picture, href=address)
    for name, what in sorted(files.items()):
        if shows_guests and TEXTS.fullmatch(name):
            summary = element("summary", f"{name}: {what}")
            yield element("details", summary, block(_last_lines(directory / name)))
        elif name != SCREEN or not shows_guests:
            yield element("p", f"{name}: {what}")
    for item, why in sorted(problems.items()):
        yield element("p", f"No {item}: {why if shows_guests else WITHHELD}", class_="quiet")


def screen(directory: Path) -> bytes | None:
    """Return the guest's screen; None if there is no picture. Blocking."""
    try:
        picture = _read(directory / SCREEN, MOST)
    except OSError:
        return None
    return picture if picture.startswith(SIGNATURES["png"]) else None


def _last_lines(path: Path) -> list[str]:
    try:
        content = _read(path, TEXT_KEPT)
    except OSError as error:
        return [str(error)]
    return content.decode(errors="replace").splitlines()


def _read(path: Path, limit: int) -> bytes:
    """Return the last bytes of a file of panicd's."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit)
