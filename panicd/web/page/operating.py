"""What an operator asks for by a form: whether the form is the operator's, and the outcome.

Whoever calls this knows who asks. The request is carried out as if it came over the control socket,
and is recorded with the operator's name on the page.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from panicd.web.html import Html, element, joined
from panicd.web.page.filtering import fields_of
from panicd.web.page.forms import Asked, Command, FormError, read_form
from panicd.web.page.parts import BAD, GOOD, WARN, domain_link, notice, when
from panicd.web.page.tokens import Tokens
from panicd.web.web import Request

Operate = Callable[[str, Mapping[str, object], str], object]
"""Gives the daemon a command, its arguments and who asks, and returns the answer.

Blocking. Raises ``NotDoneError``.
"""

FORM: Final = "application/x-www-form-urlencoded"


class NotDoneError(Exception):
    """The daemon refused the request; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a form, and the status of the answer."""

    status: HTTPStatus
    told: Html


def carry_out(request: Request, command: Command, tokens: Tokens, operate: Operate) -> Outcome:
    """Carry out what an operator asks for by a form. Blocking.

    Args:
        request: a POST of somebody who may.
        command: which one.
        tokens: makes and takes the forms' tokens.
        operate: carries it out.
    """
    if not _is_from_here(request) or request.headers.get("content-type", "") != FORM:
        return _refused(HTTPStatus.FORBIDDEN, "This form was not sent from panicd's page.")
    try:
        asked = read_form(command, fields_of(request.body.decode("ascii", errors="replace")))
    except FormError as error:
        return _refused(HTTPStatus.BAD_REQUEST, str(error))
    if not tokens.take(asked.token, request.user, asked.subject):
        why = "This form is too old, or was already sent. Reload the page and look again."
        return _refused(HTTPStatus.FORBIDDEN, why)
    try:
        answer = operate(command, asked.arguments, request.user)
    except NotDoneError as error:
        return _refused(HTTPStatus.CONFLICT, f"Refused: {error}")
    assert isinstance(answer, dict)
    return _told(asked, answer)


def _is_from_here(request: Request) -> bool:
    """Tell whether a browser says that the form was on a page of this server.

    Every browser of today says this of a POST (https://fetch.spec.whatwg.org/#origin-header).
    """
    try:
        origin = urlsplit(request.headers.get("origin", ""))
    except ValueError:
        return False
    schemes = (
        {"https"} if request.encrypted else {"http", "https"}
    )  # a proxy may end TLS before panicd
    return origin.scheme in schemes and origin.netloc == request.headers.get("host")


def _refused(status: HTTPStatus, why: str) -> Outcome:
    return Outcome(status, notice(BAD, why))


def _told(asked: Asked, answer: dict[str, object]) -> Outcome:
    """Return what was done, in words."""
    arguments = asked.arguments
    incident = str(answer.get("incident") or "")
    about = element("a", f"incident {incident}", href=f"/incident/{incident}") if incident else ""
    match asked.command:
        case Command.ACT if not answer["done"]:
            said = f"{arguments['action']} of {answer['domain']} is under way."
            return Outcome(HTTPStatus.ACCEPTED, joined(notice(WARN, said), element("p", about)))
        case Command.ACT:
            ended = f"{answer['ending']}" if answer["ending"] else f"open, {answer['state']}"
            said = f"{arguments['action']} of {answer['domain']}: its incident is {ended}."
        case Command.ACK:
            said = f"Acknowledged, of {answer['domain']}."
        case Command.HOLD:
            until = answer["until"]
            assert isinstance(until, float)
            said = f"Held until {when(until)}."
        case Command.UNHOLD:
            still = answer["still_held"]
            said = "The hold has ended." + (" Another hold goes on." if still else "")
    domains = answer.get("domains")
    named = [domain_link(str(name)) for name in domains] if isinstance(domains, list) else []
    listed = [element("li", name) for name in named]
    return Outcome(
        HTTPStatus.OK,
        joined(notice(GOOD, said), element("p", about), element("ul", *listed)),
    )
