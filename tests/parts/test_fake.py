"""What a test can do to the fake, and how its versions differ; tests/contract has the rest."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.parts.fake import FakeQemu
from tests.parts.machine import CommandError
from tests.parts.patience import fail_after
from tests.parts.profile import (
    QEMU_1_5,
    QEMU_1_6,
    QEMU_1_7,
    QEMU_2_5,
    QEMU_2_6,
    QEMU_2_8,
    QEMU_7_2,
    QEMU_10_0,
    Profile,
    RunState,
)
from tests.parts.qmp import QmpCommandError, connect_qmp

TIME_LIMIT = 20.0
MANY = 2_000


@pytest.fixture
def path(socket_dir: Path) -> Path:
    return socket_dir / "vm.qmp"


async def test_a_cont_before_the_stop_freezes_the_guest(path: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            FakeQemu(path, panic_action="pause").running() as fake,
            connect_qmp(path) as qmp,
        ):
            fake.panic(hold_stop=True)
            assert (await qmp.execute("query-status"))["status"] == "running"
            await qmp.execute("cont")
            assert qmp.sequence()[1:] == [
                *("GUEST_PANICKED", "return query-status", "STOP", "RESUME", "return cont")
            ]
            assert fake.machine.vcpu_frozen
            await qmp.execute("stop")
            await qmp.execute("cont")
            assert not fake.machine.vcpu_frozen


async def test_a_held_stop_comes(path: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            FakeQemu(path, panic_action="pause").running() as fake,
            connect_qmp(path) as qmp,
        ):
            fake.panic({"type": "hyper-v", "arg1": 1}, hold_stop=True)
            fake.finish_stop()
            await qmp.wait_event("STOP")
            assert fake.machine.state is RunState.GUEST_PANICKED
            assert qmp.events[0]["data"]["info"] == {"type": "hyper-v", "arg1": 1}


async def test_others_act_unrecorded(path: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path).running() as fake, connect_qmp(path) as qmp:
            await fake.foreign("stop")
            await qmp.wait_event("STOP")
            with pytest.raises(CommandError, match="not been found"):
                await fake.foreign("nope")
            await fake.foreign("quit")
            await qmp.wait_closed()
            assert fake.commands == ["qmp_capabilities"]


@pytest.mark.parametrize("before_reply", [False, True])
async def test_panics_at_its_next_boots(path: Path, *, before_reply: bool) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            FakeQemu(path, panic_action="pause").running() as fake,
            connect_qmp(path) as qmp,
        ):
            fake.panic_at_boot(2, before_reply=before_reply)
            for panics in (1, 2):
                await qmp.execute("stop")
                await qmp.execute("system_reset")
                mark = qmp.mark()
                await qmp.execute("cont")
                await qmp.wait_event("GUEST_PANICKED", count=panics)
                words = ["GUEST_PANICKED", "STOP"]
                words.insert(2 if before_reply else 0, "return cont")
                await qmp.wait_event("STOP", since=mark)
                assert qmp.sequence(mark) == ["RESUME", *words]
            await qmp.execute("system_reset")
            await qmp.execute("cont")
            assert (await qmp.execute("query-status"))["status"] == "running"


async def test_dies_without_a_word(path: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path).running() as fake:
            async with connect_qmp(path) as qmp:
                fake.exit()
                await qmp.wait_closed()
                assert qmp.sequence() == ["return qmp_capabilities"]
            assert await trio.Path(path).exists()
            with pytest.raises(ConnectionRefusedError):
                async with connect_qmp(path):
                    pass


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-nonsense\r\n"])
async def test_greets_as_told(path: Path, greeting: bytes) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path, greeting=greeting).running() as fake:
            stream = await trio.open_unix_socket(str(path))
            async with stream:
                if greeting:
                    assert await stream.receive_some() == greeting
                await stream.send_all(b'{"execute": "qmp_capabilities"}')
                await fake.wait_command("qmp_capabilities")


async def test_sends_what_nobody_reads(path: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path, panic_action="none").running() as fake:
            stream = await trio.open_unix_socket(str(path))
            async with stream:
                await stream.send_all(b'{"execute": "qmp_capabilities"}')
                await fake.wait_command("qmp_capabilities")
                for _ in range(10_000):
                    fake.panic()
                received = bytearray()
                while received.count(b"GUEST_PANICKED") < 10_000:
                    received += await stream.receive_some()


async def test_holds_dumps(path: Path) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path).running() as fake, connect_qmp(path) as qmp:
            fake.hold_dumps()
            await qmp.execute(
                "dump-guest-memory", {"paging": False, "protocol": "file:/dev/null", "detach": True}
            )
            assert (await qmp.execute("query-dump"))["status"] == "active"
            fake.release_dumps()
            await qmp.wait_event("DUMP_COMPLETED")


@pytest.mark.parametrize(
    ("profile", "resumes", "after_reset"),
    [
        (QEMU_1_5, False, "paused"),
        (QEMU_1_6, False, "paused"),
        (QEMU_1_7, True, "guest-panicked"),
        (QEMU_2_5, True, "guest-panicked"),
        (QEMU_2_6, True, "prelaunch"),
        (QEMU_2_8, True, "prelaunch"),
        (QEMU_7_2, True, "prelaunch"),
        (QEMU_10_0, True, "prelaunch"),
    ],
)
async def test_versions_differ_after_a_panic(
    path: Path, *, profile: Profile, resumes: bool, after_reset: str
) -> None:
    with fail_after(TIME_LIMIT):
        async with (
            FakeQemu(path, profile=profile, shutdown_action="pause").running() as fake,
            connect_qmp(path) as qmp,
        ):
            fake.panic()
            await qmp.wait_event("STOP")
            if resumes:
                await qmp.execute("cont")
                fake.panic()
                await qmp.wait_event("STOP", count=2)
            else:
                with pytest.raises(QmpCommandError, match="Resetting"):
                    await qmp.execute("cont")
            mark = qmp.mark()
            await qmp.execute("system_reset")
            assert (await qmp.execute("query-status"))["status"] == after_reset
            modern = profile.version >= (7, 2)
            assert qmp.sequence(mark)[:2] == (
                ["RESET", "return system_reset"] if modern else ["return system_reset", "RESET"]
            )
            await qmp.execute("cont")
            assert (await qmp.execute("query-status"))["status"] == "running"


@pytest.mark.parametrize(
    ("profile", "events"),
    [
        (QEMU_2_6, ["GUEST_PANICKED", "STOP"]),
        (QEMU_2_8, ["GUEST_PANICKED", "GUEST_PANICKED", "SHUTDOWN"]),
        (QEMU_7_2, ["GUEST_PANICKED", "SHUTDOWN"]),
    ],
)
async def test_versions_differ_in_what_a_panic_does(
    path: Path, profile: Profile, events: list[str]
) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path, profile=profile).running() as fake, connect_qmp(path) as qmp:
            fake.panic()
            await qmp.wait_event(events[-1])
            assert qmp.sequence()[1:] == events


@pytest.mark.parametrize("profile", [QEMU_1_5, QEMU_1_7])
async def test_old_versions_know_less(path: Path, profile: Profile) -> None:
    with fail_after(TIME_LIMIT):
        async with FakeQemu(path, profile=profile, devices=()).running(), connect_qmp(path) as qmp:
            assert qmp.greeting["capabilities"] == []
            for unknown in ("set-action", "query-dump", "query-qmp-schema"):
                with pytest.raises(QmpCommandError) as caught:
                    await qmp.execute(unknown)
                assert caught.value.error_class == "CommandNotFound"
            listed = await qmp.execute("qom-list", {"path": "/machine/unattached"})
            assert ("child<pvpanic>" in {node["type"] for node in listed}) == (profile is QEMU_1_5)
            arguments = {"paging": False, "protocol": "file:/dev/null", "format": "elf"}
            with pytest.raises(QmpCommandError):
                await qmp.execute("dump-guest-memory", arguments)
            del arguments["format"]
            await qmp.execute("dump-guest-memory", arguments)
            assert "DUMP_COMPLETED" not in qmp.sequence()


@pytest.fixture
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_files")
async def test_thousands_fit_in_one_process(socket_dir: Path) -> None:
    fakes = [FakeQemu(socket_dir / f"{number}.qmp", panic_action="pause") for number in range(MANY)]
    with fail_after(3 * TIME_LIMIT):
        async with trio.open_nursery() as nursery:
            for fake in fakes:
                await nursery.start(fake.run)
            for fake in fakes:
                fake.panic()
            for fake in fakes:
                async with connect_qmp(fake.socket) as qmp:
                    assert (await qmp.execute("query-status"))["status"] == "guest-panicked"
            nursery.cancel_scope.cancel()
