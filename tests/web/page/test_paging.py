"""The host's page where there are more domains than one page takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from panicd.web.page import overview
from tests.parts import chromium
from tests.parts.chromium import Chromium
from tests.parts.fake import FakeQemu
from tests.web.page.test_browser import CHANGED
from tests.web.page.test_pages import watched


@pytest.fixture(autouse=True)
def two_on_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a page take two domains."""
    monkeypatch.setattr(overview, "DOMAINS_SHOWN", 2)


async def test_each_domain_is_on_one_page_the_worst_on_the_first(socket_dir: Path) -> None:
    worst = FakeQemu(socket_dir / "z.qmp", name="z-worst")
    async with (
        watched(socket_dir) as seen,
        FakeQemu(socket_dir / "a.qmp", name="a-good").running(),
        FakeQemu(socket_dir / "b.qmp", name="b-deaf", devices=()).running(),
        FakeQemu(socket_dir / "c.qmp", name="c-deaf", devices=()).running(),
        FakeQemu(socket_dir / "d.qmp", name="d-good").running(),
        worst.running(),
    ):
        await seen.daemon.wait_log("policy in force", count=5)
        worst.panic()
        await seen.daemon.wait_incident("z-worst", state="preserved")

        async def page(query: str) -> tuple[str, list[str], list[str]]:
            """What is said of them, their names, and where the pages' links lead to."""
            read = await seen.page(f"/{query}")
            domains = read.text[read.text.index("Domains") :]
            links = [a.get("href") or "" for tag, a in read.elements if tag == "a"]
            named = [a for a in links if a.startswith("/domain?name=")]
            first = next(i for i, a in enumerate(links) if "page=" in a) if "Page" in domains else 0
            return (
                domains[len("Domains") :].partition(".")[0],
                [a.partition("=")[2] for a in links[first:] if a in named],
                [a for a in links if "page=" in a],
            )

        told, names, links = await page("")
        assert told == "1 to 2 of 5, the worst first"
        assert names[:2] == ["z-worst", "b-deaf"]
        assert links == [f"/?q=&show=all&page={n}#domains" for n in (1, 2, 3)] * 2

        seen_so_far = names[:2]
        for number in (2, 3):
            told, names, _ = await page(f"?page={number}")
            assert told == ("3 to 4" if number == 2 else "5 to 5") + " of 5, the worst first"
            seen_so_far += names[: 2 if number == 2 else 1]
        assert sorted(seen_so_far) == ["a-good", "b-deaf", "c-deaf", "d-good", "z-worst"]

        assert (await page("?q=deaf"))[0] == "2 of 5 shown"
        assert (await page("?q=-&page=3"))[2][0] == "/?q=-&show=all&page=1#domains"
        for beyond in ("4", "999999"):
            assert (await page(f"?page={beyond}"))[0].startswith("5 to 5 of 5")
        for nonsense in ("0", "-1", "x", "9" * 5000, "%D9%A1"):
            assert (await page(f"?page={nonsense}"))[0].startswith("1 to 2 of 5")


@pytest.mark.real
@pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium")
async def test_a_page_further_on_is_renewed_and_stays(socket_dir: Path) -> None:
    fakes = [FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in ("a", "b", "c")]
    async with (
        watched(socket_dir, time_limit=60) as seen,
        Chromium.start(socket_dir, width=1280, height=800) as browser,
        trio.open_nursery() as nursery,
    ):
        for fake in fakes:
            await nursery.start(fake.run)
        await seen.daemon.wait_log("policy in force", count=3)
        await browser.go(f"http://127.0.0.1:{seen.server.port}/?page=2#domains")
        shown = "document.getElementById('domains').innerText"
        assert "3 to 3 of 3" in await browser.tell(shown)
        await nursery.start(FakeQemu(socket_dir / "d.qmp", name="d").run)
        while "3 to 4 of 4" not in await browser.tell(shown):
            await browser.tell(CHANGED % "domains")
        assert (
            await browser.tell("document.querySelector('.pages [aria-current]').innerText") == "2"
        )
        nursery.cancel_scope.cancel()
