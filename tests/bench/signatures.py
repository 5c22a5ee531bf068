"""How good signatures are: told from real logs whose panics have titles given by people.

    python -m tests.bench.signatures DIRECTORY [--lines N] [--pairs]

DIRECTORY has a file for each log: a head of ``TITLE: …`` and other such lines, an empty line, and
the log, as a Linux console showed it. syzkaller's test data (``pkg/report/testdata/linux/report``)
is made like that.

Counted are the logs that say so much that they could be given a title (those without
``CORRUPTED: Y``), and that end in a panic, or in what a server panics of
(``panic_on_oops`` and the like): then the panic that follows is put behind them. A log is cut where
the panic device is told, and its last N lines are looked at. Of all pairs of these logs *the same*
have one title, and *claimed* have one hash:

    precision   of the claimed pairs, those that are the same
    recall      of the same pairs, those that are claimed
    stability   of the logs, those whose signature stays with the numbers of another guest

A signature without a hash claims nothing. ``--pairs`` lists the pairs that are only one of the two.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

from panicd.rules.last_words import words_of_log
from panicd.rules.panic_text.line import LogLine, printable
from panicd.rules.signature import Signature

LINES = 300
"""Of the end of each log; panicd reads more."""
SEEDS = 3
"""Other guests that each log is tried as."""

_STAMP = re.compile(
    rb"(?:.{0,200} login: )?(?:<\d+>)?\[ *(?P<time>\d+\.\d+)\](?:\[ *(?P<caller>[CT]\d+)\])? "
    rb"(?P<text>.*)"
)
_PANIC = "Kernel panic - not syncing"
_AFTER_PANIC = re.compile(
    r"Kernel Offset:|Rebooting in|---\[ end Kernel panic|Dumping ftrace|CPU features:|Memory Limit:"
)
_FOLLOWS = (
    (r"WARNING: (?:locking bug|suspicious RCU|possible|bad unlock|inconsistent)", ""),
    (r"INFO: task (?:hung|can't die)", "hung_task: blocked tasks"),
    (r"BUG: soft lockup", "softlockup: hung tasks"),
    (r"INFO: rcu .*stall", "RCU Stall"),
    (r"KASAN|WARNING|UBSAN|KFENCE|KMSAN", "kernel: panic_on_warn set ..."),
    (
        (
            r"BUG: (?:unable to handle|corrupted list|bad usercopy|stack guard)|kernel BUG"
            r"|general protection fault|divide error|invalid opcode|int3|stack segment"
            r"|Internal error|Unhandled fault|Alignment trap|Oops"
        ),
        "Fatal exception",
    ),
)
"""What a server then panics with, if told to, by the title of the trouble; empty: it goes on."""


@dataclass(frozen=True)
class Log:
    """A log that ends in a panic.

    Attributes:
        name: Its file's.
        title: What people call its panic.
        lines: Of the log, oldest first.
        signature: What panicd knows it by.
    """

    name: str
    title: str
    lines: tuple[LogLine, ...]
    signature: Signature | None = None

    @property
    def hash(self) -> str:
        """What it is compared by; empty: it is not compared."""
        return self.signature.hash if self.signature else ""


def read(file: Path) -> Log | None:
    """A log that counts; None: this one doesn't."""
    head, _, rest = file.read_bytes().replace(b"\r", b"").partition(b"\n\n")
    named = (line.partition(": ") for line in head.decode(errors="replace").splitlines())
    said = {name: text for name, colon, text in named if colon}
    title = said.get("TITLE", "")
    if not title or "CORRUPTED" in said:
        return None
    lines = _lines(rest.split(b"\n\nREPORT:\n")[0])
    panicked = next((n for n, line in enumerate(lines) if _PANIC in line.text), -1)
    if panicked >= 0:
        after = (n for n in range(panicked, len(lines)) if _AFTER_PANIC.match(lines[n].text))
        return Log(file.name, title, tuple(lines[: next(after, len(lines))]))
    reason = next((reason for kind, reason in _FOLLOWS if re.match(kind, title)), "")
    if not reason or not lines:
        return None
    panic = LogLine(len(lines), lines[-1].timestamp, 0, "", f"{_PANIC}: {reason}")
    return Log(file.name, title, (*lines, panic))


def _lines(log: bytes) -> list[LogLine]:
    """A console's lines, as the kernel's log has them; of one without times, all lines."""
    stamped = [found for line in log.split(b"\n") if (found := _STAMP.match(line))]
    if len(stamped) < 3:
        plain = enumerate(filter(None, log.split(b"\n")))
        return [LogLine(n, n / 10000, 0, "", printable(line)) for n, line in plain]
    return [
        LogLine(
            n, float(each["time"]), 0, (each["caller"] or b"").decode(), printable(each["text"])
        )
        for n, each in enumerate(stamped)
    ]


def known(log: Log, lines: int) -> Log:
    """A log with its signature, told from its last lines."""
    return replace(log, signature=words_of_log(log.lines[-lines:]).signature)


_OTHERS: tuple[tuple[str, Callable[[random.Random, re.Match[str]], str]], ...] = (
    (r"(?<=\+)0x[1-9a-f][0-9a-f]*/", lambda r, _: f"{r.randrange(1, 1 << 12):#x}/"),
    (
        r"\b(?=[a-f]*[0-9])[0-9a-f]{8,16}\b",
        lambda r, old: f"{r.getrandbits(4 * len(old[0])):0{len(old[0])}x}",
    ),
    (r"(?<=PID: )\d+", lambda r, _: str(r.randrange(2, 99999))),
    (r"(?<=CPU: )\d+|(?<=CPU#)\d+|(?<=[Cc][Pp][Uu] )\d+", lambda r, _: str(r.randrange(64))),
    (r"(?<=Comm: )\S+", lambda r, _: f"worker{r.randrange(99)}"),
    (r"(?<=INFO: task )\S+:\d+", lambda r, _: f"db{r.randrange(9)}:{r.randrange(2, 99999)}"),
    (r"\d+(?= seconds|s!|us| jiffies)", lambda r, _: str(r.randrange(22, 999))),
    (r"(?<=\.[chS]:)\d+", lambda r, _: str(r.randrange(1, 9999))),
    (r"(?<=\[#)\d+", lambda r, _: str(r.randrange(1, 9))),
)
"""What differs from guest to guest, and from one kernel's build to the next."""


def of_another_guest(log: Log, seed: int) -> Log:
    """A log with the numbers and names that another guest would have."""
    numbers = random.Random(f"{log.name} {seed}")  # noqa: S311 - nothing is kept secret by it
    callers: dict[str, str] = {"": ""}
    lines: list[LogLine] = []
    for line in log.lines:
        text = line.text
        for pattern, make in _OTHERS:
            text = re.sub(pattern, partial(make, numbers), text)
        caller = callers.setdefault(line.caller, f"{line.caller[:1]}{1000 + len(callers)}")
        lines.append(replace(line, text=text, caller=caller, timestamp=line.timestamp + 86400))
    return replace(log, lines=tuple(lines))


def wrong_pairs(logs: Sequence[Log]) -> Iterator[tuple[str, Log, Log]]:
    """The pairs that are the same and not claimed, or claimed and not the same."""
    for one, other in combinations(logs, 2):
        same, claimed = one.title == other.title, bool(one.hash) and one.hash == other.hash
        if same != claimed:
            yield "missed" if same else "wrong", one, other


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--pairs", action="store_true", help="list the pairs that are not right")
    arguments = parser.parse_args()
    files = sorted(each for each in arguments.directory.iterdir() if each.is_file())
    logs = [known(log, arguments.lines) for file in files if (log := read(file))]
    if not logs:
        parser.error(f"{arguments.directory}: no log with a title in it")
    pairs = list(combinations(logs, 2))
    same = sum(one.title == other.title for one, other in pairs)
    claimed = sum(bool(one.hash) and one.hash == other.hash for one, other in pairs)
    others = list(wrong_pairs(logs))
    right = same - sum(what == "missed" for what, _, _ in others)
    stable = sum(
        all(
            known(of_another_guest(log, seed), arguments.lines).signature == log.signature
            for seed in range(SEEDS)
        )
        for log in logs
    )
    print(f"{len(logs)} logs, the last {arguments.lines} lines; {same} pairs have one title")
    for name, part, whole in (
        ("precision", right, claimed),
        ("recall", right, same),
        ("stability", stable, len(logs)),
    ):
        print(f"{name:12}{part / whole if whole else 1:.3f}  {part} of {whole}")
    if arguments.pairs:
        for what, one, other in others:
            print(what, *(f"{log.name} {log.title!r} {log.signature}" for log in (one, other)))


if __name__ == "__main__":
    main()
