import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import panicd
from panicd.fleet import watches
from panicd.fleet.discovery import Appeared, Discovery, Readable, Unreadable, Vanished
from tests.fleet.discovery.sockets import LIMIT, bind, nothing_more, take
from tests.parts.nobody import needs_root


def overflow(path: Path) -> None:
    """Make more events in a file's directory than the kernel keeps."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(queue // 2 + 1):  # made and removed: two events
        path.touch()
        path.unlink()


async def test_after_an_overflow_everything_is_compared(base: Path) -> None:
    (base / "vm").mkdir()
    replaced, removed = bind(base / "vm" / "a.qmp"), bind(base / "vm" / "b.qmp")
    with Discovery(f"{base}/*/*.qmp") as discovery:
        assert await take(discovery, 2) == [Appeared(replaced), Appeared(removed)]
        overflow(base / "noise")
        bind(base / "new").rename(replaced)
        removed.unlink()
        (base / "vm2").mkdir()
        added = bind(base / "vm2" / "c.qmp")
        assert await take(discovery, 4) == [
            Vanished(removed),
            Vanished(replaced),
            Appeared(replaced),
            Appeared(added),
        ]
        await nothing_more(discovery, base / "vm2")


async def test_after_an_overflow_a_reused_inode_number_is_told_by_its_time(base: Path) -> None:
    path = bind(base / "a.qmp")
    with Discovery(f"{base}/*.qmp") as discovery:
        await take(discovery, 1)
        overflow(base / "noise")
        os.utime(path, ns=(0, 0))
        assert await take(discovery, 2) == [Vanished(path), Appeared(path)]


def test_leaves_no_file_descriptor_behind(base: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with Discovery(f"{base}/*.qmp"):
        pass
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "LOOK_EVERY", 0.05)


@contextmanager
def no_file_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("often")
async def test_without_an_open_file_it_is_looked_at_now_and_then(base: Path) -> None:
    directory = base / "vm"
    directory.mkdir()
    discovery = Discovery(f"{directory}/*.qmp")
    with no_file_left():
        discovery.__enter__()
    assert "max_user_instances" in discovery._watches.limit
    try:
        path = bind(base / "a.qmp").rename(directory / "a.qmp")
        # There are files again when it looks next, so that it is watched, and all is well.
        assert await take(discovery, 3) == [
            Unreadable(directory, "Too many open files"),
            Appeared(path),
            Readable(directory),
        ]
        assert discovery._watches.limit == ""
        await nothing_more(discovery, directory)
    finally:
        discovery.__exit__()


LIMITED = """
import pathlib, socket, sys, trio
from panicd.fleet import watches
from panicd.fleet.discovery import Discovery
watches.LOOK_EVERY = 0.05
limit = pathlib.Path("/proc/sys/user", sys.argv[2])
limit.write_text(sys.argv[3])
async def main():
    with Discovery(sys.argv[1]) as discovery:
        print(await anext(discovery))
        socket.socket(socket.AF_UNIX).bind(sys.argv[1].replace("*", "a"))
        print(await anext(discovery))
        pathlib.Path(sys.argv[1].replace("*", "a")).unlink()
        print(await anext(discovery))
        limit.write_text("100")
        print(await anext(discovery))
trio.run(main)
"""


@needs_root
@pytest.mark.parametrize(
    ("limit", "value"), [("max_inotify_watches", "2"), ("max_inotify_instances", "0")]
)
def test_what_inotify_has_not_left_is_looked_at_now_and_then(
    base: Path, limit: str, value: str
) -> None:
    directory = base / "vm"
    directory.mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", LIMITED,
         f"{directory}/*.qmp", limit, value],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(*panicd.__path__).parent)},
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("no new user namespace may be made here")
    limited, *changes = done.stdout.splitlines()
    assert f"fs.inotify.{limit.replace('inotify', 'user')}" in limited, done.stderr
    path = directory / "a.qmp"
    assert changes == [str(Appeared(path)), str(Vanished(path)), str(Readable(directory))]


ON_A_MOUNT = """
import pathlib, socket, subprocess, sys, trio
from panicd.fleet.discovery import Discovery
from panicd.fleet.watches import mount_changes
pattern = sys.argv[1]
def bind(name):
    socket.socket(socket.AF_UNIX).bind(pattern.replace("*", name))
async def main():
    bind("below")
    with Discovery(pattern) as discovery:
        print(await anext(discovery))
        async with trio.open_nursery() as nursery:
            async def see_mounts():
                async for _ in mount_changes():
                    discovery.look_again()
            nursery.start_soon(see_mounts)
            await trio.testing.wait_all_tasks_blocked()
            directory = str(pathlib.Path(pattern).parent)
            subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
            bind("above")
            for _ in range(2):
                print(await anext(discovery))
            subprocess.run(["umount", directory], check=True)
            for _ in range(2):
                print(await anext(discovery))
            nursery.cancel_scope.cancel()
import trio.testing
trio.run(main)
"""


@needs_root
def test_a_file_system_that_is_mounted_over_a_directory_is_noticed(base: Path) -> None:
    directory = base / "vm"
    directory.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", ON_A_MOUNT, f"{directory}/*.qmp"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(*panicd.__path__).parent)},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"nothing may be mounted here: {done.stderr}")
    below, above = directory / "below.qmp", directory / "above.qmp"
    told = [Appeared(below), Vanished(below), Appeared(above), Vanished(above), Appeared(below)]
    assert done.stdout.splitlines() == list(map(str, told)), done.stderr
