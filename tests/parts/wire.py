"""QMP's bytes: where one message ends and the next begins."""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]

MAX_FDS = 16
"""How many file descriptors one message may carry here; QEMU's character devices take 16."""


class JsonSplitter:
    """Cuts a stream of bytes into JSON values, with or without newlines between them.

    QEMU reads its monitors in the same way, by counting braces. What belongs to no object or array
    is returned as a piece of its own, up to the next newline or brace.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take in ``data`` and return the values that it completes, in order."""
        values: list[bytes] = []
        for byte in data:
            if self._depth == 0 and byte in b"{[" and self._pending.strip():
                values.append(self._take())
            self._pending.append(byte)
            if self._depth == 0 and byte == 0x0A:
                if self._pending.strip():
                    values.append(self._take())
                self._pending.clear()
            elif self._in_string:
                self._step_in_string(byte)
            elif byte == 0x22:
                self._in_string = self._depth > 0
            elif byte in b"{[":
                self._depth += 1
            elif byte in b"}]" and self._depth > 0:
                self._depth -= 1
                if self._depth == 0:
                    values.append(self._take())
        return values

    def _step_in_string(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == 0x5C:
            self._escaped = True
        elif byte == 0x22:
            self._in_string = False

    def _take(self) -> bytes:
        value = bytes(self._pending).strip()
        self._pending.clear()
        return value


def encode(message: Message) -> bytes:
    """A message as QEMU writes it: one line, ended by CR and LF."""
    return json.dumps(message).encode() + b"\r\n"
