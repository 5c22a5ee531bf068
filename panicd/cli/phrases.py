"""Words that several commands share."""

from typing import Final

from panicd.cli.moment import written_time
from panicd.host.terminal import Text, line
from panicd.rules.policy import Reason
from panicd.service.control_client import Answer

SHORT_LINE: Final = 64  # characters of a panic line that a list shows
_UNSAID: Final = {"", Reason.ON_CRASH, Reason.OPERATOR}
_SHORT: Final = {
    Reason.BUDGET_SPENT: "restarts spent",
    Reason.CRASH_LOOP: "restarts spent in a crash loop",
}


def counted(number: int, what: str) -> str:
    """Return a number with what is counted."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def because(decision: Answer) -> str:
    """Return why a decision was made."""
    if decision["reason"] == "on-crash":
        return "on_crash, as configured"
    instead = f", unrequested {decision['unrequested']}" if decision["unrequested"] else ""
    configured = f"on_crash {decision['on_crash']}{instead}"
    return f"{configured}, reason {decision['reason']}: {decision['why']}"


def short(words: str) -> str:
    """Return as much of a panic line as a list shows, without the words that are in all of them."""
    words = words.removeprefix("Kernel panic - not syncing: ")
    return words if len(words) <= SHORT_LINE else words[: SHORT_LINE - 1] + "…"


def waits_for(domain: Answer) -> str:
    """Return why a panicked domain is as it is, in a word or two; empty where it was wanted so."""
    reason = domain["incident_reason"]
    if reason in _UNSAID or (reason == Reason.HELD and domain["held_why"]):
        return ""
    return _SHORT.get(reason) or str(reason).replace("-", " ")


def would_do(action: str, reason: str) -> Text:
    """Return what a panic would lead to, and the reason if that is not what is configured."""
    return line(action) if reason == "on-crash" else line((action, "yellow"), f" ({reason})")


def held(domain: Answer) -> str:
    """Return until when a domain is held, and why."""
    until = (
        f"until {written_time(domain['held_until'])}" if domain["held_until"] else "until `unhold`"
    )
    return f"{until}: {domain['held_why']}"
