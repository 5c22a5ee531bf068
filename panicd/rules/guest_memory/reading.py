"""A reader's request for guest memory, and its error for unreadable memory."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar


class NotReadableError(Exception):
    """The wanted data can't be read; the text says why.

    The server of a reader's requests may throw it in, if a range is unavailable or time is up.
    """


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A range of guest-physical memory, whole pages; both in bytes."""

    physical: int
    length: int


T = TypeVar("T")

# Yields requests, is sent exactly the bytes that were asked for, and returns what it read.
Reading = Generator[ReadRequest, bytes, T]
