"""The pages, of a daemon with fake QEMUs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt
import pytest
import yaml

from panicd.journal.journal import Journal
from panicd.rules.incident import (
    Closed,
    Decided,
    Ending,
    Opened,
    Outcome,
    Source,
    StepBegun,
    StepEnded,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Collect, Plan
from panicd.rules.policy import Decision, Reason
from panicd.rules.signature import Signature
from panicd.service.control_client import RefusedError
from panicd.web.http import HttpServer
from panicd.web.page.script import SCRIPT
from tests.parts.daemon import DaemonInside
from tests.parts.fake import FakeQemu
from tests.parts.html import Reader
from tests.parts.http import Answer, basic, get

HOSTILE = "</title><script>alert(1)</script>\" onload='x'"
PAYLOAD = "</pre><img src=x onerror=alert(1)>"
TURNED = "\u202e"  # what follows would be shown from right to left
PANIC: dict[str, Any] = {
    "type": "s390", "core": 1, "psw-mask": 2, "psw-addr": 3, "reason": PAYLOAD + TURNED,
}  # fmt: skip
PICTURE = b"\x89PNG\r\n\x1a\n" + b"x" * 100
ALICE, BOB = basic("alice", "opensesame"), basic("bob", "opensesame")
ELEMENTS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "a",
        "header",
        "p",
        "nav",
        "main",
        "footer",
    ),
    *("h1", "h2", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "span"),
    *("time", "details", "summary", "pre", "img", "ul", "li", "code", "button", "script"),
    *("form", "label", "input", "select", "option"),
}


class Watched:
    def __init__(self, daemon: DaemonInside, server: HttpServer) -> None:
        self.daemon = daemon
        self.server = server

    async def get(self, path: str, *headers: str) -> Answer:
        return await get(self.server, path, *headers)

    async def page(self, path: str, *headers: str) -> Reader:
        answer = await self.get(path, *headers)
        assert answer.status == 200
        return Reader(answer.body.decode())


@asynccontextmanager
async def watched(
    directory: Path, *, users: bool = False, operators: tuple[str, ...] = (), **config: Any
) -> AsyncIterator[Watched]:
    """A daemon with, or without, the users alice and bob."""
    web = directory / "web.yaml"
    hashed = bcrypt.hashpw(b"opensesame", bcrypt.gensalt(4)).decode()
    known = {"alice": hashed, "bob": hashed} if users else {}
    web.write_text(yaml.safe_dump({"basic_auth_users": known, "operators": list(operators)}))
    metrics = {"listen": "127.0.0.1:0", "web_config": str(web)}
    async with DaemonInside.start(directory, metrics=metrics, **config) as daemon:
        served = await daemon.wait_log("metrics are served")
        yield Watched(daemon, HttpServer(served["host"], served["port"]))


@asynccontextmanager
async def panicked(
    directory: Path, *, users: bool, name: str = HOSTILE, **config: Any
) -> AsyncIterator[tuple[Watched, str]]:
    """A daemon with one domain, which is preserved; its incident's page."""
    async with (
        watched(directory, users=users, **config) as seen,
        FakeQemu(directory / "vm.qmp", name=name).running() as vm,
    ):
        await seen.daemon.wait_log("policy in force")
        vm.panic(PANIC)
        stays = await seen.daemon.wait_log("incident stays open")
        # Returns when what was logged before is in the journal too, where the pages read it.
        await seen.daemon.call("ack", incident=stays["incident"], why="seen")
        yield seen, f"/incident/{stays['incident']}"


def keep_evidence(directory: Path, path: str) -> None:
    bundle = directory / "state" / "incidents" / path.rpartition("/")[2]
    bundle.mkdir(parents=True)
    (bundle / "screen.png").write_bytes(PICTURE)
    (bundle / "kernel.log").write_text(f"one\n{PAYLOAD}\n\x1b[2J\n")
    files = {"screen.png": "screen", "kernel.log": "log", "qemu.json": "answers"}
    manifest = {"files": files, "problems": {"registers": PAYLOAD}}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


async def test_the_host_page_shows_domains_and_incidents(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=False, name="web-1") as (seen, path):
        read = await seen.page("/")
        assert {"web-1", "preserved", "3 of 3"} <= {
            part.strip() for part in re.split(r"(web-1|preserved|3 of 3)", read.text)
        }
        links = [attributes["href"] for tag, attributes in read.elements if tag == "a"]
        assert links.count(path) == 2, "of the open incident, and of the domain"
        assert "acknowledged" in read.text
        assert "s ago)" in read.text
        for link in set(links) - {"#main"}:
            assert link is not None
            assert (await seen.get(link)).status == 200


@pytest.mark.parametrize("users", [False, True])
async def test_a_guest_can_inject_nothing(socket_dir: Path, users: bool) -> None:
    async with panicked(socket_dir, users=users) as (seen, path):
        keep_evidence(socket_dir, path)
        for page in ("/", path, f"/domain?name={quote(HOSTILE)}", f"/?q={quote(HOSTILE)}"):
            answer = await seen.get(page, ALICE)
            assert answer.status == 200, page
            read = Reader(answer.body.decode())
            assert {tag for tag, _ in read.elements} <= ELEMENTS
            for _, attributes in read.elements:
                assert not [name for name in attributes if name.startswith(("on", "style"))]
                for address in (attributes.get("href"), attributes.get("src")):
                    assert address is None or re.fullmatch(r"[/#][\w/.?=%+#-]*", address)
            assert TURNED not in read.text
            assert "\x1b" not in read.text
            assert not [name for name in answer.headers if "alert" in answer.headers[name]]


async def test_nobody_known_nothing_of_a_guest(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=False, name="vm") as (seen, path):
        keep_evidence(socket_dir, path)
        for page in ("/", path):
            answer = await seen.get(page)
            assert b"onerror" not in answer.body
            assert b'screen.png"' not in answer.body
            assert b"Guest output is hidden" in answer.body, "and says so"
        assert (await seen.get(f"{path}/screen.png")).status == 403


async def test_who_is_known_is_shown_what_the_guest_said(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=True, name="vm") as (seen, path):
        keep_evidence(socket_dir, path)
        assert (await seen.get(path)).status == 401
        assert (await seen.get(f"{path}/screen.png")).status == 401
        read = await seen.page(path, ALICE)
        assert "Guest output is hidden" not in read.text
        assert f"reason={PAYLOAD}" in read.text
        assert f"one\n{PAYLOAD}\n\\x1b[2J" in read.text
        (picture,) = [attributes["src"] for tag, attributes in read.elements if tag == "img"]
        assert picture == f"{path}/screen.png"
        answer = await seen.get(picture, ALICE)
        assert (answer.body, answer.headers["content-type"]) == (PICTURE, "image/png")
        assert "sandbox" in answer.headers["content-security-policy"]


async def test_a_screen_that_is_no_picture_is_not_shown(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=True, name="vm") as (seen, path):
        keep_evidence(socket_dir, path)
        screen = socket_dir / "state" / "incidents" / path.rpartition("/")[2] / "screen.png"
        screen.write_bytes(b"<script>alert(1)</script>")
        assert (await seen.get(f"{path}/screen.png", ALICE)).status == 404
        screen.unlink()
        screen.symlink_to("/etc/passwd")
        assert (await seen.get(f"{path}/screen.png", ALICE)).status == 404


async def test_the_policy_allows_this_style_and_this_script(socket_dir: Path) -> None:
    async with watched(socket_dir) as seen:
        answer = await seen.get("/")
    policy = answer.headers["content-security-policy"]
    (sheet,) = re.findall(r"<style>(.*?)</style>", answer.body.decode(), re.DOTALL)
    (program,) = re.findall(r"<script>(.*?)</script>", answer.body.decode(), re.DOTALL)
    assert program == SCRIPT
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().lower()
        for text in (sheet, program)
    )
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


async def test_tables_keep_their_meaning_as_cards(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=False, name="vm") as (seen, path):
        for page in ("/", path):
            read = await seen.page(page)
            roles = {"table": "table", "tr": "row", "td": "cell"}
            for tag, attributes in read.elements:
                assert tag not in roles or attributes["role"] == roles[tag]
                assert tag != "td" or attributes["data-label"]
                assert tag != "th" or attributes["scope"]


@pytest.mark.parametrize(
    "path",
    ["/incident/", "/incident/x", "/incident/20261123T044714-00000000", "/incident/../..",
     "/incident/20261123T044714-00000000/screen.png", "/incident/%2e%2e", "/domain?name=none",
     "/incident/20261123T044714-00000000/file/kernel.log", "/do/act"],
)  # fmt: skip
async def test_there_is_no_other_page(socket_dir: Path, path: str) -> None:
    async with watched(socket_dir) as seen:
        assert (await seen.get(path)).status == 404


async def test_a_journal_that_cannot_be_read_is_told(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=False, name="vm") as (seen, path):
        journal = socket_dir / "state" / "journal.sqlite3"
        journal.rename(journal.with_name("elsewhere"))
        assert "The journal can't be read" in (await seen.page("/")).text
        assert (await seen.get(path)).status == 503
        journal.with_name("elsewhere").rename(journal)


async def test_a_libvirt_that_does_not_answer_is_told(socket_dir: Path) -> None:
    nowhere = {"uri": f"qemu:///system?socket={socket_dir}/none"}
    async with watched(socket_dir, libvirt=nowhere, monitors=[{"libvirt": True}]) as seen:
        told = await seen.daemon.wait_log("libvirt does not answer")
        assert f"libvirt does not answer: {told['problem']}" in (await seen.page("/")).text


async def test_readiness_follows_the_journal(socket_dir: Path) -> None:
    async with watched(socket_dir) as seen:
        await seen.daemon.wait_log("configuration in force")
        assert (await seen.get("/healthz")).status == 200
        ready = await seen.get("/readyz")
        assert (ready.status, ready.body) == (200, b"ok\n")


async def test_a_bad_web_configuration_leaves_the_old_in_force(socket_dir: Path) -> None:
    async with watched(socket_dir, users=True) as seen:
        (socket_dir / "web.yaml").write_text("basic_auth_users: {alice: hunter2}")
        with pytest.raises(RefusedError, match=r"basic_auth_users\.alice: expected a bcrypt hash"):
            await seen.daemon.call("reload")
        assert (await seen.get("/")).status == 401
        assert (await seen.get("/", ALICE)).status == 200
        (socket_dir / "web.yaml").write_text("")
        await seen.daemon.call("reload")
        assert (await seen.get("/")).status == 200


TITLES = (
    *("NULL pointer dereference", "soft lockup", "hung task", "out of memory", "init killed"),
    *("kernel BUG at drivers/vendor/queue.c", "WARNING at net/core/dev.c", f"panic: {PAYLOAD}"),
    *("KASAN: use-after-free (write)", "RCU stall", "general protection fault"),
    "bug check 0x1e KMODE_EXCEPTION_NOT_HANDLED (0xc0000005, …, 0x0, …)",
)
KINDS = len(TITLES)
INCIDENTS = 200


async def many_panics(directory: Path) -> None:
    """A journal with 200 incidents of 12 kinds of panics, on 40 domains."""
    decision = Decision(OnCrash.DESTROY, Action.DESTROY, False, Reason.ON_CRASH)
    plan = Plan(decision, (Collect(3.0),))
    with Journal.open(directory / "state" / "journal.sqlite3") as journal:
        for number in range(INCIDENTS):
            kind, at = number % KINDS, time.time() - 3600 + number
            functions = (f"function_{kind}", "vendor_queue_flush_all", "vendor_ioctl_compat")
            known = Signature(TITLES[kind], functions, f"1-{kind:010x}")
            line = f"{TITLES[kind]} at virtual address 0000000000000008 in {functions[0]}+0x12/0x40"
            await journal.append(
                f"20231114T000000-{number:08x}",
                Opened(at, f"vm-{number % 40}", "", "/run/m.qmp", "1:2", Source.EVENT),
                Decided(at, plan),
                StepBegun(at, 0),
                StepEnded(at, 0, Outcome.DONE, line, known),
                Closed(at + 1, Ending.DESTROYED),
            )


@pytest.mark.parametrize("users", [False, True])
async def test_panics_are_shown_in_groups(socket_dir: Path, users: bool) -> None:
    await many_panics(socket_dir)
    async with watched(socket_dir, users=users) as seen:
        given = [ALICE] if users else []
        read = await seen.page("/panics", *given)
        rows = [attributes for tag, attributes in read.elements if tag == "tr"]
        assert len(rows) == KINDS + 1
        assert "17 times on 10 domains" in read.text
        assert ("function_7" in read.text) is users
        assert all(tag in ELEMENTS for tag, _ in read.elements)
        one = await seen.page("/panics/1-0000000007", *given)
        links = [attributes.get("href") or "" for tag, attributes in one.elements if tag == "a"]
        incidents = [link for link in links if link.startswith("/incident/")]
        assert len(incidents) == len(range(7, INCIDENTS, KINDS))
        incident = await seen.page(incidents[0], *given)
        assert "/panics/1-0000000007" in {a.get("href") for _, a in incident.elements}
        assert (PAYLOAD in incident.text) is users
        assert (await seen.get("/panics/1-ffffffffff", *given)).status == 404


async def test_what_was_kept_is_sent_to_who_is_known(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=True, name="vm") as (seen, path):
        keep_evidence(socket_dir, path)
        answer = await seen.get(f"{path}/file/kernel.log", ALICE)
        assert answer.body == f"one\n{PAYLOAD}\n\x1b[2J\n".encode()
        assert answer.headers["content-disposition"] == 'attachment; filename="kernel.log"'
        assert "sandbox" in answer.headers["content-security-policy"]
        for other in ("bundle.json", "..", ".", "etc", "qemu.json"):  # not listed, or not there
            assert (await seen.get(f"{path}/file/{other}", ALICE)).status == 404, other
        assert (await seen.get(f"{path}/file/kernel.log")).status == 401


async def test_what_was_kept_is_sent_to_nobody_else(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=False, name="vm") as (seen, path):
        keep_evidence(socket_dir, path)
        assert (await seen.get(f"{path}/file/kernel.log")).status == 403
        assert "/file/" not in (await seen.get(path)).body.decode()


async def test_a_listed_file_that_leads_elsewhere_is_not_sent(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=True, name="vm") as (seen, path):
        keep_evidence(socket_dir, path)
        log = socket_dir / "state" / "incidents" / path.rpartition("/")[2] / "kernel.log"
        log.unlink()
        log.symlink_to("/etc/passwd")
        assert (await seen.get(f"{path}/file/kernel.log", ALICE)).status == 404


async def dumped_guest(seen: Watched, vm: FakeQemu) -> tuple[str, bytes]:
    """Have a guest panic and be dumped; returns its incident's page, and the dump."""
    await seen.daemon.wait_log("policy in force")
    vm.panic()
    stays = await seen.daemon.wait_log("incident stays open")
    await seen.daemon.call("ack", incident=stays["incident"], why="seen")
    (dump,) = seen.daemon.directory.glob("state/coredumps/*/*/*")
    return f"/incident/{stays['incident']}", dump.read_bytes()


async def test_memory_is_sent_to_an_operator_and_to_no_other_user(socket_dir: Path) -> None:
    dumped = {"on_crash": "coredump-preserve", "coredump": {"min_free": "1MiB", "format": "elf"}}
    async with (
        watched(socket_dir, users=True, operators=("alice",), defaults=dumped) as seen,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        path, content = await dumped_guest(seen, vm)
        answer = await seen.get(f"{path}/dump/0", ALICE)
        assert (answer.status, answer.body) == (200, content)
        assert (await seen.get(f"{path}/dump/0", BOB)).status == 403
        assert (await seen.get(f"{path}/dump/1", ALICE)).status == 404
        assert (await seen.get(f"{path}/dump/0")).status == 401
        assert f"{path}/dump/0" in (await seen.get(path, ALICE)).body.decode()
        assert f"{path}/dump/0" not in (await seen.get(path, BOB)).body.decode()


async def test_a_step_is_one_row_with_its_duration(socket_dir: Path) -> None:
    async with (
        watched(socket_dir, defaults={"on_crash": "destroy"}) as seen,
        FakeQemu(socket_dir / "vm.qmp").running() as vm,
    ):
        await seen.daemon.wait_log("policy in force")
        vm.panic()
        closed = await seen.daemon.wait_incident("vm", ending="destroyed")
        await seen.daemon.wait_kept(closed)
        text = (await seen.page(f"/incident/{closed.id}")).text
        assert re.search(r"step ?Quit done in [0-9.]+ m?s", text), text
        assert text.count("Quit") == 1


async def test_a_guest_that_is_watched_or_was_reset_is_shown(socket_dir: Path) -> None:
    async with (
        watched(socket_dir, domains=[{"match": "patient", "grace": "1h"}]) as seen,
        FakeQemu(socket_dir / "patient.qmp", name="patient").running() as patient,
        FakeQemu(socket_dir / "left.qmp", name="left").running() as left,
    ):
        await seen.daemon.wait_log("policy in force", count=2)
        patient.panic()
        left.panic()
        await seen.daemon.wait_incident("left", state="preserved")
        await left.foreign("system_reset")
        await seen.daemon.wait_incident("left", state="reset")
        await seen.daemon.wait_domain("patient", lambda d: d["incident_state"] == "watched")
        text = (await seen.page("/")).text
        assert "watched" in text
        assert "reset" in text


async def test_domains_are_searched_for_and_told_apart(socket_dir: Path) -> None:
    async with (
        panicked(socket_dir, users=False, name="web-1") as (seen, _),
        FakeQemu(socket_dir / "bare.qmp", name="bare", devices=()).running(),
    ):
        await seen.daemon.wait_log("policy in force", domain="bare")
        await seen.daemon.call("hold", domain="bare", why="busy")

        async def shown(query: str) -> set[str]:
            read = await seen.page(f"/{query}")
            (domains,) = re.findall(r"Domains([0-9]+ of 2) shown", read.text)
            links = {a.get("href") for tag, a in read.elements if tag == "a"}
            found = {n for n in ("web-1", "bare") if f"/domain?name={n}" in links}
            return {domains, *found}

        assert await shown("") == {"2 of 2", "web-1", "bare"}
        assert await shown("?q=WEB") == {"1 of 2", "web-1"}
        assert await shown("?show=held") == {"1 of 2", "bare", "web-1"}  # its incident is open
        assert await shown("?show=no-device&q=bar") == {"1 of 2", "bare"}
        assert await shown("?show=silent&q=x") == {"0 of 2"}
        for nonsense in ("?show=' OR 1", "?%ff=%00&q", "?" + "&" * 50, "?q=%ED%A0%80"):
            assert (await seen.get(f"/{nonsense.replace(' ', '%20')}")).status == 200
        text = (await seen.page("/")).text
        assert "1 no panic device" in text
        assert "1 held" in text


async def test_a_domain_has_a_page_and_keeps_it(socket_dir: Path) -> None:
    async with panicked(socket_dir, users=False, name="web-1") as (seen, path):
        read = await seen.page("/domain?name=web-1")
        assert path in {a.get("href") for _, a in read.elements}
        assert "panicd explain web-1" in read.text
        assert "--name -" not in read.text
        await seen.daemon.call("act", domain="web-1", action="destroy", why="gone")
        await seen.daemon.wait_log("incident closed")
        (socket_dir / "vm.qmp").unlink(missing_ok=True)
        assert (await seen.page("/domain?name=web-1")).text.count(path.rpartition("/")[2]) == 1


async def test_a_command_to_copy_names_the_monitor_where_the_name_would_be_an_option(
    socket_dir: Path,
) -> None:
    async with panicked(socket_dir, users=False, name="--all") as (seen, path):
        monitor = f"{socket_dir}/vm.qmp"
        assert f"panicd hold {monitor} --for 2h" in (await seen.page(path)).text
        assert "hold --all" not in (await seen.page("/domain?name=--all")).text
