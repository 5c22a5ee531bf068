"""What the commands print for people; ``--json`` prints the answer as a document."""

from collections.abc import Iterable
from typing import Final

from panicd.cli.moment import age, written_time
from panicd.cli.phrases import because, counted, held, short, would_do
from panicd.host import terminal
from panicd.host.terminal import Column, Text, line, listing, table, to_copy
from panicd.service.control_client import Answer

_GUEST: Final = {
    "preserved": "the guest is stopped",
    "failed": "the guest could not be acted on",
    "reset": "somebody reset the guest, and has not let it run",
    "running-on": "the guest runs on",
    "watched": "the guest handles its panic itself",
}

_WORK: Final = {
    "idle": "no, by QEMU's own events",
    "busy": "perhaps: panicd asks QEMU before it acts",
    "unknown": "panicd asks QEMU before it acts",
}


def explanation(answer: Answer) -> None:
    """Print what ``panicd explain`` shows."""
    domain, decided, show = answer["status"], answer["plan"], terminal.console.print
    show(line((domain["domain"], "bold"), "  ", domain["uuid"]))
    if domain["incident"]:
        how = _GUEST.get(domain["incident_state"], "panicd is at work")
        show(line(("incident      ", "yellow"), f"{domain['incident']} is open: {how}."))
    show(to_copy(f"monitor       {domain['monitor']}"))
    if decided is None:
        word = "silent" if domain["silent"] else "not connected"
        show(line((f"{word}: ", "red"), domain["problem"]))
        return
    state = domain["run_state"]
    is_well = _good(state == "running", state)
    silent = line((f"silent (was {state})", "red")) if domain["silent"] else is_well
    show(line(f"qemu          {domain['qemu_version']}, ", silent))
    types = ", ".join(answer["device_types"]) or "no device"
    show(f"panic device  {domain['panic_device']} ({types})")
    if answer["plugged"]:
        price = "by `panicd arm`: the VM can't be migrated, nor started from its saved state"
        show(line("plugged in    ", (price, "yellow")))
    if domain["libvirt"]:
        leaves = domain["libvirt"] == "preserve"
        word = "leaves it to panicd" if leaves else f"acts first: {domain['libvirt']}"
        whose = "the domain's own" if domain["inherited"] else "panicd's"
        show(line("libvirt       ", _good(leaves, word), f"; on_crash is {whose}"))
    show(line("armed         ", _good(domain["armed"] == "yes", domain["armed"])))
    show(f"at work       {_WORK[answer['work']]}")
    if domain["held_why"]:
        show(line("held          ", (held(domain), "yellow")))
    if domain["beyond_signals"]:
        why = domain["beyond_signals"]
        show(line("in a hang     ", ("it can't be ended by a signal: ", "red"), why))
    budget = answer["budget"]
    show(f"restarts      {budget['used']} made, {budget['left']} left in the window", "")
    show(line("If it panicked now: ", (decided["action"], "bold"), f" ({because(decided)})"))
    _steps(decided)
    if then := answer["then"]:
        show(line("If it has not reset itself by then: ", (then["action"], "bold")))
        _steps(then)


def _steps(plan: Answer) -> None:
    """Print a plan's steps, in the plan's own words."""
    if not plan["steps"]:
        terminal.console.print("panicd only records the panic.")
        return
    rows = (
        (
            str(number),
            step["step"],
            f"{step['timeout']:g} s",
            step["on_failure"].replace("-", " "),
            step["does"],
        )
        for number, step in enumerate(plan["steps"], 1)
    )
    print_table(("", "STEP", "TIME LIMIT", "IF IT FAILS", "WHAT IT DOES"), rows)
    if at_once := plan["at_once"]:
        first, last = at_once
        both = f"{first} and {last}" if last == first + 1 else f"{first} to {last}"
        terminal.console.print(f"panicd takes steps {both} together, unless QEMU is busy.")


def incidents(answer: list[Answer], now: float) -> None:
    """Print what ``panicd incidents`` shows; ``now`` in seconds since the epoch."""
    if not answer:
        terminal.console.print("No incident.")
        return
    columns = (
        Column("INCIDENT"),
        Column("DOMAIN"),
        Column("STATE", 1),
        Column("AGE", 4),
        Column("PANICKED", 8),
        Column("ACTION", 5),
        Column("REASON", 3),
        Column("ACKNOWLEDGED", 6),
        Column("REPEATS", 7),
        Column("KNOWN BY", 9),
        Column("PANIC LINE", 2, cut=True),
    )
    print_list(columns, (_incident(incident, now) for incident in answer))


def _incident(incident: Answer, now: float) -> Iterable[str | Text]:
    last = incident["decisions"][-1] if incident["decisions"] else {}
    return (
        incident["id"],
        incident["domain"],
        line(incident["ending"] or (incident["state"], "yellow")),
        age(now - incident["opened_at"]),
        written_time(incident["opened_at"]),
        last.get("action", ""),
        last.get("reason", ""),
        "yes" if incident["acknowledged"] else "",
        str(incident["repeats"] or ""),
        incident["source"],
        short(incident["panic_line"]),
    )


def panics(answer: list[Answer]) -> None:
    """Print what ``panicd panics`` shows."""
    if not answer:
        terminal.console.print("No panic yet that panicd knows enough about to compare it.")
        return
    columns = (
        Column("SIGNATURE"),
        Column("COUNT"),
        Column("DOMAINS", 3),
        Column("NEWEST INCIDENT", 1),
        Column("LAST", 4),
        Column("FIRST", 5),
        Column("PANIC", 2, cut=True),
    )
    print_list(columns, map(_group, answer))


def _group(group: Answer) -> Iterable[str]:
    return (
        group["signature"],
        str(group["count"]),
        str(group["domains"]),
        group["newest"],
        written_time(group["last_at"]),
        written_time(group["first_at"]),
        signature(group),
    )


def print_list(columns: Iterable[Column], rows: Iterable[Iterable[str | Text]]) -> None:
    """Print a list, a line for each row."""
    terminal.console.print(*listing(columns, rows, terminal.console.width))


def print_table(headings: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> None:
    """Print a table, each cell whole."""
    terminal.console.print(*table(headings, rows, terminal.console.width))


def seen(group: Answer) -> str:
    """Return how often a panic was seen, and on how many domains."""
    times = "seen once" if group["count"] == 1 else f"seen {group['count']} times"
    domains = "1 domain" if group["domains"] == 1 else f"{group['domains']} domains"
    return f"{times} on {domains}"


def signature(known: Answer) -> str:
    """Return what identifies a panic, for people: its title and its functions."""
    return " in ".join(filter(None, (known["title"], " < ".join(known["frames"]))))


def probe(answer: Answer) -> None:
    """Print what ``panicd probe`` shows."""
    show = terminal.console.print
    show(line((answer["name"] or "(no name)", "bold"), "  ", answer["uuid"]))
    show(f"qemu          {answer['qemu_version']}, {answer['run_state']}")
    types = ", ".join(answer["device_types"]) or "no device"
    show(f"panic device  {answer['panic_device']} ({types})")
    armed = _good(answer["armed"] == "yes", answer["armed"])
    show(line("armed         ", armed, f": {answer['why']}"))
    if answer["libvirt"]:
        leaves = "acts first" if answer["libvirt_acts"] else "leaves it to panicd"
        word = _good(not answer["libvirt_acts"], leaves)
        show(line("libvirt       ", word, f"; the domain's own on_crash is {answer['on_crash']}"))
    if answer["libvirt_problem"]:
        show(line("libvirt       ", ("no answer: ", "red"), answer["libvirt_problem"]))
    rows = (
        (plan["on_crash"], would_do(plan["action"], plan["reason"]), plan["why"])
        for plan in answer["policies"]
    )
    print_table(("ON_CRASH", "ACTION", "WHY"), rows)
    if not answer["on_crash_applies"]:
        instead = f"None of these applies as configured, but unrequested {answer['unrequested']}: "
        did = (answer["configured"]["action"], "bold")
        show(line(instead, did, ". Nobody asked for this VM's panic device."))
    for remedy in answer["remedies"]:
        show(line(("To change: ", "yellow"), remedy))


def audit(answer: Answer) -> None:
    """Print what ``panicd audit`` shows: piped, a line for each domain and reason."""
    exposed, show = answer["exposed"], terminal.console.print
    if not exposed:
        checked = counted(answer["domains"], "domain")
        each = "each" if answer["domains"] > 1 else "it"
        show(f"{checked}, and {each} could be acted on." if answer["domains"] else "No domain.")
        return
    found = [
        (reason, remedy, _audited(each), each["on_crash"])
        for each in exposed
        for reason, remedy in each["reasons"].items()
    ]
    if terminal.console.width is None:
        rows = ((name, policy, reason, remedy) for reason, remedy, name, policy in found)
        print_table(("DOMAIN", "ON_CRASH", "WHY NOT", "WHAT TO DO"), rows)
        return
    others = sum(each["pid"] is not None for each in exposed)
    if domains := len(exposed) - others:
        show(f"{domains} of {counted(answer['domains'], 'domain')} could not be acted on.")
    if others:
        show(f"panicd does not watch {counted(others, 'QEMU')} of this host.")
    same: dict[tuple[str, str], list[str]] = {}
    for reason, remedy, name, _ in found:
        same.setdefault((reason, remedy), []).append(name)
    print_table(
        ("WHY NOT", "DOMAINS, AND WHAT TO DO"),
        (
            row
            for (reason, remedy), names in same.items()
            for row in (
                (line((reason, "yellow")), line((", ".join(names), "bold"))),
                ("", remedy),
            )
        ),
    )


def _audited(exposed: Answer) -> str:
    """Return an exposed domain's name; for a QEMU that is no domain, also its process."""
    if exposed["pid"] is None:
        return str(exposed["domain"])
    process = f"process {exposed['pid']}"
    return f"{exposed['domain']} ({process})" if exposed["domain"] else process


def advice(answer: list[Answer]) -> None:
    """Print what ``panicd advise`` shows."""
    show = terminal.console.print
    for number, each in enumerate(answer):
        if number:
            show("")
        system = each["system"]
        show(line((each["domain"] or system["id"], "bold")))
        show(f"runs     {system['name'] or '(not known)'}, as {system['known_by']} says")
        if each["has"]:
            show(f"has      a panic device: {', '.join(each['has'])}")
        if each["device"]:
            how = f" ({each['arguments']}, or {each['libvirt']}): {each['why']}"
            show(line("give it  ", (each["device"], "bold"), how))
        else:
            show(line("give it  ", ("none: ", "yellow"), each["why"]))
        for key in ("ignore", "grace", "kdump"):
            show(f"{key:8} {each[key]}")
        if each["support"]:
            rows = (
                (row["device"], row["verdict"], row["why"], row["source"])
                for row in each["support"]
            )
            print_table(("DEVICE", "CAN IT", "WHY", "SOURCE"), rows)


def _good(is_good: bool, word: str) -> Text:
    return line((word, "green" if is_good else "yellow"))
