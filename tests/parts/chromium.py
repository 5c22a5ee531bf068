"""A real headless browser, controlled over a pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import trio

from tests.parts.background import background

ROOT = Path(__file__).parents[2]

PROGRAM = shutil.which("chromium")
AXE = Path(os.environ.get("PANICD_TEST_AXE", ROOT / "node_modules/axe-core/axe.min.js"))
"""The accessibility engine (`npm install axe-core`), if it is installed."""

_KEYS = {"Tab": 9, "Enter": 13}
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
# The browser reads descriptor 3 and writes to 4, whatever numbers they have here.
_ON_3_AND_4 = """
import os, sys
for here, far in (sys.argv[1], 100), (sys.argv[2], 101):
    os.dup2(int(here), far)
for far, there in (100, 3), (101, 4):
    os.dup2(far, there)
os.execv(sys.argv[3], sys.argv[3:])
"""

Message = dict[str, Any]


class Chromium:
    """One tab of a browser.

    Attributes:
        events: the browser's events, in order.
    """

    def __init__(self, requests: trio.abc.SendStream, answers: trio.abc.ReceiveStream) -> None:
        self.events: list[Message] = []
        self._requests = requests
        self._answers = answers
        self._replies: dict[int, Message] = {}
        self._arrived = trio.Condition()
        self._last = 0
        self._session = ""

    @classmethod
    @asynccontextmanager
    async def start(cls, directory: Path, *, width: int, height: int) -> AsyncIterator[Chromium]:
        """Run a browser, with a window of that many pixels."""
        assert PROGRAM is not None
        here_reads, it_writes = os.pipe()
        it_reads, here_writes = os.pipe()
        arguments = (
            *_QUIET,
            f"--user-data-dir={directory / 'browser'}",
            "--remote-debugging-pipe",
        )
        pipes = (it_reads, it_writes)
        command = [sys.executable, "-c", _ON_3_AND_4, *map(str, pipes), PROGRAM, *arguments]
        async with background() as nursery:
            process = await trio.lowlevel.open_process(
                command,
                pass_fds=pipes,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
            )
            os.close(it_reads)
            os.close(it_writes)
            browser = cls(trio.lowlevel.FdStream(here_writes), trio.lowlevel.FdStream(here_reads))
            try:
                nursery.start_soon(browser._read)
                await browser._open_tab()
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                await browser.call("Emulation.setDeviceMetricsOverride", **size)
                yield browser
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def call(self, method: str, **parameters: object) -> Any:
        """Give a command, and return its result."""
        self._last += 1
        number = self._last
        message: Message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._requests.send_all(json.dumps(message).encode() + b"\0")
        async with self._arrived:
            while number not in self._replies:
                await self._arrived.wait()
        reply = self._replies.pop(number)
        assert "error" not in reply, reply
        return reply["result"]

    async def wait_event(self, method: str, *, since: int) -> Message:
        """Wait for an event after the first ``since`` ones; it may have come already."""
        async with self._arrived:
            while not (found := [e for e in self.events[since:] if e["method"] == method]):
                await self._arrived.wait()
        return found[0]

    async def go(self, url: str) -> None:
        """Load a page."""
        mark = len(self.events)
        await self.call("Page.navigate", url=url)
        await self.wait_event("Page.loadEventFired", since=mark)

    async def press(self, key: str) -> None:
        """Press a key: ``Tab`` or ``Enter``."""
        described: dict[str, object] = {
            "key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key],
        }  # fmt: skip
        if key == "Enter":
            described["text"] = "\r"
        await self.call("Input.dispatchKeyEvent", type="keyDown", **described)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **described)

    async def tell(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; it may take a while."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def take_picture(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the whole page, or of what the window shows."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        await trio.Path(path).write_bytes(base64.b64decode(shot["data"]))

    async def _open_tab(self) -> None:
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")

    async def _read(self) -> None:
        buffered = b""
        while received := await self._answers.receive_some():
            *messages, buffered = (buffered + received).split(b"\0")
            async with self._arrived:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._replies[message["id"]] = message
                    else:
                        self.events.append(message)
                self._arrived.notify_all()
