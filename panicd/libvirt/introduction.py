"""The calls that begin a connection to libvirt: proof of identity, and events to listen to. Pure.

Sources: as in ``requests``.
"""

from typing import Final

from panicd.libvirt.protocol import AUTH_TYPES_MOST, EventId, Procedure, QemuProcedure
from panicd.libvirt.requests import Request, boolean, nothing
from panicd.libvirt.wire import QEMU_PROGRAM
from panicd.libvirt.xdr import Decoder, pack_int, pack_optional_text, pack_uint

EVENT_REGEX: Final = 1 << 0  # VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX
KEEPALIVE: Final = 10  # VIR_DRV_FEATURE_PROGRAM_KEEPALIVE


def list_auth() -> Request[list[int]]:
    """Ask how panicd has to prove who it is: ``AUTH_NONE``, ``AUTH_POLKIT``. High."""

    def read(items: Decoder) -> list[int]:
        return items.array(items.int32, AUTH_TYPES_MOST)

    return Request("auth list", Procedure.AUTH_LIST, b"", read)


def ask_polkit() -> Request[bool]:
    """Have libvirtd ask polkit for this process's right (``org.libvirt.unix.manage``). High."""
    return Request("auth polkit", Procedure.AUTH_POLKIT, b"", boolean)


def start_keepalive() -> Request[bool]:
    """Have libvirtd send keepalives to panicd; before ``open_driver``. High."""
    feature = pack_int(KEEPALIVE)
    return Request("keepalive", Procedure.CONNECT_SUPPORTS_FEATURE, feature, boolean)


def open_driver(uri: str) -> Request[None]:
    """Open ``qemu:///system`` or ``qemu:///session``. High."""
    arguments = pack_optional_text(uri) + pack_uint(0)
    return Request("open", Procedure.CONNECT_OPEN, arguments, nothing)


def lib_version() -> Request[int]:
    """Ask for libvirtd's version: 1000000 * major + 1000 * minor + release. High."""
    return Request("version", Procedure.CONNECT_GET_LIB_VERSION, b"", Decoder.uint64)


def listen(event: EventId) -> Request[int]:
    """Listen to events of all domains on this connection; the answer is the registration's number.

    High.
    """
    arguments = pack_int(event) + pack_uint(0)
    procedure = Procedure.CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY
    return Request("events", procedure, arguments, Decoder.int32)


def listen_to_qemu(names: tuple[str, ...]) -> Request[int]:
    """Listen to QEMU's own events of these names, of all domains. High; it taints no domain.

    Source: ``qemu_connect_domain_monitor_event_register_args``; libvirt's regular expressions are
    GLib's.
    """
    pattern = pack_optional_text(f"^({'|'.join(names)})$")
    arguments = pack_uint(0) + pattern + pack_uint(EVENT_REGEX)
    procedure = QemuProcedure.CONNECT_DOMAIN_MONITOR_EVENT_REGISTER
    return Request("QEMU's events", procedure, arguments, Decoder.int32, QEMU_PROGRAM)
