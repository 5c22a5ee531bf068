"""A coverage-guided fuzzer for one session with a monitor.

    python -m pip install atheris
    python -m tests.hostile.fuzz [-max_total_time=3600] [-seed=1] [CORPUS]

The arguments are libFuzzer's. It ends at the first input of which something else than a
``MonitorError`` came, prints the exception, and leaves the input in a file; given that file, it
tries it again.
"""

from __future__ import annotations

import sys

import atheris
import trio

with atheris.instrument_imports(include=["panicd", "qemu", "json"]):
    from panicd.qemu.monitor import event_loop
    from tests.hostile import sessions
    from tests.hostile.monitors import STATUS, greeting
    from tests.parts.wire import encode

GREETING = greeting({"major": 7, "minor": 2, "micro": 0})
SANE = encode({"return": STATUS, "id": "@"}).replace(b'"@"', sessions.ID)
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "GUEST_PANICKED", "data": %b}\n'
ANSWER = b'{"return": %b, "id": @ID@}\n'
ERROR = b'{"error": {"class": %b, "desc": "x"}, "id": @ID@}\n'
STRANGE = b'{"return": {}, "id": %b}\n'


def try_one(data: bytes) -> None:
    """Hold the session that some bytes stand for: each line is one word of the monitor's."""
    first, *lines = data.split(b"\n")
    hello = first + b"\n" if first[:1] == b"{" else GREETING

    async def main() -> None:
        async with event_loop():
            await sessions.converse(hello, [_word(line) for line in lines], EVENT % first)

    trio.run(main)


def _word(line: bytes) -> bytes:
    kind, rest = line[:1], line[1:]
    shapes = {b"a": ANSWER, b"e": EVENT, b"r": ERROR, b"i": STRANGE}
    if kind in shapes:
        return shapes[kind] % rest
    if kind == b"n":  # a sane answer behind something unasked
        return rest + b"\n" + SANE
    return SANE if kind in b"s" else line + b"\n"


if __name__ == "__main__":
    sessions.SILENCE = 0.002
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
