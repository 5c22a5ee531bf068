"""What ``panicd status`` shows: totals, problems, and a line for each domain, the worst first."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from panicd.cli.moment import age
from panicd.cli.phrases import counted, held, short, waits_for, would_do
from panicd.cli.render_dumps import dumps
from panicd.cli.selecting import since
from panicd.host import terminal
from panicd.host.terminal import Column, Text, line, listing
from panicd.rules.standing import PROBLEMS, Standing
from panicd.service.control_client import Answer

_URGENT: Final = {Standing.FAILED, Standing.PRESERVED, Standing.RESET, Standing.SILENT}
_COLUMNS: Final = (
    Column("DOMAIN"),
    Column("STATE"),
    Column("AGE", 3),
    Column("INCIDENT", 2),
    Column("ON_CRASH", 5),
    Column("IF IT PANICS", 6),
    Column("RESTARTS LEFT", 7),
    Column("RUN STATE", 8),
    Column("ARMED", 9),
    Column("NOTE", 4, cut=True),
)
PROMPT: Final = 1  # lines of a window that the shell's prompt needs
LEAST_ROWS: Final = 3


def status(answer: Answer, everything: bool) -> None:
    """Print what ``panicd status`` shows; on a terminal, what fits its window."""
    height = terminal.console.height
    lines, _ = window(answer, None if height is None or everything else height - PROMPT)
    terminal.console.print(*lines)


def window(answer: Answer, height: int | None, first: int = 0) -> tuple[list[Text], int]:
    """Return the lines to show, and how many domains they cover.

    Args:
        answer: the daemon's, with the wanted domains.
        height: how many lines fit; None: all.
        first: the number of the first domain that is shown.
    """
    head = [_totals(answer), *_amiss(answer)]
    if not answer["of"]:
        return [*head, line("Does a monitor's glob match, and does its VM run?")], 0
    if not answer["domains"]:
        return head, 0
    cells = (_cells(domain, answer["now"]) for domain in answer["domains"])
    headings, *rows = listing(_COLUMNS, cells, terminal.console.width)
    tail = [*_beyond_signals(answer), *dumps(answer["domains"], answer["now"])]
    room = len(rows)
    if height is not None:
        other = sum(1 for _ in terminal.console.lines([*head, headings, *tail]))
        room = max(height - other, LEAST_ROWS)
    if first == 0 and len(rows) <= room:
        return [*head, headings, *rows, *tail], len(rows)
    page = rows[first : first + room - 1]
    more = _more(answer["domains"], first, first + len(page))
    return [*head, headings, *page, more, *tail], len(page)


def _beyond_signals(answer: Answer) -> Iterator[Text]:
    if beyond := sum(bool(domain["beyond_signals"]) for domain in answer["domains"]):
        whose = counted(beyond, "domain")
        yield line(f"panicd can't end {whose} in a hang: `panicd explain` says why.")


def _more(domains: Sequence[Answer], first: int, end: int) -> Text:
    rest = domains[end:]
    problems = sum(domain["standing"] in PROBLEMS for domain in rest)
    before = f"{first} before, " if first else ""
    among = f", {counted(problems, 'problem')} among them" if problems else ""
    how = "" if first else " (all: --all, or | less)"
    return line((f"… {before}{len(rest)} more{among}{how}", "yellow" if problems else ""))


def _totals(answer: Answer) -> Text:
    count = Counter(Standing(domain["standing"]) for domain in answer["domains"])
    looked_at = sum(domain["acknowledged"] for domain in answer["domains"])
    told = [
        line((f"{count[standing]} {standing}", _style(standing)))
        for standing in Standing
        if count[standing]
    ]
    if looked_at:
        told.append(line(f"{looked_at} acknowledged"))
    shown, every = len(answer["domains"]), counted(answer["of"], "domain")
    total = every if shown == answer["of"] else f"{shown} of {every}"
    dry = ", a dry run: nothing is done" if answer["dry_run"] else ""
    parts: list[str | Text] = [f"{total}{dry}"]
    for number, text in enumerate(told):
        parts += [": " if number == 0 else ", ", text]
    return line(*parts)


def _amiss(answer: Answer) -> Iterator[Text]:
    if answer["journal_fault"]:
        yield line(("The journal can't be written: ", "bold red"), answer["journal_fault"])
    if answer["journal_damaged"]:
        until = "panicked guests are preserved until journal.sqlite3.damaged-… is moved away."
        yield line(("The journal was damaged: ", "bold red"), until)
    if answer["storm"]:
        yield line(
            ("A storm: ", "bold red"), "many domains panicked at once; `storm.then` applies."
        )
    if answer["libvirt_problem"]:
        yield line(("libvirt does not answer: ", "bold red"), answer["libvirt_problem"])
    for problem in answer["problems"]:
        yield line(("Problem: ", "bold red"), problem)
    for path, why in answer["passed_over"].items():
        yield line(("Passed over: ", "yellow"), f"{path}: {why}")


def _cells(domain: Answer, now: float) -> Iterable[str | Text]:
    began = since(domain)
    connected = domain["connected"]
    return (
        domain["domain"],
        line((domain["standing"], _style(Standing(domain["standing"])))),
        "" if began is None else age(now - began),
        domain["incident"],
        domain["on_crash"],
        would_do(domain["effective_on_crash"], domain["reason"]) if domain["reason"] else "",
        str(domain["restarts_left"]) if connected else "",
        domain["run_state"],
        domain["armed"] if connected else "",
        "; ".join(_notes(domain)),
    )


def _notes(domain: Answer) -> Iterator[str]:
    if why := waits_for(domain):
        yield why
    if domain["acknowledged"]:
        yield "acknowledged"
    if domain["silent"] and domain["connected"]:
        yield "QEMU does not answer"
    if not domain["connected"]:
        yield f"spare of {domain['spare_of']}" if domain["spare_of"] else domain["problem"]
    if domain["held_why"]:
        yield f"held {held(domain)}"
    if domain["incident"] and domain["panic_line"]:
        yield short(domain["panic_line"])


def _style(standing: Standing) -> str:
    if standing in _URGENT:
        return "red"
    return "yellow" if standing in PROBLEMS or standing is Standing.HELD else "green"
