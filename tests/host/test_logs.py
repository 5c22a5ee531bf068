import contextlib
import io
import itertools
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from panicd.host import logs
from panicd.host.log_stream import WAITING_LIMIT
from panicd.rules.printable import VALUE_LIMIT, escape
from tests.parts.patience import patience

HOSTILE = (
    "oops\n\x1b[31m<6>panicd: all is well\r\x00\x9b\u202e\u2066\u200b\u2028\ufeff\udc80\U000e0041"
)


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root, qmp = logging.getLogger(), logging.getLogger("qemu")
    before = list(root.handlers), root.level, qmp.level
    yield
    flushed = logs.flush(patience(10))  # a thread that still writes counts what it can't
    structlog.reset_defaults()
    root.handlers[:], root.level, qmp.level = before
    assert flushed


class Stream(io.StringIO):
    """A stream in memory; what was said is in it whenever it is looked at."""

    def getvalue(self) -> str:
        assert logs.flush(patience(10))
        return super().getvalue()


@pytest.fixture
def stream() -> io.StringIO:
    stream = Stream()
    logs.configure(level="info", stream=stream)
    return stream


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def log_a_failure(text: str) -> None:
    def fail() -> None:
        raise ValueError(text)

    try:
        fail()
    except ValueError:
        logs.get_logger().exception("failed")


# JSON


def test_an_event_is_one_object_a_line(stream: io.StringIO) -> None:
    log = logs.get_logger(domain="db-1")
    log.info("panic", incident="01", count=2, ratio=0.5, ok=True, nothing=None)
    log.warning("fallback")
    first, second = written(stream)
    stamp = first.pop("timestamp")
    assert stamp.endswith("Z")
    assert first == {
        "level": "info",
        "event": "panic",
        "domain": "db-1",
        "incident": "01",
        "count": 2,
        "ratio": 0.5,
        "ok": True,
        "nothing": None,
    }
    assert (second["level"], second["event"], second["domain"]) == ("warning", "fallback", "db-1")


def test_the_level_is_a_floor_and_can_be_changed(stream: io.StringIO) -> None:
    log = logs.get_logger()
    log.debug("hidden")
    logs.configure(level="debug", stream=stream)
    log.debug("shown")
    assert [event["event"] for event in written(stream)] == ["shown"]


@pytest.mark.parametrize("where", ["event", "value", "list", "mapping", "nested", "bytes", "error"])
def test_hostile_text_is_escaped_wherever_it_stands(stream: io.StringIO, where: str) -> None:
    log = logs.get_logger()
    match where:
        case "event":
            log.info(HOSTILE)
        case "value":
            log.info("x", text=HOSTILE)
        case "list":
            log.info("x", text=[HOSTILE])
        case "mapping":
            log.info("x", text={HOSTILE: HOSTILE})
        case "nested":
            log.info("x", text=[[{"a": HOSTILE}]])
        case "bytes":
            log.info("x", text=HOSTILE.encode(errors="surrogatepass"))
        case _:
            log.error("x", exc_info=ValueError(HOSTILE))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().rstrip("\n").isprintable()
    assert stream.getvalue().isascii()
    decoded = json.dumps(written(stream), ensure_ascii=False)
    assert decoded.isprintable(), "text stays escaped after the JSON is read"
    assert r"oops\\n\\x1b[31m" in decoded


def test_escapes_can_be_read() -> None:
    assert escape("a\n\x1b[0m é\u202e\U000e0041 \\n") == r"a\n\x1b[0m é\u202e\U000e0041 \n"


@pytest.mark.parametrize("text", ["x" * 3000, "é" * 3000, "\x00" * 3000, "\U0001f4a5" * 3000])
def test_a_long_value_is_cut_and_says_so(text: str) -> None:
    cut = escape(text)
    kept, mark = cut.split("… ")
    assert mark == "(cut from 3000 characters)"
    assert VALUE_LIMIT - 4 < len(kept.encode()) <= VALUE_LIMIT


def test_a_value_of_the_full_length_is_whole() -> None:
    assert escape("x" * VALUE_LIMIT) == "x" * VALUE_LIMIT


def test_no_value_is_too_deep_too_long_or_too_large(stream: io.StringIO) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    logs.get_logger().info(
        "x",
        deep=deep,
        long=["y" * 10_000] * 10_000,
        wide={str(n): ["z" * 10_000] * 1000 for n in range(10_000)},
        big=1 << 40_000,
        nan=float("nan"),
        infinite=float("-inf"),
        path=Path("/run/x"),
    )
    (event,) = written(stream)
    assert len(stream.getvalue()) < 64 * 1024
    assert event["big"].startswith("0x1000")
    assert (event["nan"], event["infinite"], event["path"]) == ("nan", "-inf", "/run/x")


def test_a_traceback_has_its_frames_on_lines_and_its_message_on_one(stream: io.StringIO) -> None:
    log_a_failure("from a guest\nTraceback: forged")
    (event,) = written(stream)
    assert event["level"] == "error"
    assert event["exception"][0].startswith("Traceback")
    assert event["exception"][1].startswith(f'  File "{__file__}"')
    assert event["exception"][-1] == r"ValueError: from a guest\nTraceback: forged"


def test_a_long_traceback_keeps_its_end(stream: io.StringIO) -> None:
    error: BaseException = KeyError("the cause")
    for n in range(300):
        error, cause = ValueError(n), error
        error.__cause__ = cause
    logs.get_logger().error("failed", exc_info=error)
    (event,) = written(stream)
    assert len(event["exception"]) == logs.TRACEBACK_LINES + 1
    assert event["exception"][0] == "KeyError: 'the cause'"
    assert event["exception"][-1] == "ValueError: 299"


class FullDisk(Stream):
    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_what_cannot_be_written_is_counted_and_harms_nobody() -> None:
    stream = FullDisk()
    logs.configure(level="info", stream=stream)
    log = logs.get_logger()
    log.info("lost")
    log.info("lost, too")
    assert logs.flush(patience(10))
    stream.full = False
    log.info("found")
    log.info("more")
    found, more = written(stream)
    assert (found["event"], found["entries_dropped"]) == ("found", 2)
    assert "entries_dropped" not in more


def pipe_that_nobody_reads() -> tuple[int, TextIO]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 4096)
    os.set_blocking(writing, True)
    return reading, os.fdopen(writing, "w")


def test_a_log_that_nobody_reads_is_not_waited_for() -> None:
    before = logs.dropped.total
    reading, stream = pipe_that_nobody_reads()
    logs.configure(level="info", stream=stream)
    log, text = logs.get_logger(), "x" * VALUE_LIMIT

    def say() -> None:
        for n in range(2 * WAITING_LIMIT // VALUE_LIMIT):  # more than may wait
            log.error("said", n=n, text=text)

    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    saying.join(patience(10))
    assert not saying.is_alive(), "it waits"
    assert not logs.flush(0)
    dropped = logs.dropped.total - before
    assert dropped > 0

    with os.fdopen(reading) as file:
        lines = (json.loads(line) for line in file if line != "\n")
        read = list(itertools.takewhile(lambda line: line["event"] == "said", lines))
        assert [line["n"] for line in read] == list(range(len(read)))
        assert len(read) + dropped == 2 * WAITING_LIMIT // VALUE_LIMIT
    log.error("nobody reads any more, and nobody waits")


def test_a_log_that_is_read_again_says_what_is_missing() -> None:
    reading, stream = pipe_that_nobody_reads()
    logs.configure(level="info", stream=stream)
    log, before = logs.get_logger(), logs.dropped.total
    while logs.dropped.total == before:
        log.error("said", text="x" * VALUE_LIMIT)
    with os.fdopen(reading) as file:
        lines = (json.loads(line) for line in file if line != "\n")
        notice = next(line for line in lines if line["event"] != "said")
        assert notice["event"] == "log is read again"
        assert notice["entries_dropped"] == logs.dropped.total - before
        log.info("said")
        assert "entries_dropped" not in next(lines)


# stdlib


def test_libraries_come_through_the_same_pipeline(stream: io.StringIO) -> None:
    logging.getLogger("a.library").warning("bad request from %s", "a\nb")
    logging.getLogger("trio").info("not worth a line")
    (event,) = written(stream)
    assert (event["level"], event["logger"]) == ("warning", "a.library")
    assert event["event"] == r"bad request from a\nb"


def test_a_library_exception_keeps_its_traceback(stream: io.StringIO) -> None:
    logging.getLogger("lib").log(45, "failed", exc_info=ValueError("why"))
    (event,) = written(stream)
    assert (event["level"], event["exception"]) == ("error", ["ValueError: why"])


def test_what_a_library_repeats_is_written_now_and_then(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for number in range(20):
        logging.getLogger("trio.serve_listeners").error("accept returned %s", number)
        now += logs.REPEATED_AFTER / 10
    logging.getLogger("trio.serve_listeners").error("another")
    said = [event["event"] for event in written(stream)]
    assert said == ["accept returned 0", "accept returned 10", "another"]


def test_a_record_with_the_wrong_arguments_is_still_written(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if isinstance(handler, logs._StdlibHandler)]
    monkeypatch.setattr(root, "handlers", ours)  # pytest's own handler fails on such a record
    wrong = "%d of %d"
    logging.getLogger("lib").warning(wrong, "x")
    assert [event["event"] for event in written(stream)] == ["%d of %d"]


def test_qmp_errors_are_ours_to_report(stream: io.StringIO) -> None:
    logging.getLogger("qemu.qmp.protocol").error("flood")
    logging.getLogger("qemu.qmp.qmp_client.vm1").critical("end")
    assert [event["event"] for event in written(stream)] == ["end"]


def test_configuring_again_does_not_double_lines(stream: io.StringIO) -> None:
    logs.configure(level="info", stream=stream)
    logging.getLogger("lib").warning("once")
    assert len(written(stream)) == 1


# The journal


class Journal:
    """A datagram socket in journald's place, and a stderr that is a stream to the journal."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "journal"
        self.stderr = directory / "stderr"
        self.socket = self.bind()
        self.stderr.touch()
        status = self.stderr.stat()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(self.path))

    def bind(self) -> socket.socket:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(str(self.path))
        receiver.settimeout(patience(5))
        return receiver

    def configure(self, level: str = "info") -> None:
        with contextlib.redirect_stderr(self.stderr.open("w")):
            logs.configure(level=level)

    def entry(self) -> dict[str, str]:
        """Read one entry as the Native Journal Protocol describes it."""
        data, fields = self.socket.recv(1 << 20), {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (size,) = struct.unpack_from("<Q", rest)
                value, rest = rest[8 : 8 + size], rest[8 + size :]
                assert rest.startswith(b"\n")
                rest = rest[1:]
            assert name.decode() not in fields
            fields[name.decode()] = value.decode()
            data = rest
        return fields


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    journal = Journal(tmp_path, monkeypatch)
    with journal.socket:
        yield journal


def test_the_journal_gets_fields(journal: Journal) -> None:
    journal.configure()
    logs.get_logger(domain="db-1").warning("panic", incident="01", steps=["quit"], why="a b", n=3)
    assert journal.entry() == {
        "MESSAGE": 'panic domain=db-1 incident=01 steps="[\\"quit\\"]" why="a b" n=3',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "panicd",
        "PANICD_DOMAIN": "db-1",
        "PANICD_INCIDENT": "01",
        "PANICD_STEPS": '["quit"]',
        "PANICD_WHY": "a b",
        "PANICD_N": "3",
    }


@pytest.mark.parametrize("method", logs.PRIORITIES)
def test_levels_are_priorities(journal: Journal, method: str) -> None:
    journal.configure("debug")
    getattr(logs.get_logger(), method)("x")
    assert journal.entry()["PRIORITY"] == str(logs.PRIORITIES[method])


def test_a_guest_cannot_forge_a_field_or_a_pair(journal: Journal) -> None:
    journal.configure()
    logs.get_logger().info(
        "panic", text=f'{HOSTILE}\nPRIORITY=0\nPANICD_DOMAIN=other" domain=other'
    )
    fields = journal.entry()
    assert set(fields) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "PANICD_TEXT"}
    assert all(value.isprintable() for value in fields.values())
    assert fields["MESSAGE"].startswith('panic text="oops')
    assert fields["MESSAGE"].endswith('PANICD_DOMAIN=other\\" domain=other"')
    assert fields["PRIORITY"] == "6"


def test_a_traceback_is_one_field_of_many_lines(journal: Journal) -> None:
    journal.configure()
    log_a_failure("a\nb")
    fields = journal.entry()
    assert fields["MESSAGE"] == "failed"
    assert fields["PANICD_EXCEPTION"].splitlines()[-1] == r"ValueError: a\nb"
    assert len(fields["PANICD_EXCEPTION"].splitlines()) > 2


def test_field_names_are_valid_ones(journal: Journal) -> None:
    journal.configure()
    logs.get_logger().info("x", **{"über-lang b=\n": 1, "k" * 100: 2})
    names = set(journal.entry()) - {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"}
    assert names == {"PANICD__BER_LANG_B__", "PANICD_" + "K" * 57}


def test_an_entry_never_outgrows_a_datagram(journal: Journal) -> None:
    journal.configure()
    logs.get_logger().info("x", **{f"k{n}": "é\x00" * 2000 for n in range(200)})
    fields = journal.entry()
    assert fields["PANICD_ENTRY_CUT"] == "1"
    assert "… (cut from" in fields["MESSAGE"]
    assert fields["PRIORITY"] == "6"
    assert "PANICD_K0" in fields


def test_a_journal_that_is_behind_is_not_waited_for(journal: Journal) -> None:
    journal.configure()
    log = logs.get_logger()

    def flood() -> None:
        for n in range(5000):  # more than any queue holds (net.unix.max_dgram_qlen)
            log.info("flood", n=n)

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    flooding.join(patience(10))
    assert not flooding.is_alive(), "it waits"
    received = 0
    while select.select([journal.socket], [], [], 0)[0]:
        assert "PANICD_ENTRIES_DROPPED" not in journal.entry()
        received += 1
    assert 0 < received < 5000
    log.info("after")
    assert journal.entry()["PANICD_ENTRIES_DROPPED"] == str(5000 - received)


def test_a_restarted_journald_is_found_again(journal: Journal) -> None:
    journal.configure()
    journal.path.unlink()
    journal.socket.close()
    logs.get_logger().info("lost")
    with journal.bind() as journal.socket:
        logs.get_logger().info("found")
        assert journal.entry() == {
            "MESSAGE": "found",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "panicd",
            "PANICD_ENTRIES_DROPPED": "1",
        }


def test_json_goes_to_stderr_when_journald_is_out_of_reach(journal: Journal) -> None:
    journal.path.unlink()
    journal.configure()
    logs.get_logger().info("x")
    assert logs.flush(patience(10))
    assert json.loads(journal.stderr.read_text())["event"] == "x"


@pytest.mark.parametrize("value", [None, "", "1:2", "nonsense"])
def test_json_goes_to_a_stderr_that_is_not_the_journal(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM")
    if value is not None:
        monkeypatch.setenv("JOURNAL_STREAM", value)
    journal.configure()
    logs.get_logger().info("x")
    assert logs.flush(patience(10))
    assert json.loads(journal.stderr.read_text())["event"] == "x"
