"""Forms by which operators act: who may, what is refused, and what is written down."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import bcrypt
import pytest

from panicd.config.config import ConfigError, load
from panicd.config.web import WebConfig
from panicd.rules.incident import Acknowledged, Asked
from panicd.web.page.forms import ACTIONS
from panicd.web.page.tokens import GOOD_FOR, SPENT_LIMIT, Tokens
from panicd.web.web import Request, Response, WebApp
from tests.config.test_web_config import HASH, TLS
from tests.parts.fake import FakeQemu
from tests.parts.html import Reader
from tests.parts.http import Answer, connect, get, read_answer
from tests.web.page.test_pages import ALICE, BOB, Watched, watched

HERE = "Origin: http://localhost"
FORM = "Content-Type: application/x-www-form-urlencoded"
GOOD = (ALICE, HERE, FORM)


async def post(
    seen: Watched, path: str, fields: dict[str, str], *headers: str, host: str = "localhost"
) -> Answer:
    body = urlencode(fields).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers]
    async with await connect(seen.server) as stream:
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
        return await read_answer(stream)


async def forms(seen: Watched, path: str, *headers: str) -> dict[str, dict[str, str]]:
    """Return the forms of a page, by their addresses: the fields that are filled in already."""
    answer = await get(seen.server, path, *headers)
    assert answer.status == 200
    found: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for tag, attributes in Reader(answer.body.decode()).elements:
        if tag == "form" and attributes["method"] == "post":
            fields = found.setdefault(attributes["action"] or "", {})
        elif tag == "input" and attributes["type"] == "hidden":
            fields[attributes["name"] or ""] = attributes.get("value") or ""
    return found


@asynccontextmanager
async def preserved(directory: Path, **config: Any) -> AsyncIterator[tuple[Watched, FakeQemu, str]]:
    """A daemon where alice is an operator and bob none; a guest that waits; its incident's page."""
    async with (
        watched(directory, users=True, operators=("alice",), **config) as seen,
        FakeQemu(directory / "vm.qmp", name="web-1").running() as vm,
    ):
        await seen.daemon.wait_log("policy in force")
        vm.panic()
        incident = await seen.daemon.wait_incident("web-1", state="preserved")
        await seen.daemon.wait_kept(incident)
        yield seen, vm, f"/incident/{incident.id}"


async def test_an_operator_restarts_a_guest_and_it_is_written_down_who(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, vm, path):
        form = (await forms(seen, path, ALICE))["/do/act"]
        sent = {**form, "action": "restart", "why": "ticket 42"}
        answer = await post(seen, "/do/act", sent, *GOOD)
        assert answer.status == 200, answer
        assert b"its incident is restarted" in answer.body
        assert "system_reset" in vm.changing_commands
        history = seen.daemon.journal()[0]
        assert history.closed is not None
        asked = await seen.daemon.wait_log("operator asked", what="act restart")
        assert (asked["user"], asked["why"]) == ("alice", "ticket 42")
        shown = await seen.page(path, ALICE)
        assert "by alice (page): ticket 42" in shown.text


async def test_a_form_is_good_once(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, vm, path):
        form = (await forms(seen, path, ALICE))["/do/act"]
        sent = {**form, "action": "restart", "why": "ticket 42"}
        assert (await post(seen, "/do/act", sent, *GOOD)).status == 200
        assert (await post(seen, "/do/act", sent, *GOOD)).status == 403
        assert vm.changing_commands.count("system_reset") == 1


async def test_a_form_is_for_the_incident_that_was_seen(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, vm, path):
        form = (await forms(seen, path, ALICE))["/do/act"]
        await seen.daemon.call("act", domain="web-1", action="restart", why="by another")
        mark = seen.daemon.mark()
        vm.panic()
        await seen.daemon.wait_incident("web-1", state="preserved", since=mark)
        before = list(vm.changing_commands)
        sent = {**form, "action": "destroy", "why": "late"}
        answer = await post(seen, "/do/act", sent, *GOOD)
        assert answer.status == 409
        assert b"has ended" in answer.body
        assert vm.changing_commands == before


def changed(form: dict[str, str], **fields: str) -> dict[str, str]:
    return {**form, "action": "destroy", "why": "x", **fields}


async def test_forgeries_are_refused_and_nothing_is_done(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, vm, path):
        before = list(vm.changing_commands)

        async def refused(status: int, fields: dict[str, str], *headers: str, **to: str) -> None:
            answer = await post(seen, to.pop("path", "/do/act"), fields, *headers, **to)
            assert answer.status == status, (fields, headers, answer.body)
            assert vm.changing_commands == before

        async def fresh() -> dict[str, str]:
            return (await forms(seen, path, ALICE))["/do/act"]

        form = await fresh()
        for forged in (
            {**form, "token": ""},
            {**form, "token": form["token"][:-1] + "0" * (form["token"][-1] != "0") + "1"},
            {**form, "token": "9" * 20 + form["token"][10:]},
            {**form, "token": "nan.0.0"},
            {**form, "token": "\ud800"},
            {**form, "domain": f"{socket_dir}/other.qmp"},
            {**form, "incident": "20261123T044714-00000000"},
        ):
            fields = {key: value.encode("utf-8", "replace") for key, value in forged.items()}
            text = {key: value.decode() for key, value in fields.items()}
            await refused(403, changed(text), *GOOD)
        # From another site, or from none that a browser tells of.
        for origin in (
            "http://evil.example",
            "null",
            "http://localhost.evil.example",
            "//localhost",
        ):
            await refused(403, changed(await fresh()), ALICE, FORM, f"Origin: {origin}")
        await refused(403, changed(await fresh()), ALICE, FORM)
        await refused(403, changed(await fresh()), ALICE, HERE, "Content-Type: text/plain")
        await refused(403, changed(await fresh()), *GOOD, host="rebound.example")
        # One form's token is no other's.
        ack = (await forms(seen, path, ALICE))["/do/ack"]
        await refused(403, changed(await fresh(), token=ack["token"]), *GOOD)
        # What may not be asked for here, or not like this.
        for action in ("ignore", "preserve", "coredump-ignore", "release", "", "quit"):
            await refused(400, changed(await fresh(), action=action), *GOOD)
        for why in ("", "   ", "a\nb", "\x1b[2J", "x" * 501):
            await refused(400, changed(await fresh(), why=why), *GOOD)
        await refused(404, changed(await fresh()), *GOOD, path="/do/release")
        await refused(404, changed(await fresh()), *GOOD, path="/")
        # Who may not.
        await refused(405, changed(await fresh()), BOB, HERE, FORM)
        await refused(401, changed(await fresh()), HERE, FORM)
        assert await forms(seen, path, BOB) == {}
        assert "restart" in ACTIONS


async def test_one_user_s_form_is_not_another_s(socket_dir: Path) -> None:
    async with (
        watched(socket_dir, users=True, operators=("alice", "bob")) as seen,
        FakeQemu(socket_dir / "vm.qmp", name="vm").running(),
    ):
        await seen.daemon.wait_log("policy in force")
        form = (await forms(seen, "/domain?name=vm", ALICE))["/do/hold"]
        sent = {**form, "for": "1800", "why": "x"}
        assert (await post(seen, "/do/hold", sent, BOB, HERE, FORM)).status == 403
        assert (await post(seen, "/do/hold", sent, *GOOD)).status == 200


async def test_without_operators_there_is_no_form_and_nobody_may_post(socket_dir: Path) -> None:
    async with (
        watched(socket_dir, users=True) as seen,
        FakeQemu(socket_dir / "vm.qmp", name="vm").running(),
    ):
        await seen.daemon.wait_log("policy in force")
        assert await forms(seen, "/domain?name=vm", ALICE) == {}
        assert (await post(seen, "/do/hold", {"why": "x"}, *GOOD)).status == 405


async def test_a_role_that_is_taken_away_counts_for_forms_that_are_open(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, vm, path):
        form = (await forms(seen, path, ALICE))["/do/act"]
        web = socket_dir / "web.yaml"
        web.write_text(re.sub(r"operators:.*", "operators: []", web.read_text(), flags=re.DOTALL))
        await seen.daemon.call("reload")
        assert (await post(seen, "/do/act", changed(form), *GOOD)).status == 405
        assert "quit" not in vm.changing_commands


async def test_a_domain_is_held_and_let_go_by_its_monitor(socket_dir: Path) -> None:
    """Another that claims the name since the page was made is not meant."""
    async with (
        watched(socket_dir, users=True, operators=("alice",)) as seen,
        FakeQemu(socket_dir / "a.qmp", name="db-1").running(),
    ):
        await seen.daemon.wait_log("policy in force")
        form = (await forms(seen, "/domain?name=db-1", ALICE))["/do/hold"]
        async with FakeQemu(socket_dir / "b.qmp", name="db-1").running():
            await seen.daemon.wait_log("policy in force", count=2)
            sent = {**form, "for": "7200", "why": "maintenance"}
            answer = await post(seen, "/do/hold", sent, *GOOD)
            assert answer.status == 200, answer.body
            status = await seen.daemon.call("status")
            held = {d["monitor"]: d["held_why"] for d in status["domains"]}
            assert held == {f"{socket_dir}/a.qmp": "maintenance", f"{socket_dir}/b.qmp": ""}
            form = (await forms(seen, "/domain?name=db-1", ALICE))["/do/unhold"]
            answer = await post(seen, "/do/unhold", {**form, "why": "done"}, *GOOD)
            assert b"The hold has ended" in answer.body
            status = await seen.daemon.call("status")
            assert not any(d["held_why"] for d in status["domains"])


async def test_an_incident_is_acknowledged_by_name(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, _, path):
        form = (await forms(seen, path, ALICE))["/do/ack"]
        assert (await post(seen, "/do/ack", {**form, "why": "seen <b>"}, *GOOD)).status == 200
        (incident,) = seen.daemon.journal()
        assert incident.acknowledged is not None
        assert (incident.acknowledged.user, incident.acknowledged.why) == ("alice", "seen <b>")
        assert "/do/ack" not in await forms(seen, path, ALICE)
        assert isinstance(incident.acknowledged, Acknowledged)
        assert Asked(0.0, 0, "act", "x").user == "", "what was written before has none"


async def test_a_body_has_a_limit(socket_dir: Path) -> None:
    async with preserved(socket_dir) as (seen, _, path):
        form = (await forms(seen, path, ALICE))["/do/act"]
        assert (await post(seen, "/do/act", changed(form, why="x" * 5000), *GOOD)).status == 413


def test_tokens_end_and_are_bounded() -> None:
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    token = tokens.make("alice", "act")
    assert not tokens.take(token, "bob", "act")
    assert not tokens.take(token, "alice", "ac")
    assert not Tokens(lambda: 0.0).take(token, "alice", "act"), "of another run"
    now[0] = GOOD_FOR
    assert not tokens.take(token, "alice", "act")
    for _ in range(SPENT_LIMIT):
        assert tokens.take(tokens.make("alice", "act"), "alice", "act")
    assert not tokens.take(tokens.make("alice", "act"), "alice", "act")
    now[0] = 2 * GOOD_FOR + 1
    assert tokens.take(tokens.make("alice", "act"), "alice", "act")


def web_mistakes(directory: Path, listen: str, web: str) -> list[str]:
    (directory / "web.yaml").write_text(web)
    (directory / "panicd.yaml").write_text(
        f"monitors: [{{glob: /run/x/*.qmp}}]\n"
        f"metrics: {{listen: '{listen}', web_config: {directory}/web.yaml}}\n"
    )
    try:
        load(directory / "panicd.yaml")
    except ConfigError as error:
        return [str(mistake) for mistake in error.mistakes]
    return []


USERS = f"basic_auth_users: {{alice: {HASH}}}\noperators: [alice]\n"
ENCRYPTED = f"tls_server_config: {{cert_file: {TLS}/server.crt, key_file: {TLS}/server.key}}\n"


@pytest.mark.parametrize(
    ("listen", "web", "wrong"),
    [
        ("127.0.0.1:0", USERS, ""),
        ("[::1]:0", USERS, ""),
        ("0.0.0.0:0", USERS, "operators: expected tls_server_config too"),
        ("192.0.2.1:0", USERS, "operators: expected tls_server_config too"),
        ("0.0.0.0:0", USERS + ENCRYPTED, ""),
        ("127.0.0.1:0", "operators: [alice]", "operators[0]: expected a name of basic_auth_users"),
        ("127.0.0.1:0", USERS.replace("[alice]", "alice"), "operators: expected a list"),
    ],
)
def test_operators_need_a_password_and_a_connection_that_nobody_listens_to(
    tmp_path: Path, listen: str, web: str, wrong: str
) -> None:
    mistakes = web_mistakes(tmp_path, listen, web)
    assert bool(mistakes) is bool(wrong)
    assert all(wrong in mistake for mistake in mistakes), mistakes


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("2001:db8::1", False),
        ("", False),
    ],
)
async def test_in_clear_one_may_on_loopback_only(peer: str, may: bool) -> None:
    asked: list[Request] = []

    def pages(request: Request) -> Response:
        asked.append(request)
        return Response(b"")

    hashed = bcrypt.hashpw(b"opensesame", bcrypt.gensalt(4))
    web = WebConfig(users={"alice": hashed}, operators=frozenset({"alice"}))
    app = WebApp(render=bytes, healthy=lambda: True, pages=pages, web=lambda: web)
    app.start()
    headers = {"authorization": ALICE.partition(": ")[2]}
    await app.answer(Request("/", headers=headers, peer=peer))
    assert [request.operator for request in asked] == [may]
    answer = await app.answer(Request("/do/ack", "POST", headers, peer=peer))
    assert answer.status == (200 if may else 405)
