"""The forms by which an operator asks for something, and what they ask for.

They allow less than the commands: they can't let a panicked guest run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from panicd.rules.on_crash import OnCrash
from panicd.web.html import Html, element

WHY_LIMIT: Final = 500  # characters
TIMES: Final = (1800.0, 7200.0, 8 * 3600.0, 86400.0)  # seconds
ACTIONS: Final = (
    OnCrash.RESTART,
    OnCrash.DESTROY,
    OnCrash.COREDUMP_RESTART,
    OnCrash.COREDUMP_DESTROY,
)

MakeToken = Callable[[str], str]
"""Returns a token for a form about a subject."""


class Command(StrEnum):
    """What a form can ask for."""

    ACT = "act"
    ACK = "ack"
    HOLD = "hold"
    UNHOLD = "unhold"


class FormError(Exception):
    """What was sent is none of these forms; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an operator asks for.

    Attributes:
        command: which one.
        arguments: of the command, as the control socket takes them.
        subject: of the form; its token is good for this alone.
        token: as it was sent.
    """

    command: Command
    arguments: Mapping[str, object]
    subject: str
    token: str


def subject(command: Command, domain: str, incident: str) -> str:
    """Return the subject of a form."""
    return "\0".join((command, domain, incident))


def read_form(command: Command, fields: Mapping[str, str]) -> Asked:
    """Read what was sent.

    Raises:
        FormError: something in it is missing or malformed.
    """
    domain, incident = fields.get("domain", ""), fields.get("incident", "")
    why = fields.get("why", "").strip()
    if not why or len(why) > WHY_LIMIT or not why.isprintable():
        raise FormError(f"Say why, on one line of at most {WHY_LIMIT} characters.")
    arguments: dict[str, object] = {"why": why}
    match command:
        case Command.ACT:
            action = fields.get("action", "")
            if action not in ACTIONS or not domain or not incident:
                raise FormError("There is no such action.")
            arguments |= {"domain": domain, "action": action, "about": incident}
        case Command.ACK:
            arguments |= {"incident": incident}
        case Command.HOLD:
            seconds = next((t for t in TIMES if f"{t:.0f}" == fields.get("for", "")), math.nan)
            if math.isnan(seconds):
                raise FormError("There is no such time.")
            arguments |= {"domain": domain, "for": seconds}
        case Command.UNHOLD:
            arguments |= {"domain": domain}
    about = subject(command, domain, incident)
    return Asked(command, arguments, about, fields.get("token", ""))


def act_form(make: MakeToken, name: str, domain: str, incident: str) -> Html:
    """Return the form that applies an action to a panicked guest.

    Args:
        make: makes its token.
        name: of the domain.
        domain: its monitor, which identifies it.
        incident: its open incident.
    """
    options = (element("option", action, value=action) for action in ACTIONS)
    choice = element("select", *options, name_="action", id="action")
    label = element("label", "Action", for_="action")
    return _form(make, Command.ACT, f"Act on {name}", domain, incident, label, choice)


def ack_form(make: MakeToken, incident: str) -> Html:
    """Return the form that acknowledges an incident."""
    return _form(make, Command.ACK, "Acknowledge", "", incident)


def hold_form(make: MakeToken, name: str, domain: str) -> Html:
    """Return the form that suspends automation for a domain; arguments as of ``act_form``."""
    options = (element("option", _hours(time), value=f"{time:.0f}") for time in TIMES)
    number = domain_number(domain)
    choice = element("select", *options, name_="for", id=f"for-{number}")
    label = element("label", "For", for_=f"for-{number}")
    return _form(make, Command.HOLD, f"Hold {name}", domain, "", label, choice)


def unhold_form(make: MakeToken, name: str, domain: str) -> Html:
    """Return the form that ends a hold; arguments as of ``act_form``."""
    return _form(make, Command.UNHOLD, f"End the hold on {name}", domain, "")


def domain_number(domain: str) -> str:
    """Return what distinguishes the fields of one domain's form from another's on a page."""
    return domain.encode(errors="surrogatepass").hex()


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def _form(
    make: MakeToken, command: Command, title: str, domain: str, incident: str, *fields: Html
) -> Html:
    why = f"why-{command}-{domain_number(domain)}"
    hidden = {
        "token": make(subject(command, domain, incident)),
        "domain": domain,
        "incident": incident,
    }
    return element(
        "form",
        *(element("input", type="hidden", name_=name, value=v) for name, v in hidden.items()),
        *fields,
        element("label", "Why", for_=why),
        element("input", type="text", id=why, name_="why", required="required",
                maxlength=str(WHY_LIMIT), autocomplete="off"),
        element("button", title, type="submit"),
        method="post",
        action=f"/do/{command}",
        class_="operation",
    )  # fmt: skip
