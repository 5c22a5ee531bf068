"""The pages in a real browser, by keyboard alone. It needs chromium, which nothing installs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.parts import chromium
from tests.parts.background import background
from tests.parts.chromium import Chromium
from tests.parts.fake import FakeQemu
from tests.web.page.test_pages import ALICE, keep_evidence, panicked, watched

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium"),
]

TIME_LIMIT = 60
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PICTURES = os.environ.get("PANICD_TEST_PICTURES", "")

FOCUSED = """(() => {
  const here = document.activeElement, box = here.getBoundingClientRect();
  return {
    name: here.outerHTML.slice(0, here.outerHTML.indexOf('>') + 1),
    place: [...document.querySelectorAll('*')].indexOf(here),
    outline: parseFloat(getComputedStyle(here).outlineWidth),
    seen: box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth
      && box.top < innerHeight,
  };
})()"""
REACHABLE = """[...document.querySelectorAll(
  'a[href], summary, button, select, input:not([type=hidden])'
)].filter(here => here.offsetParent !== null || here.className === 'skip').map(
  here => here.outerHTML.slice(0, here.outerHTML.indexOf('>') + 1))"""
WIDER = "document.documentElement.scrollWidth - innerWidth"
ACTIVE = "document.scripts.length - 1 + document.querySelectorAll('iframe, object, embed').length"
CHANGED = """new Promise(done => new MutationObserver((_, all) => { all.disconnect(); done(true); })
  .observe(document.getElementById(%r), {childList: true, subtree: true}))"""
VIOLATIONS = """axe.run({resultTypes: ['violations']}).then(found => found.violations.map(
  one => one.id + ': ' + one.nodes.map(node => node.html).slice(0, 3).join(' ')))"""


@asynccontextmanager
async def shown(directory: Path, size: str) -> AsyncIterator[tuple[Chromium, str, str]]:
    """A browser that shows the host's page to somebody known; its address, and an incident's."""
    width, height = SIZES[size]
    async with (
        panicked(directory, users=True, time_limit=TIME_LIMIT) as (seen, path),
        Chromium.start(directory, width=width, height=height) as browser,
    ):
        keep_evidence(directory, path)
        name, _, value = ALICE.partition(": ")
        await browser.call("Network.setExtraHTTPHeaders", headers={name: value})
        address = f"http://127.0.0.1:{seen.server.port}"
        await browser.go(address + "/")
        yield browser, address, path


async def tabbed(browser: Chromium) -> list[dict[str, Any]]:
    """What the tab key comes by, once through the page."""
    passed: list[dict[str, Any]] = []
    while True:
        await browser.press("Tab")
        focused = await browser.tell(FOCUSED)
        if focused["name"].startswith("<body") or focused in passed:
            return passed
        passed.append(focused)


@pytest.mark.parametrize("size", SIZES)
async def test_pages_are_used_by_keyboard_and_load_nothing_from_elsewhere(
    socket_dir: Path, size: str
) -> None:
    async with shown(socket_dir, size) as (browser, address, path):
        for page in ("host", "incident"):
            if page == "incident":
                mark = len(browser.events)
                while path not in (await browser.tell(FOCUSED))["name"]:
                    await browser.press("Tab")
                await browser.press("Enter")
                await browser.wait_event("Page.loadEventFired", since=mark)
                assert await browser.tell("location.pathname") == path
            passed = await tabbed(browser)
            assert [focused["name"] for focused in passed] == await browser.tell(REACHABLE)
            assert all(focused["outline"] >= 2 and focused["seen"] for focused in passed), passed
            assert await browser.tell(WIDER) <= 0, "it is scrolled sideways"
            assert await browser.tell(ACTIVE) == 0, "a guest's text became part of the page"
            if PICTURES:
                await browser.take_picture(Path(PICTURES) / f"{page}-{size}.png")
        while "<summary" not in (await browser.tell(FOCUSED))["name"]:
            await browser.press("Tab")
        await browser.press("Enter")
        assert await browser.tell("document.activeElement.parentElement.open")
        check_events(browser, address)


def check_events(browser: Chromium, address: str) -> None:
    """Check that nothing came from elsewhere, and that the browser had nothing to complain of."""
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert all(url.startswith(address + "/") for url in asked), asked
    complaints = {"Log.entryAdded", "Page.javascriptDialogOpening", "Runtime.exceptionThrown"}
    told = [event["params"] for event in browser.events if event["method"] in complaints]
    assert [entry for entry in told if "favicon" not in str(entry)] == []


async def test_who_skips_to_the_content_is_there(socket_dir: Path) -> None:
    async with shown(socket_dir, "desk") as (browser, _, _):
        await browser.press("Tab")
        assert (await browser.tell(FOCUSED))["seen"], "the link shows when it is reached"
        await browser.press("Enter")
        await browser.press("Tab")
        assert await browser.tell("document.activeElement.closest('main') !== null")


async def test_the_page_renews_itself_and_pauses(socket_dir: Path) -> None:
    async with (
        shown(socket_dir, "desk") as (browser, _, path),
        FakeQemu(socket_dir / "new.qmp", name="new-one").running(),
    ):
        await browser.tell("document.querySelector('#search').focus()")
        while "new-one" not in await browser.tell("document.body.innerText"):
            await browser.tell(CHANGED % "domains")
        assert await browser.tell("document.activeElement.id") == "search", "nobody is thrown out"
        for told in ("Go on", "Pause"):
            await browser.tell("document.getElementById('pause').click()")
            assert await browser.tell("document.getElementById('pause').textContent") == told
        assert await browser.tell(f"document.querySelector('a[href=\"{path}\"]') !== null")


async def test_the_page_says_when_panicd_gives_no_answer(socket_dir: Path) -> None:
    async with shown(socket_dir, "desk") as (browser, _, _):
        await browser.call("Network.emulateNetworkConditions", offline=True, latency=0,
                           downloadThroughput=0, uploadThroughput=0)  # fmt: skip
        told = browser.tell
        while not await told("document.getElementById('trouble').textContent"):
            await told(CHANGED % "trouble")
        assert "is old" in await told("document.getElementById('trouble').textContent")


async def test_domains_are_found_as_you_type(socket_dir: Path) -> None:
    async with (
        shown(socket_dir, "desk") as (browser, _, _),
        FakeQemu(socket_dir / "db.qmp", name="db-7").running(),
        FakeQemu(socket_dir / "web.qmp", name="web-7").running(),
    ):
        await browser.tell("document.getElementById('search').focus()")
        await browser.call("Input.insertText", text="web-7")
        shows = "document.getElementById('domains').innerText"
        while "1 of 3" not in await browser.tell(shows):
            await browser.tell(CHANGED % "domains")
        assert "db-7" not in await browser.tell(shows)
        assert await browser.tell("location.search") == "?q=web-7&show=all"


async def test_a_command_is_copied(socket_dir: Path) -> None:
    async with shown(socket_dir, "desk") as (browser, address, path):
        await browser.go(address + path)
        await browser.tell("document.querySelector('button[data-copy]').click()")
        copied = """(() => { const b = document.querySelector('button[data-copy]');
          return b.textContent === 'Copied' || getSelection().toString() })()"""
        while not (selected := await browser.tell(copied)):
            await browser.tell("new Promise(requestAnimationFrame).then(() => true)")
        assert selected is True or selected.startswith("panicd incident ")


async def test_a_form_is_sent_from_the_page_and_from_no_other(socket_dir: Path) -> None:
    """What a browser says of where a form is from is what panicd goes by."""
    async with (
        watched(socket_dir, users=True, operators=("alice",), time_limit=TIME_LIMIT) as seen,
        FakeQemu(socket_dir / "vm.qmp", name="vm").running(),
        Chromium.start(socket_dir, width=1280, height=800) as browser,
    ):
        await seen.daemon.wait_log("policy in force")
        name, _, value = ALICE.partition(": ")
        await browser.call("Network.setExtraHTTPHeaders", headers={name: value})
        page = f"http://127.0.0.1:{seen.server.port}/domain?name=vm"
        await browser.go(page)
        token = await browser.tell("document.querySelector('[name=token]').value")
        monitor = f"{socket_dir}/vm.qmp"
        fields = {"token": token, "domain": monitor, "for": "1800", "why": "x", "incident": ""}
        inputs = "".join(f"<input name='{key}' value='{value}'>" for key, value in fields.items())
        other = f"<form method=post action='{page.partition('/domain')[0]}/do/hold'>{inputs}</form>"
        # The very token, on another site's page: it is not even spent.
        await browser.go("data:text/html," + quote(other))
        mark = len(browser.events)
        await browser.tell("document.forms[0].submit()")
        await browser.wait_event("Page.loadEventFired", since=mark)
        assert "not sent from panicd's page" in await browser.tell("document.body.innerText")
        assert (await seen.daemon.domain("vm"))["held_why"] == ""
        await browser.go(page)
        mark = len(browser.events)
        await browser.tell("document.querySelector('[name=why]').value = 'maintenance'")
        await browser.tell("document.querySelector('.operation button').click()")
        await browser.wait_event("Page.loadEventFired", since=mark)
        assert "Held until" in await browser.tell("document.body.innerText")
        assert (await seen.daemon.domain("vm"))["held_why"] == "maintenance"


DOMAINS = 200
MANY_TIME_LIMIT = 120
HYPER_V = {"type": "hyper-v", "arg1": 0x7E, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 5}


@pytest.mark.skipif(not chromium.AXE.exists(), reason="no axe-core: npm install axe-core")
async def test_two_hundred_domains_are_accessible_at_every_size_and_colour(
    socket_dir: Path,
) -> None:
    config: dict[str, Any] = {
        "domains": [{"match": "web-*", "on_crash": "restart"}],
        "storm": "off",
        "time_limit": MANY_TIME_LIMIT,
    }
    engine = chromium.AXE.read_text(encoding="utf-8")
    async with (
        watched(socket_dir, users=True, operators=("alice",), **config) as seen,
        background() as nursery,
    ):
        fakes = []
        for number in range(DOMAINS):
            name = f"{('web', 'db')[number % 2]}-{number:03}"
            devices = () if number == 5 else ("pvpanic",)
            fakes.append(FakeQemu(socket_dir / f"{name}.qmp", name=name, devices=devices))
            await nursery.start(fakes[-1].run)
        await seen.daemon.wait_log("policy in force", count=DOMAINS)
        for fake in fakes[:9]:
            fake.panic(HYPER_V)
        incident = await seen.daemon.wait_incident("db-001", state="preserved")
        await seen.daemon.wait_incident("web-000", ending="restarted")
        await seen.daemon.call("ack", incident=incident.id, why="seen")
        await seen.daemon.call("hold", domain="db-101", why="busy")
        keep_evidence(socket_dir, f"/incident/{incident.id}")
        pages = {
            "many": "/", "problems": "/?show=attention", "of-many": f"/incident/{incident.id}",
            "domain": "/domain?name=db-101", "panics": "/panics",
        }  # fmt: skip
        for size, (width, height) in SIZES.items():
            async with Chromium.start(socket_dir / size, width=width, height=height) as browser:
                name, _, value = ALICE.partition(": ")
                await browser.call("Network.setExtraHTTPHeaders", headers={name: value})
                for scheme in ("light", "dark"):
                    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
                    await browser.call("Emulation.setEmulatedMedia", features=preferred)
                    for page, path in pages.items():
                        await browser.go(f"http://127.0.0.1:{seen.server.port}{path}")
                        assert await browser.tell(WIDER) <= 0, (size, page)
                        if PICTURES:
                            picture = Path(PICTURES) / f"{page}-{size}-{scheme}.png"
                            await browser.take_picture(picture)
                        await browser.tell(engine + ";true")
                        assert await browser.tell(VIOLATIONS) == [], (size, scheme, page)


async def test_a_card_can_be_tapped_anywhere(socket_dir: Path) -> None:
    async with shown(socket_dir, "phone") as (browser, _, path):
        tapped = await browser.tell("""(() => {
          const card = document.querySelector('#open .cards tbody tr');
          card.scrollIntoView({block: 'center'});
          const box = card.getBoundingClientRect();
          const there = document.elementFromPoint(box.right - 8, box.bottom - 8);
          return there.closest('a') && there.closest('a').pathname;
        })()""")
        assert tapped == path
