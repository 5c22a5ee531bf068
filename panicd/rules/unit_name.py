r"""The name of a domain's systemd unit, from a pattern such as ``qemu@{domain}.service``.

Source: systemd.unit(5), 'String Escaping for Inclusion in Unit Names'; systemd-escape(1).
"""

import re
from typing import Final

UNIT_NAME_MAX: Final = 255  # bytes, systemd.unit(5)
PLACEHOLDERS: Final = ("{domain}", "{uuid}", "{domain_as_is}")
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|target)")


class UnitNameError(Exception):
    """This pattern and this domain's name make no valid unit name."""


def escape_instance(text: str) -> str:
    r"""Return a text as a unit's name holds it: ``web-1`` is ``web\x2d1``, which ``%I`` undoes."""
    escaped = ""
    for index, byte in enumerate(text.encode(errors="surrogateescape")):
        if byte == ord("/"):
            escaped += "-"
        elif byte in _PLAIN and not (index == 0 and byte == ord(".")):
            escaped += chr(byte)
        else:
            escaped += f"\\x{byte:02x}"
    return escaped


def unit_name(pattern: str, domain: str, uuid: str) -> str:
    """Return the unit of a domain.

    Args:
        pattern: ``{domain}`` stands for the domain's name, ``{uuid}`` for its UUID, both escaped;
            ``{domain_as_is}`` for a name that was never escaped.
        domain: its name.
        uuid: its UUID, empty where it has none.

    Raises:
        UnitNameError: the result is no valid unit name.
    """
    if "{uuid}" in pattern and not uuid:
        raise UnitNameError(f"{pattern}: the domain has no UUID")
    try:
        values = {"domain": escape_instance(domain), "uuid": escape_instance(uuid)}
    except UnicodeEncodeError as error:
        raise UnitNameError(f"{pattern}: {domain!r} is no text: {error}") from error
    values["domain_as_is"] = domain
    name = re.sub(r"\{(domain_as_is|domain|uuid)\}", lambda found: values[found[1]], pattern)
    if not _UNIT.fullmatch(name) or len(name) > UNIT_NAME_MAX:
        raise UnitNameError(f"{pattern}: {domain!r} makes no unit's name of it")
    return name


def is_pattern(text: str) -> bool:
    """Whether a text is the name of a service or target, or a pattern of such names."""
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, "x")
    return _UNIT.fullmatch(text) is not None
