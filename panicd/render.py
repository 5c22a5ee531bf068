"""What the commands print for people; ``--json`` prints the answer itself.

Texts that may come from a guest, or from a QEMU taken over by one, are escaped here.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from shlex import quote
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape as escape_markup
from rich.table import Table

from panicd.host.logs import escape
from panicd.rules.qemu_args import Argument

Answer = dict[str, Any]
"""An answer of the daemon's, as decoded from JSON."""

UNBROKEN = {"incident", "panicked", "now"}  # columns that are no use in pieces
WATCH_EVERY = 1.0  # seconds
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
        yield f"[bold red]The journal can't be written:[/] {_text(answer['journal_fault'])}"
    if answer["libvirt_problem"]:
        yield f"[bold red]libvirt does not answer:[/] {_text(answer['libvirt_problem'])}"
    if answer["domains"]:
        yield _domains(answer["domains"])
    else:
        yield "No domain. Does a monitor's glob match, and does its VM run?"
    for incident in answer["waiting"]:
        yield (
            f"Incident {incident['id']} of {_text(incident['domain'])} is {incident['state']}; "
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
                _text(f"{domain['incident']} {domain['incident_state']}".strip()),
                _held(domain),
            ]
        else:
            problem = f"[red]not connected:[/] {_text(domain['problem'])}"
            cells = [problem, "", "", "", "", "", _held(domain)]
        table.add_row(_text(domain["domain"]), *cells)
    return table


def explanation(answer: Answer) -> None:
    """Print what ``panicd explain`` shows."""
    domain, decided = answer["status"], answer["plan"]
    console.print(f"[bold]{_text(domain['domain'])}[/]  {_text(domain['uuid'])}")
    console.print(f"monitor       {_text(domain['monitor'])}")
    if decided is None:
        console.print(f"[red]not connected:[/] {_text(domain['problem'])}")
        return
    console.print(f"qemu          {domain['qemu_version']}, {domain['run_state']}")
    types = ", ".join(answer["device_types"]) or "no device"
    console.print(f"panic device  {domain['panic_device']} ({types})")
    if domain["libvirt"]:
        leaves = domain["libvirt"] == "preserve"
        word = "leaves it to panicd" if leaves else f"acts first: {_text(domain['libvirt'])}"
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
    table = _table(
        "incident", "domain", "panicked", "found by", "again", "did", "why", "now", "seen"
    )
    for incident in answer:
        last = incident["decisions"][-1] if incident["decisions"] else {}
        table.add_row(
            incident["id"],
            _text(incident["domain"]),
            _time(incident["opened_at"]),
            incident["source"],
            str(incident["repeats"]),
            last.get("action", ""),
            last.get("reason", ""),
            incident["ending"] or f"[yellow]{incident['state']}[/]",
            "yes" if incident["acknowledged"] else "",
        )
    console.print(table)


def incident(answer: Answer) -> None:
    """Print what ``panicd incident`` shows."""
    console.print(f"[bold]{answer['id']}[/]  {_text(answer['domain'])}  {_text(answer['uuid'])}")
    if answer["panic_line"]:
        console.print(f"[bold]{_text(answer['panic_line'])}[/]")
    console.print(f"monitor   {_text(answer['monitor'])}")
    console.print(f"panicked  {_time(answer['opened_at'])}, known by {answer['source']}")
    if answer["repeats"]:
        console.print(f"again     {answer['repeats']} times within the incident")
    console.print(f"now       {answer['ending'] or answer['state']}")
    if seen := answer["acknowledged"]:
        console.print(f"seen      by uid {seen['uid']}: {_text(seen['why'])}")
    console.print()
    table = _table("after", "what", "")
    for entry in answer["history"]:
        after = (entry["at"] - answer["opened_at"]) * 1000
        table.add_row(f"{after:.1f} ms", entry["kind"].replace("-", " "), _about(entry))
    console.print(table)
    if evidence := answer["evidence"]:
        console.print(f"\nEvidence in {_text(answer['evidence_directory'])}")
        for name, what in sorted(evidence["files"].items()):
            console.print(f"  {_text(name)}: {_text(what)}")
        for item, why in sorted(evidence["problems"].items()):
            console.print(f"  [yellow]no {_text(item)}:[/] {_text(why)}")


def _about(entry: Answer) -> str:
    """Return what an entry of an incident's history says, beside its kind."""
    match entry["kind"]:
        case "opened":
            return _text(json.dumps(entry["information"])) if entry["information"] else ""
        case "repeated":
            return f"{entry['count']} times"
        case "decided":
            plan = entry["plan"]
            return f"{plan['action']}: {plan['why']}"
        case "step-begun":
            return str(entry["step"])
        case "step-ended":
            detail = f": {_text(entry['detail'])}" if entry["detail"] else ""
            return f"{entry['step']} {entry['outcome']}{detail}"
        case "settled":
            return str(entry["state"])
        case "closed":
            return f"{entry['ending']} {_text(entry['detail'])}"
        case "asked" | "acknowledged":
            return f"uid {entry['uid']} {_text(entry.get('what', ''))}: {_text(entry['why'])}"
        case "observed":
            return _text(entry["what"])
        case _:
            return ""


def probe(answer: Answer) -> None:
    """Print what ``panicd probe`` shows."""
    console.print(f"[bold]{_text(answer['name'] or '(no name)')}[/]  {_text(answer['uuid'])}")
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
        console.print(f"libvirt       [red]no answer:[/] {_text(answer['libvirt_problem'])}")
    table = _table("on_crash", "would do", "why")
    for plan in answer["policies"]:
        table.add_row(plan["on_crash"], _would_do(plan["action"], plan["reason"]), plan["why"])
    console.print(table)
    for remedy in answer["remedies"]:
        console.print(f"[yellow]To change:[/] {remedy}")


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


def _text(value: str) -> str:
    return escape_markup(escape(value))


def _good(is_good: bool, text: str) -> str:
    return f"[green]{text}[/]" if is_good else f"[yellow]{text}[/]"


def _held(domain: Answer) -> str:
    if not domain["held_why"]:
        return ""
    until = f"until {_time(domain['held_until'])}: " if domain["held_until"] else ""
    return f"[yellow]{until}{_text(domain['held_why'])}[/]"


def _would_do(action: str, reason: str) -> str:
    return action if reason == "on-crash" else f"[yellow]{action}[/] ({reason})"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
