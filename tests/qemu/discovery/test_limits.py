import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import panicd
from panicd.qemu.discovery import Appeared, Discovery, DiscoveryError, Vanished
from tests.parts.nobody import needs_root
from tests.qemu.discovery.sockets import LIMIT, bind, nothing_more, take


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


def test_no_inotify_instance_left(base: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(DiscoveryError, match=r"max_user_instances.*open files"):
            Discovery(f"{base}/*.qmp").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WITHOUT_WATCHES = """
import pathlib, sys
from panicd.qemu.discovery import Discovery, DiscoveryError
pathlib.Path("/proc/sys/user/max_inotify_watches").write_text("2")
try:
    Discovery(sys.argv[1]).__enter__()
except DiscoveryError as error:
    print(error)
"""


@needs_root
def test_no_inotify_watch_left(base: Path) -> None:
    (base / "vm").mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", WITHOUT_WATCHES,
         f"{base}/vm/*.qmp"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(*panicd.__path__).parent)},
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("no new user namespace may be made here")
    assert done.stdout == (
        f"no inotify watch left for {base}: raise the sysctl fs.inotify.max_user_watches\n"
    ), done.stderr
