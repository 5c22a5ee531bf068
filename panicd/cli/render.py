"""What the commands print for people; ``--json`` prints the answer itself."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from panicd.cli.render_dumps import dumps
from panicd.cli.terminal import Terminal, line
from panicd.rules.panic_device import PanicDevice
from panicd.service.control_client import Answer

UNBROKEN = {
    "incident",
    "panicked",
    "now",
    "signature",
    "newest incident",
    "first",
    "last",
}  # columns that are no use in pieces
SHORT_LINE = 64  # characters of a panic line that a list shows
WIDE = 190  # columns of a terminal that has room for all that is known of incidents, in a table
UNFOLDED = 240  # columns; what is piped into a file or another program is not folded

console = Terminal()
if not console.is_terminal:
    console = Terminal(width=UNFOLDED)


def status(answer: Answer) -> None:
    """Print what ``panicd status`` shows."""
    console.print(*status_parts(answer), sep="\n")


def status_parts(answer: Answer) -> Iterator[RenderableType]:
    """Yield what ``panicd status`` shows."""
    if answer["journal_fault"]:
        yield line(("The journal can't be written: ", "bold red"), answer["journal_fault"])
    if answer["libvirt_problem"]:
        yield line(("libvirt does not answer: ", "bold red"), answer["libvirt_problem"])
    for problem in answer["problems"]:
        yield line(("Problem: ", "bold red"), problem)
    for path, why in answer["passed_over"].items():
        yield line(("Passed over: ", "yellow"), f"{path}: {why}")
    if answer["domains"]:
        yield _domains(answer["domains"])
        if beyond := sum(bool(domain["beyond_signals"]) for domain in answer["domains"]):
            yield f"{beyond} could not be ended by a signal if it hung: `panicd explain` says why."
        yield from dumps(answer["domains"], answer["now"])
    else:
        yield "No domain. Does a monitor's glob match, and does its VM run?"
    for incident in answer["waiting"]:
        yield (
            f"Incident {incident['id']} of {incident['domain']} is {incident['state']}; "
            "its domain is not connected."
        )


def _domains(domains: Iterable[Answer]) -> Table:
    table = _table(
        "domain", "run state", "armed", "on_crash", "would do", "restarts left", "open", "held"
    )
    for domain in domains:
        if domain["connected"]:
            cells = [
                _run_state(domain),
                _armed(domain),
                domain["on_crash"],
                _would_do(domain["effective_on_crash"], domain["reason"]),
                str(domain["restarts_left"]),
                f"{domain['incident']} {domain['incident_state']}".strip(),
                _held(domain),
            ]
        else:
            cells = [_away(domain), "", "", "", "", "", _held(domain)]
        table.add_row(domain["domain"], *cells)
    return table


def _run_state(domain: Answer) -> Text:
    state = domain["run_state"]
    if domain["silent"]:
        return line(("silent: ", "red"), f"QEMU does not answer (was {state})")
    return _good(state == "running", state)


def _armed(domain: Answer) -> Text:
    if domain["panic_device"] == PanicDevice.NONE:
        return line((f"{domain['armed']}, but no panic device", "yellow"))
    return _good(domain["armed"] == "yes", domain["armed"])


def _away(domain: Answer) -> Text:
    if domain["spare_of"]:
        return line(f"spare: {domain['problem']}")
    word = "silent" if domain["silent"] else "not connected"
    return line((f"{word}: ", "red"), domain["problem"])


def explanation(answer: Answer) -> None:
    """Print what ``panicd explain`` shows."""
    domain, decided = answer["status"], answer["plan"]
    console.print(line((domain["domain"], "bold"), "  ", domain["uuid"]))
    console.print(f"monitor       {domain['monitor']}")
    if decided is None:
        console.print(_away(domain))
        return
    console.print(line(f"qemu          {domain['qemu_version']}, ", _run_state(domain)))
    types = ", ".join(answer["device_types"]) or "no device"
    console.print(f"panic device  {domain['panic_device']} ({types})")
    if domain["libvirt"]:
        leaves = domain["libvirt"] == "preserve"
        word = "leaves it to panicd" if leaves else f"acts first: {domain['libvirt']}"
        whose = "the domain's own" if domain["inherited"] else "panicd's"
        console.print(line("libvirt       ", _good(leaves, word), f"; on_crash is {whose}"))
    console.print(line("armed         ", _good(domain["armed"] == "yes", domain["armed"])))
    if domain["beyond_signals"]:
        why = domain["beyond_signals"]
        console.print(line("if it hangs   ", ("it can't be ended by a signal: ", "red"), why))
    budget = answer["budget"]
    console.print(f"restarts      {budget['used']} made, {budget['left']} left in the window")
    console.print()
    because = f" ({configured(decided)}, reason {decided['reason']}: {decided['why']})"
    console.print(line("If it panicked now: ", (decided["action"], "bold"), because))
    steps(decided["steps"])
    if then := answer["then"]:
        console.print(line("If it has not reset itself by then: ", (then["action"], "bold")))
        steps(then["steps"])


def steps(planned: Iterable[Answer]) -> None:
    """Print a plan's steps."""
    table = _table("", "step", "time limit", "if it fails")
    for number, step in enumerate(planned, 1):
        table.add_row(
            str(number),
            step["step"],
            f"{step['timeout']:g} s",
            step["on_failure"].replace("-", " "),
        )
    console.print(table if table.row_count else "Nothing is done to the guest; it is recorded.")


def incidents(answer: list[Answer]) -> None:
    """Print what ``panicd incidents`` shows."""
    if not answer:
        console.print("No incident.")
        return
    if console.width < WIDE:
        _incidents_in_short(answer)
        return
    table = _table(
        "incident", "domain", "panicked", "found by", "again", "did", "why", "now", "seen"
    )
    table.add_column("panic line", no_wrap=True, overflow="ellipsis")
    for incident in answer:
        last = incident["decisions"][-1] if incident["decisions"] else {}
        table.add_row(
            incident["id"],
            incident["domain"],
            written_time(incident["opened_at"]),
            incident["source"],
            str(incident["repeats"]),
            last.get("action", ""),
            last.get("reason", ""),
            _now(incident),
            "yes" if incident["acknowledged"] else "",
            short(incident["panic_line"]),
        )
    console.print(table)


def _incidents_in_short(answer: list[Answer]) -> None:
    """Print incidents for a terminal that has no room for the table: two lines each."""
    for incident in answer:
        action = incident["decisions"][-1]["action"] if incident["decisions"] else "nothing decided"
        seen = ", seen" if incident["acknowledged"] else ""
        name, at = incident["domain"], written_time(incident["opened_at"])
        head = f"  {at}  {name}: {action}, "
        console.print(line((incident["id"], "bold"), head, _now(incident), seen))
        if words := incident["panic_line"]:
            console.print(f"    {short(words)}", no_wrap=True, overflow="ellipsis")


def panics(answer: list[Answer]) -> None:
    """Print what ``panicd panics`` shows."""
    if not answer:
        console.print("No panic of which enough is known to compare it.")
        return
    if console.width < WIDE:
        _panics_in_short(answer)
        return
    table = _table("signature", "seen", "domains", "first", "last", "newest incident", "panic")
    for group in answer:
        table.add_row(
            group["signature"],
            str(group["count"]),
            str(group["domains"]),
            written_time(group["first_at"]),
            written_time(group["last_at"]),
            group["newest"],
            signature(group),
        )
    console.print(table)


def _panics_in_short(answer: list[Answer]) -> None:
    """Print panics for a terminal that has no room for the table: two lines each."""
    for group in answer:
        last = written_time(group["last_at"])
        head = f"  {last}  {group['newest']}: {seen(group)}"
        console.print(line((group["signature"], "bold"), head))
        console.print(f"    {signature(group)}", no_wrap=True, overflow="ellipsis")


def seen(group: Answer) -> str:
    """Return how often a panic was seen, and on how many domains."""
    times = "seen once" if group["count"] == 1 else f"seen {group['count']} times"
    domains = "1 domain" if group["domains"] == 1 else f"{group['domains']} domains"
    return f"{times} on {domains}"


def signature(known: Answer) -> str:
    """Return what a panic is known by, as people read it: its title and its functions."""
    return " in ".join(filter(None, (known["title"], " < ".join(known["frames"]))))


def probe(answer: Answer) -> None:
    """Print what ``panicd probe`` shows."""
    console.print(line((answer["name"] or "(no name)", "bold"), "  ", answer["uuid"]))
    console.print(f"qemu          {answer['qemu_version']}, {answer['run_state']}")
    types = ", ".join(answer["device_types"]) or "no device"
    console.print(f"panic device  {answer['panic_device']} ({types})")
    armed = _good(answer["armed"] == "yes", answer["armed"])
    console.print(line("armed         ", armed, f": {answer['why']}"))
    if answer["libvirt"]:
        leaves = "acts first" if answer["libvirt_acts"] else "leaves it to panicd"
        word = _good(not answer["libvirt_acts"], leaves)
        own = f"; the domain's own on_crash is {answer['on_crash']}"
        console.print(line("libvirt       ", word, own))
    if answer["libvirt_problem"]:
        console.print(line("libvirt       ", ("no answer: ", "red"), answer["libvirt_problem"]))
    table = _table("on_crash", "would do", "why")
    for plan in answer["policies"]:
        table.add_row(plan["on_crash"], _would_do(plan["action"], plan["reason"]), plan["why"])
    console.print(table)
    if not answer["on_crash_applies"]:
        instead = f"As configured none of these applies, but unrequested {answer['unrequested']}: "
        did = (answer["configured"]["action"], "bold")
        console.print(line(instead, did, ". Nobody asked for this VM's panic device."))
    for remedy in answer["remedies"]:
        console.print(line(("To change: ", "yellow"), remedy))


def audit(answer: Answer) -> None:
    """Print what ``panicd audit`` shows."""
    if not answer["exposed"]:
        console.print(f"{answer['domains']} domains, and each could be acted on.")
        return
    table = _table("domain", "on_crash", "why not", "what to do")
    for exposed in answer["exposed"]:
        name, on_crash = exposed["domain"], exposed["on_crash"]
        for reason, remedy in exposed["reasons"].items():
            table.add_row(name, on_crash, line((reason, "yellow")), remedy)
            name = on_crash = ""
    console.print(table)


def advice(answer: list[Answer]) -> None:
    """Print what ``panicd advise`` shows."""
    for number, each in enumerate(answer):
        if number:
            console.print()
        system = each["system"]
        console.print(line((each["domain"] or system["id"], "bold")))
        console.print(f"runs     {system['name'] or '(not known)'}, as {system['known_by']} says")
        if each["has"]:
            console.print(f"has      a panic device: {', '.join(each['has'])}")
        if each["device"]:
            how = f" ({each['arguments']}, or {each['libvirt']}): {each['why']}"
            console.print(line("give it  ", (each["device"], "bold"), how))
        else:
            console.print(line("give it  ", ("none: ", "yellow"), each["why"]))
        for key in ("ignore", "grace", "kdump"):
            console.print(f"{key:8} {each[key]}")
        if not each["support"]:
            continue
        table = _table("device", "can it", "why", "source")
        for row in each["support"]:
            table.add_row(row["device"], row["verdict"], row["why"], row["source"])
        console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in UNBROKEN, overflow="fold")
    return table


def configured(decision: Answer) -> str:
    """Return what of the configuration led to a decision."""
    instead = f", unrequested {decision['unrequested']}" if decision["unrequested"] else ""
    return f"on_crash {decision['on_crash']}{instead}"


def short(words: str) -> str:
    """Return as much of a panic line as a list shows, without the words that all begin with."""
    words = words.removeprefix("Kernel panic - not syncing: ")
    return words if len(words) <= SHORT_LINE else words[: SHORT_LINE - 1] + "…"


def _now(incident: Answer) -> Text:
    return line(incident["ending"] or (incident["state"], "yellow"))


def _good(is_good: bool, word: str) -> Text:
    return line((word, "green" if is_good else "yellow"))


def _held(domain: Answer) -> Text:
    if not domain["held_why"]:
        return line()
    until = f"until {written_time(domain['held_until'])}: " if domain["held_until"] else ""
    return line((until + domain["held_why"], "yellow"))


def _would_do(action: str, reason: str) -> Text:
    return line(action) if reason == "on-crash" else line((action, "yellow"), f" ({reason})")


def written_time(seconds: float) -> str:
    """Return a time, local, from seconds since the epoch."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
