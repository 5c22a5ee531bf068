"""How the event loop and the journal's thread share the interpreter and the processors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import trio

from panicd.journal import request as journal_request
from panicd.journal.request import Request, Requests
from tests.bench import AS_THE_SERVICE

_PRIORITIES = """
import os, pathlib, sys, trio
from panicd.journal.journal import Journal

os.setpriority(os.PRIO_PROCESS, 0, -5)  # whatever priority the tests have
with Journal.open(pathlib.Path(sys.argv[1])) as journal:
    trio.run(journal.drop_other_channels)
    print(*(os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a high priority takes a right")
def test_the_journal_s_thread_has_the_event_loop_s_priority(tmp_path: Path) -> None:
    """The unit has threads begin at 0, and the event loop would take the processor from it."""
    program = [sys.executable, "-c", _PRIORITIES, str(tmp_path / "journal")]
    told = subprocess.run([*AS_THE_SERVICE, *program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["-5", "-5"]


async def test_the_event_loop_stands_aside_for_the_thread_that_it_woke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_request, "STANDS_ASIDE", 60.0)
    requests, prepared = Requests(), list[Request]()

    def prepare() -> None:
        (request,), _ = requests.take()
        prepared.append(request)
        request.is_prepared.release()

    thread = Thread(target=prepare)
    thread.start()
    while not requests._is_awaited:
        pass
    token = trio.lowlevel.current_trio_token()
    request = Request(lambda _: None, token, lambda _: None)
    requests.put(request)
    requests.stand_aside()
    assert prepared == [request]
    requests.put(Request(lambda _: None, token, lambda _: None))
    requests.stand_aside()  # for nobody
    thread.join()
