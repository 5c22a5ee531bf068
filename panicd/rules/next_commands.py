"""The commands to use next on an incident, for somebody to copy."""

import re
from collections.abc import Iterator
from shlex import quote


def word(name: str, otherwise: str) -> str:
    """Return the word for a domain in a command.

    It is never a name that a shell or panicd would misunderstand: a guest's owner may have chosen
    the name, and people copy commands without a look.

    Args:
        name: the domain's name.
        otherwise: the word to use instead: its UUID, or its monitor.
    """
    return name if re.fullmatch(r"\w[\w.@:+-]*", name, re.ASCII) else quote(otherwise)


def next_commands(
    incident_id: str, domain: str, *, is_open: bool, acknowledged: bool
) -> Iterator[str]:
    """Yield the commands to use next.

    Args:
        incident_id: the incident's id.
        domain: the domain, as ``word`` returns it.
        is_open: the incident is open.
        acknowledged: somebody has looked at it.
    """
    if is_open:
        yield f'panicd act {domain} restart --why "evidence taken"'
        yield f'panicd act {domain} destroy --why "not needed"'
        yield f'panicd release {domain} --why "it may run on"'
        yield f'panicd hold {domain} --for 2h --why "looking at it"'
    else:
        yield f"panicd explain {domain}"
        yield f"panicd export {incident_id}"
    if not acknowledged:
        yield f'panicd ack {incident_id} --why "looked at"'
