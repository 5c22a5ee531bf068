"""Who is told of incidents, whatever becomes of the receiver and of the daemon."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
import trio

from panicd.config.web import WebConfig
from panicd.journal import database as journal_database
from panicd.journal.journal import Journal
from panicd.journal.outbox import Pending
from panicd.notify import notifier
from panicd.qemu.threads import NONE_LEFT
from panicd.rules.incident import Incident, Opened, Source
from panicd.rules.notification import Notice
from panicd.rules.qapi import PanicInformation
from tests.parts.daemon import DaemonInside, ObservedDaemon, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after
from tests.parts.receiver import Receiver, Told, status

HOSTILE = "vm\r\nce-id: forged\x00\u202e\ud800"
PANIC: dict[str, Any] = {
    "type": "s390", "core": 1, "psw-mask": 2, "psw-addr": 3, "reason": "\r\nX: </script>",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "FIRST_DELAY", 0.01)


def webhook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"webhook": {"url": receiver.url, **more}}


def still_to_be_told(daemon: ObservedDaemon) -> int:
    with journal_database.reader(daemon.directory / "state/journal.sqlite3") as database:
        (count,) = database.execute("SELECT count(*) FROM notification").fetchone()
    assert isinstance(count, int)
    return count


def notices(requests: list[Told]) -> list[str]:
    return [told.notice for told in requests]


async def test_an_incident_is_told_from_its_panic_to_its_end(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, {"on_crash": "destroy"}, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic(PANIC)
        incident = await daemon.wait_incident("vm", ending="destroyed")
        await receiver.wait(lambda requests: len(requests) == 2)
        panicked, closed = receiver.requests
        assert notices(receiver.requests) == ["panicked", "closed"]
        headers = panicked.headers
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-type"] == "panicd.incident.panicked"
        assert headers["ce-subject"] == incident.id
        assert headers["ce-id"].startswith(f"{incident.id}.")
        assert headers["content-type"] == "application/json"
        assert "authorization" not in headers
        assert panicked.target == "/told?x=1"
        assert panicked.body["id"] == headers["ce-id"]
        told = panicked.body["incident"]
        assert (told["domain"], told["state"], told["steps"]) == ("vm", "decided", [])
        (decision,) = told["decisions"]
        assert (decision["action"], decision["reason"]) == ("destroy", "on-crash")
        assert told["information"]["fields"][-1] == ["reason", PANIC["reason"]]
        assert closed.body["incident"]["ending"] == "destroyed"
        await daemon.wait_log("notification delivered", count=2)


async def test_one_that_stays_open_is_told_so(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic()
        await receiver.wait(lambda requests: notices(requests) == ["panicked", "settled"])
        assert receiver.requests[1].body["incident"]["state"] == "preserved"


async def test_a_receiver_that_fails_is_asked_again(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, {"on_crash": "destroy"}, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda number, _told: status(500 if number < 4 else 200)
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification delivered", count=2)
        assert notices(receiver.requests) == ["panicked"] * 4 + ["closed"]
        assert len({told.id for told in receiver.requests}) == 2, "again under the same id"
        assert len(daemon.logged("notification not delivered")) == 3


async def test_a_notification_waits_for_a_thread(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending, refusals = Journal.pending, iter(range(3))

    def refused_at_first(journal: Journal, channel: str) -> list[Pending]:
        if next(refusals, None) is not None:
            raise RuntimeError(NONE_LEFT)
        return pending(journal, channel)

    monkeypatch.setattr(Journal, "pending", refused_at_first)
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_log("notification not delivered", channel="webhook")
        await daemon.wait_armed("vm")
        vm.panic()
        await receiver.wait(lambda requests: notices(requests) == ["panicked", "settled"])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        status(302),
        status(404),
    ],
    ids=lambda answer: repr(answer[:20]),
)
async def test_what_is_no_acceptance_is_none(socket_dir: Path, answer: bytes) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda number, _told: answer if number == 1 else status(200)
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification delivered", count=2)
        assert notices(receiver.requests) == ["panicked", "panicked", "settled"]


async def test_a_receiver_that_hangs_holds_up_no_action(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(
            socket_dir, {"on_crash": "destroy"}, notify=webhook(receiver, timeout="1h")
        ) as daemon,
        FakeQemu(socket_dir / "a.qmp", name="a").running() as first,
        FakeQemu(socket_dir / "b.qmp", name="b").running() as second,
    ):
        receiver.answer = lambda _number, _told: None
        await daemon.wait_armed("a")
        await daemon.wait_armed("b")
        first.panic()
        await receiver.wait(lambda requests: len(requests) == 1)
        await daemon.wait_incident("a", ending="destroyed")
        second.panic()
        await daemon.wait_incident("b", ending="destroyed")
        assert second.exited.is_set()
        assert len(receiver.requests) == 1, "which is still not answered"
        assert not daemon.logged("notification delivered")


async def test_one_that_always_fails_holds_up_no_other(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "a.qmp", name="a").running() as first,
        FakeQemu(socket_dir / "b.qmp", name="b").running() as second,
    ):

        def answer(_number: int, told: Told) -> bytes:
            return status(500 if told.body["incident"]["domain"] == "a" else 200)

        receiver.answer = answer
        await daemon.wait_armed("a")
        await daemon.wait_armed("b")
        first.panic()
        await daemon.wait_log("notification not delivered")
        second.panic()
        await daemon.wait_log("notification delivered", count=2)
        of_a = [t.notice for t in receiver.requests if t.body["incident"]["domain"] == "a"]
        assert set(of_a) == {"panicked"}, "what follows of it waits for it"


async def test_a_receiver_that_is_away_is_told_when_it_is_back(socket_dir: Path) -> None:
    async with Receiver.start() as receiver:
        pass
    async with (
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic()
        refused = await daemon.wait_log("notification not delivered")
        assert "Connection refused" in refused["problem"]
        async with Receiver.start(receiver.port) as back:
            await back.wait(lambda requests: notices(requests) == ["panicked", "settled"])


async def test_what_is_too_old_is_given_up(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify={"retry_for": "1ms", **webhook(receiver)}) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda _number, _told: status(500)
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification given up", count=2)


async def test_those_that_wait_for_long_are_a_problem_until_they_are_delivered(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "AMISS_AFTER", 0.0)
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda _number, _told: status(500)
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("there is a problem", where="notify.webhook")
        (problem,) = (await daemon.call("status"))["problems"]
        assert problem == f"notify.webhook: {notifier.AMISS}"
        assert await daemon.metric("panicd_problems") == 0, "it acts all the same"
        receiver.answer = lambda _number, _told: status(200)
        await daemon.wait_log("the problem is over", where="notify.webhook")
        await daemon.wait_log("notification delivered", count=2)
        assert not (await daemon.call("status"))["problems"]


async def test_those_that_wait_a_short_time_are_no_problem(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver)) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda _number, _told: status(500)
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification not delivered", count=2)
        assert not daemon.logged("there is a problem")


async def test_a_daemon_killed_in_between_loses_none(socket_dir: Path) -> None:
    """The receiver has the request, and panicd is killed before it has the answer."""
    async with (
        Receiver.start() as receiver,
        RunningDaemon.start(
            socket_dir, {"on_crash": "destroy"}, notify=webhook(receiver)
        ) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda _number, _told: None
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_kept(await daemon.wait_incident("vm", ending="destroyed"))
        await receiver.wait(lambda requests: len(requests) == 1)
        await daemon.kill()
        receiver.answer = lambda _number, _told: status(200)
        await daemon.start_again()
        await daemon.wait_log("notification delivered", count=2)
        assert notices(receiver.requests) == ["panicked", "panicked", "closed"]
        assert Counter(told.id for told in receiver.requests).most_common(1)[0][1] == 2
        await daemon.terminate()
        assert still_to_be_told(daemon) <= 1, "the removal of the last may be cut off"
        await daemon.start_again()
        await daemon.wait_log("configuration in force", since=daemon.began)
        assert {told.id for told in receiver.requests[3:]} <= {receiver.requests[2].id}


async def test_nothing_is_kept_for_nobody(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir) as daemon,
        FakeQemu(socket_dir / "a.qmp", name="a").running() as before,
        FakeQemu(socket_dir / "b.qmp", name="b").running() as after,
    ):
        await daemon.wait_armed("a")
        await daemon.wait_armed("b")
        before.panic()
        stays = await daemon.wait_log("incident stays open")
        await daemon.call("ack", incident=stays["incident"], why="it is in the journal")
        assert still_to_be_told(daemon) == 0
        daemon.write_config(notify=webhook(receiver))
        await daemon.call("reload")
        after.panic()
        await receiver.wait(lambda requests: len(requests) == 2)
        assert {told.body["incident"]["domain"] for told in receiver.requests} == {"b"}


async def test_what_is_no_longer_to_be_told_is_dropped(socket_dir: Path) -> None:
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(socket_dir, notify=webhook(receiver, timeout="1h")) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        receiver.answer = lambda _number, _told: status(500)
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification not delivered")
        daemon.write_config(notify={})
        await daemon.call("reload")
        with fail_after(5):
            while still_to_be_told(daemon):
                await trio.lowlevel.checkpoint()


async def test_a_token_is_sent(socket_dir: Path) -> None:
    token = socket_dir / "token"
    token.write_text("s3cret\n")
    async with (
        Receiver.start() as receiver,
        DaemonInside.start(
            socket_dir, notify=webhook(receiver, credentials_file=str(token))
        ) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic()
        await receiver.wait(lambda requests: len(requests) == 2)
        assert {t.headers["authorization"] for t in receiver.requests} == {"Bearer s3cret"}
        token.write_text("two\nlines")
        vm.machine.reset("host-qmp-system-reset", guest=False)
        await daemon.wait_log(
            "notification not delivered", problem=f"{token}: expected a token on one line"
        )


HOOK = """
import json, os, sys
told = {name: os.environ[name] for name in os.environ if name.startswith("PANICD_")}
with open(sys.argv[1], "a") as file:
    print(json.dumps([told, json.load(sys.stdin)]), file=file)
"""


async def test_a_command_is_told_too(socket_dir: Path) -> None:
    script, kept = socket_dir / "hook.py", socket_dir / "kept"
    script.write_text(HOOK)
    hook = {"command": [sys.executable, str(script), str(kept)]}
    console = socket_dir / "console"
    console.write_text("Kernel panic - not syncing: lost 7 of 8\n")
    evidence = {"budget": "3s", "consoles": [str(console)]}
    policy = {"on_crash": "destroy", "evidence": evidence}
    async with (
        DaemonInside.start(socket_dir, policy, notify={"hook": hook}) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification delivered", count=2, channel="hook")
    (first, _), (last, body) = map(json.loads, kept.read_text().splitlines())
    assert first["PANICD_NOTICE"] == "panicked"
    assert first["PANICD_SIGNATURE"] == ""
    assert first["PANICD_ACTION"] == "destroy"
    assert last == {
        **first,
        "PANICD_NOTIFICATION": body["id"],
        "PANICD_NOTICE": "closed",
        "PANICD_STATE": "closed",
        "PANICD_ENDING": "destroyed",
        "PANICD_SIGNATURE": body["incident"]["signature"]["hash"],
    }
    assert body["incident"]["id"] == first["PANICD_INCIDENT"]
    assert body["incident"]["signature"]["title"] == "panic: lost # of #"


@pytest.mark.parametrize(
    ("listens", "tls", "page"),
    [
        (("127.0.0.1", 9000), None, "http://vm-host:9000"),
        (("::", 8443), SSLContext(PROTOCOL_TLS_SERVER), "https://vm-host:8443"),
        (("127.0.0.1", 0), None, ""),
        (None, None, ""),
    ],
)
def test_a_command_is_told_where_the_page_is(
    listens: tuple[str, int] | None, tls: SSLContext | None, page: str
) -> None:
    assert notifier.page_address(listens, WebConfig(tls=tls), "vm-host") == page


async def test_a_command_that_fails_is_run_again(socket_dir: Path) -> None:
    ran = socket_dir / "ran"
    script = f"echo x >> {ran}; echo no; exit $(( $(wc -l < {ran}) < 3 ))"
    hook = {"command": ["/bin/sh", "-c", script]}
    async with (
        DaemonInside.start(socket_dir, notify={"hook": hook}) as daemon,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await daemon.wait_armed("vm")
        vm.panic()
        await daemon.wait_log("notification delivered", count=2)
        failed = daemon.logged("notification not delivered")
        assert [line["problem"] for line in failed] == ["/bin/sh: exit status 1: no"] * 2


def test_a_hostile_name_forges_nothing() -> None:
    opened = Opened(
        1.5, HOSTILE, "", "/run/vm.qmp", "", Source.EVENT, PanicInformation("\r\n", (("a", "\n"),))
    )
    incident = Incident("20261123T044714-646f2eb5", opened)
    message = notifier.Message(f"{incident.id}.1", Notice.PANICKED, 1.5, incident)
    assert message.headers("host\r\n/x") == {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "20261123T044714-646f2eb5.1",
        "ce-source": "//host%0D%0A%2Fx/panicd",
        "ce-type": "panicd.incident.panicked",
        "ce-subject": "20261123T044714-646f2eb5",
        "ce-time": "1970-01-01T00:00:01.500000Z",
    }
    assert json.loads(message.body())["dry_run"] is False
    assert message.environment("")["PANICD_DOMAIN"] == r"vm\r\nce-id: forged\x00\u202e\ud800"
    assert b"\n" not in message.body()
    assert json.loads(message.body())["incident"]["domain"] == HOSTILE
