"""The hook that tells a chat: what comes out at the other end, and what a guest can't do to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.prometheus import unused_port
from tests.parts.receiver import Receiver, Told, status

HOOK = Path(__file__).parents[2] / "share/panicd/hooks/chat"
HOST = os.uname().nodename
NAME = "<!channel> *web*"
REASON = "<!here> <http://evil.example|click>\x1b[2J\u202e & `x`"
PANIC: dict[str, Any] = {
    "type": "s390", "core": 1, "psw-mask": 2, "psw-addr": 3, "reason": REASON,
}  # fmt: skip


def notify(directory: Path, receiver: Receiver, *options: str, retry_for: str = "1h") -> Any:
    (directory / "url").write_text(receiver.url + "\n")
    return {
        "retry_for": retry_for,
        "hook": {"command": [str(HOOK), str(directory / "url"), *options]},
    }


async def told(
    directory: Path, *options: str, count: int = 2, listen: str = "127.0.0.1:0", name: str = NAME
) -> list[Told]:
    """What a chat was told of a guest that panicked and was preserved."""
    async with Receiver.start() as receiver:
        config = notify(directory, receiver, *options)
        async with (
            DaemonInside.start(
                directory, notify=config, metrics={"listen": listen}, time_limit=60
            ) as daemon,
            FakeQemu(directory / "vm.qmp", name=name).running() as vm,
        ):
            await daemon.wait_log("policy in force")
            vm.panic(PANIC)
            await receiver.wait(lambda requests: len(requests) >= count)
            await daemon.wait_log("notification delivered", count=2)
            return receiver.requests


async def test_a_chat_is_told_with_the_host_a_link_and_what_the_guest_said(
    socket_dir: Path,
) -> None:
    port = unused_port()
    panicked, settled = await told(socket_dir, listen=f"127.0.0.1:{port}")
    title, said, action, link = panicked.body["text"].split("\n")
    assert title == f"&lt;!channel&gt; *web* on {HOST}: panicked"
    assert said.startswith("The guest said: ")
    assert "&lt;!here&gt; &lt;http://evil.example|click&gt;" in said
    assert action == "Next: preserve (on_crash applies as configured)"
    assert "\nDecided: preserve (on_crash applies as configured)\n" in settled.body["text"]
    assert link.startswith(f"http://{HOST}:{port}/incident/20")
    for body in (panicked.body, settled.body):
        assert body["mrkdwn"] is False
        assert not set("<>\x1b\u202e") & set(body["text"])
    assert ": preserved: it is stopped, and waits for somebody\n" in settled.body["text"]
    asked = f'panicd act {socket_dir}/vm.qmp restart --why "evidence taken"'
    assert f"\nWhen you have looked: {asked}\n" in settled.body["text"], "not by its name"


async def test_a_chat_is_told_the_command_for_a_guest_that_waits(socket_dir: Path) -> None:
    panicked, settled = await told(socket_dir, listen="off", name="web-1")
    assert "panicd act" not in panicked.body["text"]
    last = settled.body["text"].split("\n")[-1]  # without a page there is no link
    assert last == 'When you have looked: panicd act web-1 restart --why "evidence taken"'


@pytest.mark.parametrize(
    ("min_free", "says"), [("0%", "The dump: {directory}/"), ("99%", "There is no dump: ")]
)
async def test_a_chat_is_told_where_the_dump_is_or_why_there_is_none(
    socket_dir: Path, min_free: str, says: str
) -> None:
    coredump = {"min_free": min_free, "directory": str(socket_dir / "dumps")}
    policy = {"on_crash": "coredump-restart", "coredump": coredump}
    async with Receiver.start() as receiver:
        config = notify(socket_dir, receiver, "--only", "closed")
        async with (
            DaemonInside.start(socket_dir, policy, notify=config, time_limit=60) as daemon,
            FakeQemu(socket_dir / "vm.qmp").running() as vm,
        ):
            await daemon.wait_armed("vm")
            vm.panic()
            await receiver.wait(bool)
            (closed,) = receiver.requests
            title, *_, dump = closed.body["text"].split("\n")
            assert title.endswith(": restarted; the incident is closed")
            assert dump.startswith(says.format(directory=coredump["directory"]))
            await daemon.wait_log("notification delivered")


async def test_teams_is_told_by_a_card_without_markup(socket_dir: Path) -> None:
    panicked, _ = await told(socket_dir, "--teams", "--page", "https://vm-host/")
    (attachment,) = panicked.body["attachments"]
    card = attachment["content"]
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
    runs = [run["text"] for block in card["body"] for run in block["inlines"]]
    assert runs[0] == f"{NAME} on {HOST}: panicked"
    assert not {"\x1b", "\u202e", "\n"} & set("".join(runs))
    assert card["actions"][0]["url"].startswith("https://vm-host/incident/20")


async def test_what_is_not_wanted_is_not_told(socket_dir: Path) -> None:
    (settled,) = await told(socket_dir, "--only", "settled,closed", count=1)
    assert "preserved: " in settled.body["text"]


@pytest.mark.parametrize(
    ("code", "problem"), [(500, "answered with status 500"), (0, "can't be reached")]
)
async def test_a_chat_that_does_not_take_it_is_tried_again_and_its_address_stays_secret(
    socket_dir: Path, code: int, problem: str
) -> None:
    async with Receiver.start() as receiver:
        receiver.answer = lambda _number, _told: status(code) if code else b"\xff\r\n"
        config = notify(socket_dir, receiver)
        async with (
            DaemonInside.start(socket_dir, notify=config, time_limit=60) as daemon,
            FakeQemu(socket_dir / "vm.qmp").running() as vm,
        ):
            await daemon.wait_log("policy in force")
            vm.panic()
            line = await daemon.wait_log("notification not delivered")
            assert problem in line["problem"]
            assert "told?x=1" not in line["problem"]
            receiver.answer = lambda _number, _told: status(204)
            await daemon.wait_log("notification delivered", count=2)
