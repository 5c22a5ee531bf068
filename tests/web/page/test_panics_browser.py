"""The pages of many panics in a real browser, at a desk and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts import chromium
from tests.parts.chromium import Chromium
from tests.web.page.test_browser import ACTIVE, PICTURES, SIZES, TIME_LIMIT, WIDER, check_events
from tests.web.page.test_pages import ALICE, many_panics, panicked

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium"),
]


@pytest.mark.parametrize("size", SIZES)
async def test_many_panics_are_looked_at(socket_dir: Path, size: str) -> None:
    width, height = SIZES[size]
    await many_panics(socket_dir)
    async with (
        panicked(socket_dir, users=True, time_limit=TIME_LIMIT) as (seen, _),
        Chromium.start(socket_dir, width=width, height=height) as browser,
    ):
        name, _, value = ALICE.partition(": ")
        await browser.call("Network.setExtraHTTPHeaders", headers={name: value})
        address = f"http://127.0.0.1:{seen.server.port}"
        for page in ("/", "/panics", "/panics/1-0000000007"):
            await browser.go(address + page)
            assert await browser.tell(WIDER) <= 0, "it is scrolled sideways"
            assert await browser.tell(ACTIVE) == 0
            if PICTURES:
                picture = f"panics{page.replace('/', '-')}-{size}.png"
                await browser.take_picture(Path(PICTURES) / picture)
        check_events(browser, address)
