"""The messages of libvirt's RPC: their headers, and where each message ends. Pure.

Source: libvirt ``src/rpc/virnetprotocol.x``: a message has its length (these four bytes included),
a header of six numbers, and a payload. ``src/rpc/virkeepaliveprotocol.x``: a separate program that
asks whether the other end is there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from panicd.libvirt.xdr import XdrError

VERSION: Final = 1  # of each program below
REMOTE_PROGRAM: Final = 0x20008086  # remote_protocol.x
QEMU_PROGRAM: Final = 0x20008087  # qemu_protocol.x
KEEPALIVE_PROGRAM: Final = 0x6B656570  # virkeepaliveprotocol.x
PING: Final = 1  # KEEPALIVE_PROC_PING
PONG: Final = 2  # KEEPALIVE_PROC_PONG

MESSAGE_MOST: Final = 16 << 20
"""Bytes of a message. libvirt's own bound is twice this (``VIR_NET_MESSAGE_MAX``). panicd's answers
take 4 MiB at most (memory), or some 64 bytes for each domain."""

_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">IIIiIIi")
_STATUS_OF: Final = frozenset({0, 1, 2})


class Kind(IntEnum):
    """What a message is (``virNetMessageType``)."""

    CALL = 0
    REPLY = 1
    EVENT = 2  # unasked
    STREAM = 3  # a piece of a stream that a call has started


class Status(IntEnum):
    """How a message's call or stream stands (``virNetMessageStatus``)."""

    OK = 0  # of a stream: it is over
    ERROR = 1
    CONTINUE = 2  # of a stream: a piece; an empty piece is the last


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        program: which protocol it belongs to.
        procedure: its number in that protocol.
        kind: see ``Kind``; libvirt's number for any other kind.
        serial: its call's; 0: no call.
        status: see ``Status``.
        payload: depends on the procedure.
    """

    program: int
    procedure: int
    kind: int
    serial: int
    status: int
    payload: bytes = b""

    def pack(self) -> bytes:
        """Return the message's bytes."""
        length = _HEAD.size + len(self.payload)
        return (
            _HEAD.pack(
                length,
                self.program,
                VERSION,
                self.procedure,
                self.kind,
                self.serial,
                self.status,
            )
            + self.payload
        )


class Incoming:
    """Takes bytes as they come, and yields the messages in them."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that are complete with these bytes.

        Raises:
            XdrError: the other end does not speak libvirt's RPC, and can't be understood any more.
        """
        self._bytes += data
        at = 0
        try:
            while len(self._bytes) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._bytes, at)
                if not _HEAD.size <= length <= MESSAGE_MOST:
                    raise XdrError(f"a message of {length} bytes")
                if len(self._bytes) - at < length:
                    return
                message = _parse(bytes(self._bytes[at : at + length]))
                at += length
                yield message
        finally:
            del self._bytes[:at]


def _parse(data: bytes) -> Message:
    _, program, version, procedure, kind, serial, status = _HEAD.unpack_from(data)
    if program not in {REMOTE_PROGRAM, QEMU_PROGRAM, KEEPALIVE_PROGRAM} or version != VERSION:
        raise XdrError(f"a message of program {program:#x}, version {version}")
    if status not in _STATUS_OF:
        raise XdrError(f"a message of status {status}")
    return Message(program, procedure, kind, serial, status, data[_HEAD.size :])
