"""A QEMU that says what a QEMU says, but for some odd values, at places that chance chooses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from panicd.rules.foreign_json import MOST
from tests.parts.fake import FakeQemu
from tests.parts.profile import QEMU_1_6, QEMU_2_8, QEMU_7_2, QEMU_10_0
from tests.parts.recorded import CutError
from tests.parts.wire import Message, encode

NUMBERS = ["1e308", "1e400", "-Infinity", "NaN", "-0", "0.5", "-1", f"{10**400}", "1" * 4299]
NUMBERS += [str(2**bits + one) for bits in (31, 32, 63, 64) for one in (-1, 0)]
TEXTS = [
    "\\ud800",
    "\\udfff\\ud83d",
    "\\u0000",
    "\\u001b[2J",
    "\\n",
    "%n{0}[/b]",
    "../..",
    "*",
    "good",
]
TEXTS += ["", "running", "guest-panicked", "active", "child<pvpanic>", "x" * 70_000]
DEPTHS = (MOST - 6, MOST, MOST + 6, 900, 980, 990, 1490, 9970, 9990)
NESTED = [f"{'[' * depth}{']' * depth}" for depth in DEPTHS]
NESTED += ['{"status":' * depth + "1" + "}" * depth for depth in DEPTHS]
ODD = [
    *NUMBERS,
    *(f'"{text}"' for text in TEXTS),
    *NESTED,
    "null",
    "true",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
]
"""Values as JSON spells them, and as it does not."""

EVENTS: list[tuple[str, Message]] = [
    *[("GUEST_PANICKED", {"action": action}) for action in ("pause", "pause", "run", "poweroff")],
    ("GUEST_PANICKED", {"action": "pause", "info": {"type": "hyper-v", "arg1": 1, "arg2": 2}}),
    ("GUEST_CRASHLOADED", {"action": "run"}),
    *[("STOP", {}), ("RESUME", {}), ("RESUME", {}), ("GUEST_PVSHUTDOWN", {})],
    *[(name, {"guest": True, "reason": "guest-reset"}) for name in ("RESET", "SHUTDOWN")],
    ("DUMP_COMPLETED", {"result": {"status": "completed", "completed": 7, "total": 7}}),
]


def spoilt(chance: Random, value: object) -> bytes:
    """A line of JSON: a value, of which one part is odd, missing, or there very often."""
    whole = [json.loads(json.dumps(value))]
    holder, key = chance.choice(list(_places(whole)))
    mark = "@"
    match chance.randrange(8):
        case 0 if holder is not whole:
            del holder[key]
        case 1:
            holder[key] = [holder[key]] * 300
        case _:
            holder[key] = mark
    return json.dumps(whole[0]).replace(f'"{mark}"', chance.choice(ODD)).encode() + b"\n"


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


class Liar(FakeQemu):
    """The QEMU of one life.

    Args:
        path: where it listens.
        name: of its VM.
        chance: decides what it says.
    """

    def __init__(self, path: Path, name: str, chance: Random) -> None:
        profile = chance.choice([QEMU_7_2, QEMU_10_0, QEMU_10_0, QEMU_2_8, QEMU_1_6])
        pauses = chance.choice(["pause", "shutdown"])
        super().__init__(path, profile=profile, name=name, panic_action=pauses)
        self._chance = chance
        self._rate = chance.choice([0.0, 0.03, 0.1, 0.3])

    def burst(self) -> bytes:
        """Some events."""
        said = []
        for name, data in self._chance.choices(EVENTS, k=self._chance.choice([1, 3, 6])):
            stamp = {"seconds": int(time.time()), "microseconds": 0}
            event = {"timestamp": stamp, "event": name, "data": data}
            said.append(self._perhaps(event))
        return b"".join(said)

    def send_raw(self, data: bytes) -> None:
        """Send any bytes to the present client, past ``_answer``."""
        if self._session is not None:
            type(self._session).send(self._session, data)

    def _greeting_bytes(self) -> bytes:
        return self._perhaps(json.loads(super()._greeting_bytes()))

    def _perhaps(self, message: Message) -> bytes:
        return spoilt(self._chance, message) if self._lies() else encode(message)

    def _lies(self) -> bool:
        return self._chance.random() < self._rate

    async def _answer(self, session: Any, text: bytes) -> None:
        said: list[bytes] = []
        send, session.send = session.send, said.append
        try:
            await super()._answer(session, text)
        except (AssertionError, TypeError, ValueError, KeyError, OverflowError, RecursionError):
            said.append(encode({"error": {"class": "No", "desc": "x"}}))  # its lies came back
        finally:
            session.send = send
        for line in said:
            if self._lies():
                send(self.burst())
            send(self._perhaps(json.loads(line)))
            if self._lies() and self._lies():
                send(line * 2)
        if self._lies() and self._lies():
            raise CutError
