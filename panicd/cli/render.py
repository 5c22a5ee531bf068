"""What the commands print for people; ``--json`` prints the answer itself.

Texts that may come from a guest, or from a QEMU taken over by one, are escaped here.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from shlex import quote
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape as escape_markup
from rich.table import Table

from panicd.cli.render_dumps import dumps
from panicd.host.logs import escape
from panicd.rules.qemu_args import Argument

Answer = dict[str, Any]
"""An answer of the daemon's, as decoded from JSON."""

UNBROKEN = {
    "incident",
    "panicked",
    "now",
    "signature",
    "newest incident",
    "first",
    "last",
}  # columns that are no use in pieces
WATCH_EVERY = 1.0  # seconds
SHORT_LINE = 64  # characters of a panic line that a list shows
WIDE = 190  # columns of a terminal that has room for all that is known of incidents, in a table
UNFOLDED = 240  # columns; what is piped into a file or another program is not folded

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=UNFOLDED)


def watch(ask: Callable[[], Answer]) -> None:
    """Show what ``panicd status`` shows, anew every second, until interrupted."""
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(Group(*_status(ask())), refresh=True)
            time.sleep(WATCH_EVERY)


def status(answer: Answer) -> None:
    """Print what ``panicd status`` shows."""
    console.print(*_status(answer), sep="\n")


def _status(answer: Answer) -> Iterator[RenderableType]:
    if answer["journal_fault"]:
        yield f"[bold red]The journal can't be written:[/] {text(answer['journal_fault'])}"
    if answer["libvirt_problem"]:
        yield f"[bold red]libvirt does not answer:[/] {text(answer['libvirt_problem'])}"
    if answer["domains"]:
        yield _domains(answer["domains"])
        yield from dumps(answer["domains"], answer["now"])
    else:
        yield "No domain. Does a monitor's glob match, and does its VM run?"
    for incident in answer["waiting"]:
        yield (
            f"Incident {incident['id']} of {text(incident['domain'])} is {incident['state']}; "
            "its domain is not connected."
        )


def _domains(domains: Iterable[Answer]) -> Table:
    table = _table(
        "domain", "run state", "armed", "on_crash", "would do", "restarts left", "open", "held"
    )
    for domain in domains:
        if domain["connected"]:
            cells = [
                _good(domain["run_state"] == "running", domain["run_state"]),
                _good(domain["armed"] == "yes", domain["armed"]),
                domain["on_crash"],
                _would_do(domain["effective_on_crash"], domain["reason"]),
                str(domain["restarts_left"]),
                text(f"{domain['incident']} {domain['incident_state']}".strip()),
                _held(domain),
            ]
        else:
            problem = f"[red]not connected:[/] {text(domain['problem'])}"
            cells = [problem, "", "", "", "", "", _held(domain)]
        table.add_row(text(domain["domain"]), *cells)
    return table


def explanation(answer: Answer) -> None:
    """Print what ``panicd explain`` shows."""
    domain, decided = answer["status"], answer["plan"]
    console.print(f"[bold]{text(domain['domain'])}[/]  {text(domain['uuid'])}")
    console.print(f"monitor       {text(domain['monitor'])}")
    if decided is None:
        console.print(f"[red]not connected:[/] {text(domain['problem'])}")
        return
    console.print(f"qemu          {domain['qemu_version']}, {domain['run_state']}")
    types = ", ".join(answer["device_types"]) or "no device"
    console.print(f"panic device  {domain['panic_device']} ({types})")
    if domain["libvirt"]:
        leaves = domain["libvirt"] == "preserve"
        word = "leaves it to panicd" if leaves else f"acts first: {text(domain['libvirt'])}"
        whose = "the domain's own" if domain["inherited"] else "panicd's"
        console.print(f"libvirt       {_good(leaves, word)}; on_crash is {whose}")
    console.print(f"armed         {_good(domain['armed'] == 'yes', domain['armed'])}")
    budget = answer["budget"]
    console.print(f"restarts      {budget['used']} made, {budget['left']} left in the window")
    console.print()
    console.print(
        f"If it panicked now: [bold]{decided['action']}[/] "
        f"(on_crash {decided['on_crash']}, reason {decided['reason']}: {decided['why']})"
    )
    steps(decided["steps"])
    if then := answer["then"]:
        console.print(f"If it has not reset itself by then: [bold]{then['action']}[/]")
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
            text(incident["domain"]),
            written_time(incident["opened_at"]),
            incident["source"],
            str(incident["repeats"]),
            last.get("action", ""),
            last.get("reason", ""),
            incident["ending"] or f"[yellow]{incident['state']}[/]",
            "yes" if incident["acknowledged"] else "",
            text(short(_words(incident))),
        )
    console.print(table)


def _incidents_in_short(answer: list[Answer]) -> None:
    """Print incidents for a terminal that has no room for the table: two lines each."""
    for incident in answer:
        action = incident["decisions"][-1]["action"] if incident["decisions"] else "nothing decided"
        now = incident["ending"] or f"[yellow]{incident['state']}[/]"
        seen = ", seen" if incident["acknowledged"] else ""
        name, at = text(incident["domain"]), written_time(incident["opened_at"])
        console.print(f"[bold]{incident['id']}[/]  {at}  {name}: {action}, {now}{seen}")
        if words := _words(incident):
            console.print(f"    {text(short(words))}", no_wrap=True, overflow="ellipsis")


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
            text(signature(group)),
        )
    console.print(table)


def _panics_in_short(answer: list[Answer]) -> None:
    """Print panics for a terminal that has no room for the table: two lines each."""
    for group in answer:
        last = written_time(group["last_at"])
        console.print(f"[bold]{group['signature']}[/]  {last}  {group['newest']}: {seen(group)}")
        console.print(f"    {text(signature(group))}", no_wrap=True, overflow="ellipsis")


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
    console.print(f"[bold]{text(answer['name'] or '(no name)')}[/]  {text(answer['uuid'])}")
    console.print(f"qemu          {answer['qemu_version']}, {answer['run_state']}")
    types = ", ".join(answer["device_types"]) or "no device"
    console.print(f"panic device  {answer['panic_device']} ({types})")
    console.print(
        f"armed         {_good(answer['armed'] == 'yes', answer['armed'])}: {answer['why']}"
    )
    if answer["libvirt"]:
        leaves = "acts first" if answer["libvirt_acts"] else "leaves it to panicd"
        word = _good(not answer["libvirt_acts"], leaves)
        console.print(f"libvirt       {word}; the domain's own on_crash is {answer['on_crash']}")
    if answer["libvirt_problem"]:
        console.print(f"libvirt       [red]no answer:[/] {text(answer['libvirt_problem'])}")
    table = _table("on_crash", "would do", "why")
    for plan in answer["policies"]:
        table.add_row(plan["on_crash"], _would_do(plan["action"], plan["reason"]), plan["why"])
    console.print(table)
    for remedy in answer["remedies"]:
        console.print(f"[yellow]To change:[/] {remedy}")


def audit(answer: Answer) -> None:
    """Print what ``panicd audit`` shows."""
    if not answer["exposed"]:
        console.print(f"{answer['domains']} domains, and each could be acted on.")
        return
    table = _table("domain", "on_crash", "why not", "what to do")
    for exposed in answer["exposed"]:
        name, on_crash = text(exposed["domain"]), exposed["on_crash"]
        for reason, remedy in exposed["reasons"].items():
            table.add_row(name, on_crash, f"[yellow]{reason}[/]", text(remedy))
            name = on_crash = ""
    console.print(table)


def arguments(name: str, wanted: Iterable[Argument]) -> None:
    """Print QEMU arguments, as a shell takes them, each with its reason."""
    lines = [("-name " + quote(name), "what panicd calls it")]
    lines += [(f"{a.option} {quote(a.value)}" if a.value else a.option, a.why) for a in wanted]
    width = max(len(line) for line, _ in lines)
    for line, why in lines:
        print(f"{line:{width}}  # {why}")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=heading in UNBROKEN, overflow="fold")
    return table


def _words(incident: Answer) -> str:
    """Return the panic's own words, or else those of its payload, if it had one."""
    return str(
        incident["panic_line"] or (incident["information"] and incident["payload"]["summary"]) or ""
    )


def short(line: str) -> str:
    """Return as much of a panic line as a list shows, without the words that all begin with."""
    line = line.removeprefix("Kernel panic - not syncing: ")
    return line if len(line) <= SHORT_LINE else line[: SHORT_LINE - 1] + "…"


def text(value: str) -> str:
    """Return a text that may be a guest's, escaped for the terminal and for rich."""
    return escape_markup(escape(value))


def _good(is_good: bool, text: str) -> str:
    return f"[green]{text}[/]" if is_good else f"[yellow]{text}[/]"


def _held(domain: Answer) -> str:
    if not domain["held_why"]:
        return ""
    until = f"until {written_time(domain['held_until'])}: " if domain["held_until"] else ""
    return f"[yellow]{until}{text(domain['held_why'])}[/]"


def _would_do(action: str, reason: str) -> str:
    return action if reason == "on-crash" else f"[yellow]{action}[/] ({reason})"


def written_time(seconds: float) -> str:
    """Return a time, local, from seconds since the epoch."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
