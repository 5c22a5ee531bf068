"""How a reader asks for guest memory, and how it says that there is nothing to be had."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar


class NotReadableError(Exception):
    """What was looked for can't be read; the text says why.

    Whoever serves a reader's requests may throw it in, where a range can't be had or time is up.
    """


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A range of guest-physical memory, whole pages; both in bytes."""

    physical: int
    length: int


T = TypeVar("T")

# Yields requests, is sent exactly the bytes that were asked for, and returns what it read.
Reading = Generator[ReadRequest, bytes, T]
