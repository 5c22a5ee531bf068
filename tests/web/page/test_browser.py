"""The pages in a real browser, by keyboard alone. It needs chromium, which nothing installs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.parts import chromium
from tests.parts.chromium import Chromium
from tests.web.page.test_pages import ALICE, keep_evidence, panicked

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
    outline: parseFloat(getComputedStyle(here).outlineWidth),
    seen: box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth
      && box.top < innerHeight,
  };
})()"""
REACHABLE = """[...document.querySelectorAll('a[href], summary')].map(
  here => here.outerHTML.slice(0, here.outerHTML.indexOf('>') + 1))"""
WIDER = "document.documentElement.scrollWidth - innerWidth"
ACTIVE = "document.scripts.length + document.querySelectorAll('iframe, object, embed').length"


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
