"""The place of a libvirt: its URI, and the socket of its daemon. Pure.

Source: libvirt.org/uri.html ('Local hypervisor URIs', ``mode``, ``socket``), libvirt
``src/remote/remote_sockets.c`` (``remoteGetUNIXSocket``): if its socket exists, the daemon of
QEMU's driver alone (virtqemud) goes before the one for all drivers (libvirtd).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

SYSTEM: Final = "qemu:///system"
SESSION: Final = "qemu:///session"
SYSTEM_RUN: Final = "/run/libvirt"
SOCKETS: Final = {
    "auto": ("virtqemud-sock", "libvirt-sock"),
    "direct": ("virtqemud-sock",),
    "legacy": ("libvirt-sock",),
}


class UnusableUriError(ValueError):
    """panicd can't reach this libvirt; the text says why, and what it can reach."""


@dataclass(frozen=True, slots=True)
class Place:
    """A libvirt of this host.

    Attributes:
        driver: the driver that panicd asks the daemon to open.
        sockets: the possible paths of its socket; the first that exists counts.
    """

    driver: str
    sockets: tuple[str, ...]


def find_place(uri: str, environment: Mapping[str, str]) -> Place:
    """Return the place of a libvirt.

    Args:
        uri: the libvirt's URI.
        environment: a user's own libvirt goes by XDG_RUNTIME_DIR.

    Raises:
        UnusableUriError: it names another host or driver, or needs a feature that panicd lacks.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # such as brackets that don't match
        raise UnusableUriError(f"{uri!r} is no URI: {error}") from error
    scheme, _, transport = parts.scheme.partition("+")
    if scheme != "qemu":
        raise UnusableUriError(f"{uri!r} is none of QEMU's: {SYSTEM} or {SESSION}")
    if parts.netloc or transport not in {"", "unix"}:
        raise UnusableUriError(
            f"{uri!r} is of another host or transport: panicd runs beside libvirt"
        )
    if parts.path not in {"/system", "/session"}:
        raise UnusableUriError(f"{uri!r} is neither {SYSTEM} nor {SESSION}")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    socket, mode = options.pop("socket", ""), options.pop("mode", "auto")
    if options:
        raise UnusableUriError(f"{uri!r} has {', '.join(options)}: only socket and mode are known")
    if mode not in SOCKETS:
        raise UnusableUriError(f"{uri!r} has the mode {mode!r}: auto, direct and legacy are known")
    driver = f"qemu://{parts.path}"
    if socket:
        return Place(driver, (socket,))
    run = SYSTEM_RUN
    if driver == SESSION:
        if not environment.get("XDG_RUNTIME_DIR"):
            raise UnusableUriError(f"{uri!r} takes the environment's XDG_RUNTIME_DIR, or ?socket=")
        run = f"{environment['XDG_RUNTIME_DIR']}/libvirt"
    return Place(driver, tuple(f"{run}/{name}" for name in SOCKETS[mode]))
