"""The linters, and what they don't look at."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONGEST
from tests.parts.patience import patience

ROOT = Path(__file__).parent.parent
FILES = sorted(path for part in ("panicd", "tests") for path in (ROOT / part).rglob("*.py"))

LINTERS = (
    ("ruff", "check", "panicd", "tests"),
    ("ruff", "format", "--check", "panicd", "tests"),
    ("mypy",),
)

# Lines in a file; a test file's tables may be long.
LIMITS = {"panicd": 475, "tests": 800}

# A sleep that nobody waits for to see a state.
SLEEPS = {
    "tests/parts/fake.py",  # QEMU's own pause before it dials in again (reconnect=)
    "tests/model/journal.py",  # virtual time: how long a commit takes
    "tests/model/life.py",  # virtual time: how long a connection is not made again
    "tests/model/test_histories.py",  # virtual time: the moments between what happens
    "tests/incident/test_leaving.py",  # virtual time: how long a session lasts
    "tests/model/world.py",  # virtual time: how long a command, a dump takes
    "tests/dumps/test_coredump.py",  # how slow a disk is
    "tests/hostile/monitors.py",  # how slow a hostile monitor is
    "tests/hostile/soak.py",  # how often something happens
    "tests/parts/patience.py",  # until a limit is over
    "tests/parts/test_patience.py",  # virtual time: what takes long
    "tests/test_style.py",
}

EXCEPTION = re.compile(r"#\s*(noqa|type: ignore|pragma)\b(.*)")
CODES_AND_REASON = re.compile(
    r"(?:: [A-Z]+[0-9]+(?:, ?[A-Z]+[0-9]+)*|\[[a-z-]+(?:, ?[a-z-]+)*\])"  # ": X1, X2" or "[x]"
    r"\s+(?:#|-|--)?\s*\S.{6,}"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("arguments", LINTERS, ids=" ".join)
def test_linter(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_begins_first_is_there() -> None:
    assert sorted(set(LONGEST) - {name_of(path) for path in FILES}) == []


def test_an_exception_has_its_rule_and_its_reason() -> None:
    bare = [
        f"{name_of(path)}:{number}: {exception[0]}"
        for path in FILES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (exception := EXCEPTION.search(line)) and not CODES_AND_REASON.match(exception[2])
    ]
    assert bare == []


def test_no_test_sleeps_to_wait_for_a_state() -> None:
    sleepers = {
        name_of(path)
        for path in FILES
        if path.is_relative_to(ROOT / "tests")
        and not path.is_relative_to(ROOT / "tests/bench")
        and re.search(r"\bsleep(_until)?\(", path.read_text(encoding="utf-8"))
    }
    assert sleepers <= SLEEPS


def test_every_limit_gives_a_busy_machine_time() -> None:
    """See tests/parts/patience.py; what runs on another machine, or measures, has its own."""
    others = [ROOT / "tests" / name for name in ("bench", "service", "test_style.py")]
    impatient = [
        name_of(path)
        for path in FILES
        if path.is_relative_to(ROOT / "tests")
        and not any(map(path.is_relative_to, others))
        and "trio.fail_after(" in path.read_text(encoding="utf-8")
    ]
    assert impatient == []


def test_no_file_has_more_than_one_job() -> None:
    long = [
        f"{name_of(path)}: {lines} lines"
        for path in FILES
        if (lines := len(path.read_text(encoding="utf-8").splitlines()))
        > LIMITS[path.relative_to(ROOT).parts[0]]
    ]
    assert long == []
