"""How the values of the configuration are written: text in; durations, sizes and paths out.

Each reader takes a scalar and returns its value, or raises ``WrongValueError``.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeVar

import yaml

from panicd.config.mistakes import did_you_mean
from panicd.config.yaml_document import Scalar
from panicd.rules.settings import FreeSpaceFloor
from panicd.rules.socket_path import PATH_LIMIT, pattern_problem
from panicd.rules.unit_name import PLACEHOLDERS, is_pattern

Word = TypeVar("Word", bound=StrEnum)

DURATION_MAX: Final = 3650 * 86400.0
"""Seconds. Ten years: far beyond any use, and well within what a clock can add."""

SIZE_MAX: Final = 2**60
"""Bytes. One EiB: an ``off_t`` can still hold sums of such sizes."""

NUMBER_MAX: Final = 999_999_999
"""Nine digits, the most that the expression below takes."""

OFF: Final = "off"
"""The word that switches a part of panicd off."""

_DURATION: Final = re.compile(
    "(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?"
)
_DURATION_UNITS: Final = {
    "d": Fraction(86400), "h": Fraction(3600), "m": Fraction(60),
    "s": Fraction(1), "ms": Fraction(1, 1000),
}  # fmt: skip
_SIZE: Final = re.compile("([0-9]{1,18}) ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_SIZE_UNITS: Final = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_PERCENTAGE: Final = re.compile("([0-9]{1,2}|100)%")
_WHOLE_NUMBER: Final = re.compile("0|[1-9][0-9]{0,8}")
_OTHER_READINGS: Final = {
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:null": "null",
}
_ENDPOINT: Final = re.compile(r"(?:\[(?P<six>[^]]*)\]|(?P<four>[^:]*)):(?P<port>[0-9]{1,5})")


class WrongValueError(Exception):
    """A value is not what its key takes.

    Attributes:
        expected: what the key takes.
        hint: what a message adds to the value, such as a 'did you mean'.
    """

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


def duration(scalar: Scalar) -> float:
    """Read a duration such as ``90s``, ``1h30m`` or ``500ms``, in seconds."""
    match = _DURATION.fullmatch(scalar.text)
    if not match or not scalar.text:
        raise WrongValueError("a duration with its unit, such as 500ms, 90s, 2m, 1h30m or 7d")
    parts = zip(match.groups(default="0"), _DURATION_UNITS.values(), strict=True)
    seconds = float(sum(int(number) * unit for number, unit in parts))
    if seconds > DURATION_MAX:
        raise WrongValueError("a duration of at most 3650d")
    return seconds


def positive_duration(scalar: Scalar) -> float:
    """Read a duration that is not 0, in seconds."""
    seconds = duration(scalar)
    if seconds == 0:
        raise WrongValueError("a duration longer than 0s")
    return seconds


def written_duration(seconds: float) -> str:
    """Write a duration as ``duration`` reads it, to the millisecond."""
    rest, written = Fraction(round(seconds * 1000), 1000), ""
    for unit, length in _DURATION_UNITS.items():
        number, rest = divmod(rest, length)
        written += f"{number}{unit}" if number else ""
    return written or "0s"


def size(scalar: Scalar) -> int:
    """Read a size such as ``50GiB`` or ``500MB``, in bytes."""
    match = _SIZE.fullmatch(scalar.text)
    if not match:
        units = ", ".join(_SIZE_UNITS)
        raise WrongValueError(f"a size with its unit, such as 50GiB ({units})")
    number = int(match[1]) * _SIZE_UNITS[match[2]]
    if number > SIZE_MAX:
        raise WrongValueError("a size of at most 1048576TiB")
    return number


def free_space(scalar: Scalar) -> FreeSpaceFloor:
    """Read how much shall stay free: a size, or a share of the file system such as ``10%``."""
    match = _PERCENTAGE.fullmatch(scalar.text)
    if match and int(match[1]) < 100:
        return FreeSpaceFloor(fraction=int(match[1]) / 100)
    if not _SIZE.fullmatch(scalar.text):
        raise WrongValueError("a size such as 20GiB, or a share of 0% to 99%")
    return FreeSpaceFloor(size=size(scalar))


def share(scalar: Scalar) -> float:
    """Read a share such as ``25%``, as a number from 0 to 1."""
    match = _PERCENTAGE.fullmatch(scalar.text)
    if not match:
        raise WrongValueError("a share of 0% to 100%")
    return int(match[1]) / 100


def share_above_zero(scalar: Scalar) -> float:
    """Read a share that is not 0."""
    match = _PERCENTAGE.fullmatch(scalar.text)
    if not match or not int(match[1]):
        raise WrongValueError("a share of 1% to 100%")
    return int(match[1]) / 100


def whole_number(minimum: int, maximum: int = NUMBER_MAX) -> Callable[[Scalar], int]:
    """Make a reader of whole numbers from ``minimum`` to ``maximum``."""

    def read(scalar: Scalar) -> int:
        if not scalar.plain:
            raise WrongValueError("a whole number without quotes")
        if not _WHOLE_NUMBER.fullmatch(scalar.text) or not (minimum <= int(scalar.text) <= maximum):
            raise WrongValueError(f"a whole number from {minimum} to {maximum}")
        return int(scalar.text)

    return read


def boolean(scalar: Scalar) -> bool:
    """Read ``true`` or ``false``, but none of YAML's other words for them."""
    if not scalar.plain:
        raise WrongValueError("true or false without quotes")
    if scalar.text not in ("true", "false"):
        raise WrongValueError("true or false")
    return scalar.text == "true"


def one_of(*words: Word) -> Callable[[Scalar], Word]:
    """Make a reader of the words of an enumeration."""
    allowed = [word.value for word in words]

    def read(scalar: Scalar) -> Word:
        for word in words:
            if word.value == scalar.text:
                return word
        raise WrongValueError(f"one of {', '.join(allowed)}", did_you_mean(scalar.text, allowed))

    return read


def off(scalar: Scalar) -> None:
    """Read ``"off"``; a mapping of keys in its place would switch something on."""
    if scalar.text != OFF:
        raise WrongValueError('a mapping of keys to values, or "off"')
    text(scalar)  # without quotes it is a boolean for every other reader of the file


def text(scalar: Scalar) -> str:
    """Read text; if YAML would read it as something else, it needs quotes."""
    if not scalar.text:
        raise WrongValueError("text that is not empty")
    other = _other_reading(scalar)
    if other:
        raise WrongValueError(f"quotes around it, because YAML takes it for {other}")
    return scalar.text


def domain_pattern(scalar: Scalar) -> str:
    """Read a glob on names, or a UUID."""
    return _line(text(scalar))


def line_of_text(scalar: Scalar) -> str:
    """Read printable text."""
    return _line(text(scalar))


def absolute_path(scalar: Scalar) -> Path:
    """Read an absolute path."""
    if not scalar.text.startswith("/"):
        raise WrongValueError("an absolute path")
    return Path(_line(scalar.text))


def program(scalar: Scalar) -> str:
    """Read the absolute path of a program."""
    if not scalar.text.startswith("/") or scalar.text.endswith("/"):
        raise WrongValueError("the absolute path of a program")
    return _line(scalar.text)


def unit(scalar: Scalar) -> str:
    """Read the name of a systemd unit, or a pattern of such names."""
    if not is_pattern(scalar.text):
        raise WrongValueError(f"a unit such as qemu@{{domain}}.service ({', '.join(PLACEHOLDERS)})")
    return scalar.text


def socket_path(scalar: Scalar) -> Path:
    """Read the path of a unix socket that may not exist yet."""
    path = absolute_path(scalar)
    length = len(scalar.text.encode())
    if length > PATH_LIMIT:
        raise WrongValueError(f"a socket's path of at most {PATH_LIMIT} bytes, not {length}")
    if scalar.text.endswith("/"):
        raise WrongValueError("the path of a socket, not of a directory")
    return path


_ONE_CHARACTER: Final = re.compile(r"\[[^]]+\]|\?")  # glob(7)


def socket_glob(scalar: Scalar) -> str:
    """Read a pattern of socket paths: ``*``, ``?`` and ``[…]`` within each part of the path."""
    if problem := pattern_problem(scalar.text):
        raise WrongValueError(problem)
    shortest = _ONE_CHARACTER.sub("x", scalar.text).replace("*", "")
    length = len(shortest.encode())
    if length > PATH_LIMIT:
        raise WrongValueError(
            f"a pattern of sockets' paths, of at most {PATH_LIMIT} bytes; what it matches has "
            f"{length}"
        )
    return _line(scalar.text)


def metrics_endpoint(scalar: Scalar) -> tuple[str, int] | None:
    """Read an address with its port, such as ``127.0.0.1:10077`` or ``[::1]:10077``.

    Returns:
        The address and the port, 0 for any free one; None for ``"off"``.
    """
    if scalar.text == OFF:
        off(scalar)
        return None
    match = _ENDPOINT.fullmatch(scalar.text)
    if not match:
        raise WrongValueError(
            'an address and a port, such as 127.0.0.1:10077 or [::1]:10077, or "off"'
        )
    try:
        address = ip_address(match["four"] if match["six"] is None else match["six"])
    except ValueError as error:
        raise WrongValueError(
            "a numeric address, such as 127.0.0.1:10077 or [::1]:10077"
        ) from error
    if address.version != (4 if match["six"] is None else 6):
        raise WrongValueError(
            "brackets around an IPv6 address, and only there, such as [::1]:10077"
        )
    port = int(match["port"])
    if port > 65535:
        raise WrongValueError("a port from 0 to 65535")
    return str(address), port


def _line(value: str) -> str:
    if not value.isprintable():
        raise WrongValueError("printable characters on one line")
    return value


def _other_reading(scalar: Scalar) -> str | None:
    """Name what YAML 1.1 makes of a plain scalar that isn't text to it."""
    if scalar.plain:
        for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(scalar.text[:1], ()):
            if pattern.match(scalar.text):
                return _OTHER_READINGS.get(tag, "something else")
    return None
