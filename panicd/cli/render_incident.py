"""What ``panicd incident ID`` shows, and the timeline of an exported incident.

The guest's own words come first, then the course from the panic to the end, then where the evidence
is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pwd import getpwuid
from typing import Final

from panicd.cli.moment import written_time
from panicd.cli.phrases import because
from panicd.cli.render import seen, signature
from panicd.cli.render_dumps import cells
from panicd.host import terminal
from panicd.host.terminal import Text, grid, line, table, to_copy
from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.next_commands import next_commands, word
from panicd.rules.policy import Reason
from panicd.service.control_client import Answer

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of a timeline.

    Attributes:
        after: seconds since panicd learned of the panic.
        took: seconds; None if it has no duration, or is not over.
        what: happened.
        about: more about it.
    """

    after: float
    took: float | None
    what: str
    about: Text


def show(answer: Answer, now: float) -> None:
    """Print what ``panicd incident`` shows; ``now`` in seconds since the epoch."""
    terminal.console.print(*page(answer, now, terminal.console.width))


def page(answer: Answer, now: float, width: int | None) -> Iterator[str | Text]:
    """Yield the lines of an incident's page.

    Args:
        answer: the daemon's, or ``panicd.incident.records.read_record``'s.
        now: in seconds since the epoch: how long an incident has been open.
        width: of the terminal; None: unlimited.
    """
    yield from _head(answer, now)
    yield ""
    yield from _timeline_table(answer, width)
    yield ""
    yield from _evidence(answer, now)
    if answer["closed_at"] is None:
        yield from _next(answer)


def timeline(history: Iterable[Answer]) -> list[Moment]:
    """Return an incident's entries as a timeline; a step that has ended is one line."""
    moments: list[Moment] = []
    begun: dict[int, int] = {}  # the line of each step whose end is not known
    start: float | None = None
    for entry in history:
        start = entry["at"] if start is None else start
        after = entry["at"] - start
        match entry["kind"]:
            case "step-begun":
                # Steps that are done once more: their first beginnings are left out.
                again = sorted(place for i, place in begun.items() if i >= entry["index"])
                for place in reversed(again):
                    del moments[place]
                begun = {i: place for i, place in begun.items() if i < entry["index"]}
                begun[entry["index"]] = len(moments)
                moments.append(
                    Moment(after, None, str(entry["step"]), line(("not ended", "yellow")))
                )
            case "step-ended" if entry["index"] in begun:
                index = begun.pop(entry["index"])
                since = moments[index].after
                about = line(f"{entry['outcome']}{_detail(entry)}")
                moments[index] = Moment(since, after - since, str(entry["step"]), about)
            case kind:
                moments.append(Moment(after, None, kind.replace("-", " "), line(_about(entry))))
    return moments


def _head(answer: Answer, now: float) -> Iterator[Text]:
    if answer["panic_line"]:
        yield line((answer["panic_line"], "bold"))
    yield line((answer["id"], "bold"), f"  {answer['domain']}  {answer['uuid']}")
    yield to_copy(f"monitor   {answer['monitor']}")
    yield line(f"panicked  {written_time(answer['opened_at'])}, known by {answer['source']}")
    yield from map(line, _signature(answer))
    yield line(f"payload   {_payload(answer['payload'])}")
    if answer["repeats"]:
        yield line(f"again     {answer['repeats']} times within the incident")
    yield from _decisions(answer["history"])
    closed_at = answer["closed_at"]
    lasted = duration((now if closed_at is None else closed_at) - answer["opened_at"])
    if closed_at is None:
        yield line("now       ", (answer["state"], "yellow"), f", open for {lasted}")
    else:
        yield line(f"now       {answer['ending']}, after {lasted}")
    if looked := answer["acknowledged"]:
        yield line(f"ack       by {user(looked)}: {looked['why']}")


def _decisions(history: Iterable[Answer]) -> Iterator[Text]:
    """Yield each decision and its reason; for an operator's, the operator's words."""
    asked = shown = None
    for entry in history:
        if entry["kind"] == "asked":
            asked = entry
        if entry["kind"] != "decided":
            continue
        plan = entry["plan"]
        why = because(plan)
        if plan["reason"] == Reason.OPERATOR and asked is not None:
            why = f"{user(asked)} asked for it: {asked['why']}"
        if (plan["action"], why) != shown:
            yield line("decided   ", (plan["action"], "bold"), f" ({why})")
        shown = plan["action"], why


def user(asked: Answer) -> str:
    """Return who asked: somebody on the page, or a user of this host."""
    if asked.get("user"):
        return f"{asked['user']} (page)"
    try:
        return getpwuid(asked["uid"]).pw_name
    except KeyError:
        return f"uid {asked['uid']}"


def _signature(answer: Answer) -> Iterator[str]:
    known, same = answer["signature"], answer["same"]
    if known is None:
        return
    yield f"panic     {signature(known)}"
    if same is None:
        yield "same      too little is known of it to compare it with others"
    elif same["count"] > 1:
        yield f"same      {seen(same)} since {written_time(same['first_at'])} ({known['hash']})"
    else:
        yield f"same      not seen before ({known['hash']})"


def _payload(payload: Answer) -> str:
    members = ", ".join(f"{name} {value}" for name, value in payload["members"])
    missing = "; not there, or malformed: " + ", ".join(payload["missing"])
    return (
        str(payload["summary"])
        + (f" ({members})" if members else "")
        + (missing if payload["missing"] else "")
    )


def _timeline_table(answer: Answer, width: int | None) -> Iterator[Text]:
    rows = (
        (
            duration(moment.after),
            "" if moment.took is None else duration(moment.took),
            moment.what,
            moment.about,
        )
        for moment in timeline(answer["history"])
    )
    return table(("AFTER", "TOOK", "WHAT", ""), rows, width)


def _evidence(answer: Answer, now: float) -> Iterator[Text]:
    if answer["dump"] is not None:
        yield from grid([cells(answer["domain"], answer["dump"], now)])
    for dump in answer["dumps"]:
        yield to_copy(f"Dump        {dump}")
        for facts in answer["dump_facts"]:
            if facts["path"] == dump:
                yield from _dump(facts)
    if not answer["dumps"] and any(_did(entry, "Dump") for entry in answer["history"]):
        gone = ("The dump is no longer there:", "yellow")
        yield line(gone, " removed for newer ones, or by somebody.")
    evidence, directory = answer["evidence"], answer["evidence_directory"]
    if evidence is None and any(_did(entry, "Collect") for entry in answer["history"]):
        why = "panicd ended before it was written, or could not write it, or somebody removed it."
        yield line(("The evidence is not on the disk:", "yellow"), f" {why}")
        return
    if evidence is None:
        yield to_copy(f"No evidence was kept in {directory}")
        return
    if removed := evidence.get("removed"):
        why = f" on {written_time(removed['at'])}: {removed['why']}"
        yield line(("The evidence was removed", "yellow"), why)
        return
    files = evidence["files"]
    if answer["screenshot"] is not None:
        yield to_copy(f"Screenshot  {answer['screenshot']}")
    yield to_copy(f"Evidence    {directory}")
    for name, what in sorted(files.items()):
        yield line(f"  {name}: {what}")
    for item, why in sorted(evidence["problems"].items()):
        yield line((f"  no {item}:", "yellow"), f" {why}")


def _next(answer: Answer) -> Iterator[str | Text]:
    named = word(answer["domain"], answer["uuid"] or answer["monitor"])
    looked = answer["acknowledged"] is not None
    yield ""
    yield "Next:"
    for command in next_commands(answer["id"], named, is_open=True, acknowledged=looked):
        yield to_copy(f"  {command}")


def _dump(facts: Answer) -> Iterator[Text]:
    """Yield a dump's size, what it leaves out and why, and the commands that open it."""
    size = f"  {facts['size'] / MIB:,.1f} MiB"
    if facts["level"] is not None:
        size += f", level {facts['level']}"
    pages = {use.replace("_", " "): count for use, count in facts["left_out"].items() if count}
    if pages:
        parts = (f"{use} {count * PAGE / MIB:,.0f} MiB" for use, count in pages.items())
        size += f"; left out: {', '.join(parts)}"
    yield line(size)
    if facts["reason"]:
        yield line(("  less was left out than configured:", "yellow"), f" {facts['reason']}")
    yield from (to_copy(f"  {command}") for command in facts["open"])


def _did(entry: Answer, step: str) -> bool:
    ended = entry["kind"] == "step-ended" and entry.get("step") == step
    return ended and entry["outcome"] == "done"


def _detail(entry: Answer) -> str:
    return f": {entry['detail']}" if entry["detail"] else ""


def _about(entry: Answer) -> str:
    """Return what an entry says beside its kind, if it is no step."""
    match entry["kind"]:
        case "opened":
            return f"known by {entry['source']}"
        case "repeated":
            return f"{entry['count']} times"
        case "decided":
            plan = entry["plan"]
            return f"{plan['action']}: {plan['why']}"
        case "step-ended":
            return f"{entry['outcome']}{_detail(entry)}"
        case "settled":
            return str(entry["state"])
        case "closed":
            return f"{entry['ending']} {entry['detail']}"
        case "asked" | "acknowledged":
            return f"{user(entry)} {entry.get('what', '')}".rstrip() + f": {entry['why']}"
        case "observed":
            return str(entry["what"])
        case _:
            return ""


def duration(seconds: float) -> str:
    """Return a duration for people, to a millisecond if it is short."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value)
