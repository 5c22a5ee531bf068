"""Reads the pictures that QEMU takes of a guest's screen."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 6: 4}
"""Samples of a pixel, by colour type (PNG specification, 11.2.2): grey, RGB, RGBA."""


def light_rows(path: Path) -> list[int]:
    """How many pixels of each row of a picture are brighter than half.

    Raises:
        ValueError: it is no PNG of 8 bits a sample, without interlace.
    """
    data = path.read_bytes()
    if not data.startswith(_SIGNATURE):
        raise ValueError(f"{path}: no PNG")
    width = height = channels = 0
    packed, place = b"", len(_SIGNATURE)
    while place < len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        place += length + 12
        if kind == b"IHDR":
            width, height, depth, colour, *_, interlace = struct.unpack(">IIBBBBB", body)
            if depth != 8 or interlace or colour not in _CHANNELS:
                raise ValueError(f"{path}: {depth} bits, colour type {colour}")
            channels = _CHANNELS[colour]
        elif kind == b"IDAT":
            packed += body
    raw, stride, above = zlib.decompress(packed), width * channels, bytes(width * channels)
    counts = []
    for row in range(height):
        start = row * (stride + 1)
        above = _unfiltered(raw[start], raw[start + 1 : start + 1 + stride], above, channels)
        counts.append(sum(above[x] > 127 for x in range(0, stride, channels)))
    return counts


def _unfiltered(kind: int, line: bytes, above: bytes, channels: int) -> bytes:
    """A row as it was before one of the filters of the PNG specification, 9.2."""
    out = bytearray(line)
    for i in range(len(out)):
        left = out[i - channels] if i >= channels else 0
        corner = above[i - channels] if i >= channels else 0
        match kind:
            case 1:
                guess = left
            case 2:
                guess = above[i]
            case 3:
                guess = (left + above[i]) // 2
            case 4:
                guess = _paeth(left, above[i], corner)
            case _:
                guess = 0
        out[i] = (out[i] + guess) % 256
    return bytes(out)


def _paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    return min((left, above, corner), key=lambda value: abs(estimate - value))
