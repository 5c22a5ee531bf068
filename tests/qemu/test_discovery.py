import contextlib
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import panicd
from panicd.qemu.discovery import (
    Appeared,
    Change,
    Discovery,
    DiscoveryError,
    Unreadable,
    Vanished,
    validate_pattern,
)

LIMIT = 20  # seconds a test may take before it counts as hung
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user or namespace: needs root")


@pytest.fixture
def base() -> Iterator[Path]:
    # Not pytest's own: a socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        yield Path(name)


def bind(path: Path) -> Path:
    """Make a socket as a QEMU does, and leave it behind as a killed one does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


async def take(discovery: Discovery, count: int) -> list[Change]:
    with trio.fail_after(LIMIT):
        return [await anext(discovery) for _ in range(count)]


async def nothing_more(discovery: Discovery, directory: Path) -> None:
    """Assert that nothing was left to tell: what is done now is told next."""
    mark = bind(directory / "mark.qmp")
    assert await take(discovery, 1) == [Appeared(mark)]
    mark.unlink()
    assert await take(discovery, 1) == [Vanished(mark)]


@pytest.mark.parametrize(
    "pattern", ["/run/qemu/*.qmp", "/run/qemu/*/monitor.sock", "/*", "/a", "/a/[xy]?/.b"]
)
def test_accepts(pattern: str) -> None:
    validate_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "absolute"),
        ("run/*.qmp", "absolute"),
        ("~/qemu/*.qmp", "absolute"),
        ("/", "name is needed"),
        ("/run/qemu/", "name is needed"),
        ("/run/**/x.qmp", "not supported"),
        ("/run/a**b", "not supported"),
        ("/run//x.qmp", "'' can't be"),
        ("/run/../x.qmp", "'..' can't be"),
        ("/run/./x.qmp", "'.' can't be"),
        ("/run/x\0.qmp", "NUL"),
    ],
)
def test_refuses(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_pattern(pattern)
    with pytest.raises(ValueError, match=message):
        Discovery(pattern)


async def test_tells_first_what_is_there(base: Path) -> None:
    there = [bind(base / name) for name in ("a.qmp", "b.qmp", "c.qmp")]
    bind(base / "other.sock")
    with Discovery(f"{base}/*.qmp") as discovery:
        assert await take(discovery, 3) == [Appeared(path) for path in there]
        await nothing_more(discovery, base)


async def test_tells_what_comes_and_goes(base: Path) -> None:
    with Discovery(f"{base}/*.qmp") as discovery:
        path = bind(base / "a.qmp")
        assert await take(discovery, 1) == [Appeared(path)]
        bind(base / "other.sock")
        path.unlink()
        assert await take(discovery, 1) == [Vanished(path)]
        await nothing_more(discovery, base)


async def test_a_change_is_told_to_one_who_waits_already(base: Path) -> None:
    told: list[Change] = []

    async def wait(discovery: Discovery) -> None:
        told.extend(await take(discovery, 1))

    with Discovery(f"{base}/*.qmp") as discovery:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, discovery)
            await trio.testing.wait_all_tasks_blocked()
            path = bind(base / "a.qmp")
    assert told == [Appeared(path)]


async def test_what_was_over_before_it_was_looked_at_is_not_told(base: Path) -> None:
    with Discovery(f"{base}/*.qmp") as discovery:
        bind(base / "a.qmp").unlink()
        await nothing_more(discovery, base)


async def test_passes_over_what_is_no_socket(base: Path) -> None:
    with Discovery(f"{base}/*.qmp") as discovery:
        (base / "file.qmp").touch()
        (base / "directory.qmp").mkdir()
        os.mkfifo(base / "fifo.qmp")
        (base / "dangling.qmp").symlink_to(base / "nowhere")
        await nothing_more(discovery, base)


async def test_a_socket_that_takes_a_files_place_appears(base: Path) -> None:
    (base / "a.qmp").touch()
    with Discovery(f"{base}/*.qmp") as discovery:
        (base / "a.qmp").unlink()
        bind(base / "a.qmp")
        assert await take(discovery, 1) == [Appeared(base / "a.qmp")]
        bind(base / "b.qmp")
        (base / "file").touch()
        (base / "file").rename(base / "b.qmp")
        (base / "a.qmp").unlink()
        assert await take(discovery, 1) == [Vanished(base / "a.qmp")]
        await nothing_more(discovery, base)


async def test_wildcards_find_no_hidden_and_no_unprintable_names(base: Path) -> None:
    with Discovery(f"{base}/*.qmp") as discovery:
        bind(base / ".new.qmp")
        bind(base / "a\nb.qmp")
        bind(base / "a\x1b[31m.qmp")
        bind(base / "a\udcff.qmp")
        await nothing_more(discovery, base)
        (base / ".new.qmp").rename(base / "new.qmp")
        assert await take(discovery, 1) == [Appeared(base / "new.qmp")]
    with Discovery(f"{base}/.*.qmp") as discovery:
        bind(base / ".hidden.qmp")
        assert await take(discovery, 1) == [Appeared(base / ".hidden.qmp")]


async def test_made_again_is_vanished_and_appeared(base: Path) -> None:
    path = bind(base / "a.qmp")
    with Discovery(f"{base}/*.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(path)]
        path.unlink()
        bind(path)
        assert await take(discovery, 2) == [Vanished(path), Appeared(path)]
        await nothing_more(discovery, base)


async def test_made_again_with_the_same_inode_number_and_time(base: Path) -> None:
    path = bind(base / "a.qmp")
    (base / "other").hardlink_to(path)
    with Discovery(f"{base}/*.qmp") as discovery:
        await take(discovery, 1)
        path.unlink()
        path.hardlink_to(base / "other")
        assert await take(discovery, 2) == [Vanished(path), Appeared(path)]
        await nothing_more(discovery, base)


async def test_replaced_by_a_rename_is_vanished_and_appeared(base: Path) -> None:
    path = bind(base / "a.qmp")
    with Discovery(f"{base}/*.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(path)]
        bind(base / "new").rename(path)
        assert await take(discovery, 2) == [Vanished(path), Appeared(path)]
        await nothing_more(discovery, base)


async def test_renamed_is_another_path(base: Path) -> None:
    path = bind(base / "a.qmp")
    with Discovery(f"{base}/*.qmp") as discovery:
        await take(discovery, 1)
        path.rename(base / "b.qmp")
        assert await take(discovery, 2) == [Vanished(path), Appeared(base / "b.qmp")]
        (base / "b.qmp").rename(base / "elsewhere")
        assert await take(discovery, 1) == [Vanished(base / "b.qmp")]


async def test_other_permissions_are_no_change(base: Path) -> None:
    path = bind(base / "a.qmp")
    with Discovery(f"{base}/*.qmp") as discovery:
        await take(discovery, 1)
        path.chmod(0o660)
        path.parent.chmod(0o755)
        await nothing_more(discovery, base)


async def test_directories_that_do_not_exist_yet(base: Path) -> None:
    directory = base / "run" / "qemu" / "deep"
    with Discovery(f"{directory}/*.qmp") as discovery:
        (base / "run").mkdir()
        (base / "other").mkdir()
        discovery._read()
        assert not discovery._changes
        directory.mkdir(parents=True)
        path = bind(directory / "a.qmp")
        assert await take(discovery, 1) == [Appeared(path)]
        await nothing_more(discovery, directory)


async def test_a_directory_removed_and_made_again(base: Path) -> None:
    directory = base / "qemu"
    directory.mkdir()
    path = bind(directory / "a.qmp")
    with Discovery(f"{directory}/*.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(path)]
        shutil.rmtree(directory)
        assert await take(discovery, 1) == [Vanished(path)]
        directory.mkdir()
        bind(path)
        assert await take(discovery, 1) == [Appeared(path)]
        await nothing_more(discovery, directory)


async def test_a_removed_directory_that_somebody_works_in(base: Path) -> None:
    directory = base / "qemu"
    directory.mkdir()
    held = os.open(directory, os.O_RDONLY)
    try:
        with Discovery(f"{directory}/*.qmp") as discovery:
            directory.rmdir()
            directory.mkdir()
            path = bind(directory / "a.qmp")
            assert await take(discovery, 1) == [Appeared(path)]
            await nothing_more(discovery, directory)
    finally:
        os.close(held)


async def test_a_directory_above_is_moved_away_and_back(base: Path) -> None:
    directory = base / "run" / "qemu"
    directory.mkdir(parents=True)
    path = bind(directory / "a.qmp")
    with Discovery(f"{directory}/*.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(path)]
        (base / "run").rename(base / "away")
        assert await take(discovery, 1) == [Vanished(path)]
        bind(base / "away" / "qemu" / "b.qmp")
        (base / "away").rename(base / "run")
        assert await take(discovery, 2) == [Appeared(path), Appeared(directory / "b.qmp")]
        await nothing_more(discovery, directory)


async def test_a_directory_takes_anothers_place(base: Path) -> None:
    (base / "qemu").mkdir()
    (base / "new").mkdir()
    bind(base / "new" / "a.qmp")
    with Discovery(f"{base}/qemu/*.qmp") as discovery:
        (base / "new").rename(base / "qemu")
        assert await take(discovery, 1) == [Appeared(base / "qemu" / "a.qmp")]
        await nothing_more(discovery, base / "qemu")


async def test_a_wildcard_for_directories(base: Path) -> None:
    for name in ("vm1", "vm2", ".hidden"):
        (base / name).mkdir()
    one = bind(base / "vm1" / "monitor.sock")
    bind(base / ".hidden" / "monitor.sock")
    (base / "file").touch()
    with Discovery(f"{base}/*/monitor.sock") as discovery:
        assert await take(discovery, 1) == [Appeared(one)]
        two = bind(base / "vm2" / "monitor.sock")
        assert await take(discovery, 1) == [Appeared(two)]
        (base / "vm3").mkdir()
        bind(base / "vm3" / "other.sock")
        three = bind(base / "vm3" / "monitor.sock")
        assert await take(discovery, 1) == [Appeared(three)]
        (base / "vm1").rename(base / "vm9")
        assert await take(discovery, 2) == [
            Vanished(one),
            Appeared(base / "vm9" / "monitor.sock"),
        ]
        shutil.rmtree(base / "vm2")
        assert await take(discovery, 1) == [Vanished(two)]
        three.unlink()
        assert await take(discovery, 1) == [Vanished(three)]


async def test_wildcards_follow_no_links_and_plain_names_do(base: Path) -> None:
    (base / "real").mkdir()
    (base / "link").symlink_to("real")
    socket_file = bind(base / "real" / "a.qmp")
    (base / "real" / "b.qmp").symlink_to("a.qmp")
    with Discovery(f"{base}/*/*.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(socket_file)]
        await nothing_more(discovery, base / "real")
    with Discovery(f"{base}/link/b.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(base / "link" / "b.qmp")]


async def test_two_ways_to_one_directory(base: Path) -> None:
    (base / "shared").mkdir()
    for name in ("vm1", "vm2"):
        (base / "vms" / name).mkdir(parents=True)
        (base / "vms" / name / "run").symlink_to(base / "shared")
    with Discovery(f"{base}/vms/*/run/*.qmp") as discovery:
        bind(base / "shared" / "a.qmp")
        both = {base / "vms" / name / "run" / "a.qmp" for name in ("vm1", "vm2")}
        assert set(await take(discovery, 2)) == set(map(Appeared, both))
        (base / "vms" / "vm1" / "run").unlink()
        gone = base / "vms" / "vm1" / "run" / "a.qmp"
        assert await take(discovery, 1) == [Vanished(gone)]
        (base / "shared" / "a.qmp").unlink()
        assert await take(discovery, 1) == [Vanished(base / "vms" / "vm2" / "run" / "a.qmp")]


async def test_a_directory_that_leads_to_itself(base: Path) -> None:
    (base / "self").symlink_to(".")
    bind(base / "a.qmp")
    path = base / "self" / "self" / "a.qmp"
    with Discovery(f"{base}/self/self/*.qmp") as discovery:
        assert await take(discovery, 1) == [Appeared(path)]
        (base / "self").unlink()
        (base / "self").symlink_to(".")
        assert await take(discovery, 2) == [Vanished(path), Appeared(path)]
        (base / "a.qmp").unlink()
        assert await take(discovery, 1) == [Vanished(path)]


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


async def test_waiting_can_be_cancelled(base: Path) -> None:
    with Discovery(f"{base}/*.qmp") as discovery, trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, discovery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        bind(base / "a.qmp")
        assert await take(discovery, 1) == [Appeared(base / "a.qmp")]


def test_leaves_no_file_descriptor_behind(base: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with Discovery(f"{base}/*.qmp"):
        pass
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@contextlib.contextmanager
def nobody(base: Path) -> Iterator[None]:
    os.chown(base, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@needs_root
@pytest.mark.parametrize("name", ["vm", "*"])
async def test_an_unreadable_directory_is_told_and_looked_at_again(base: Path, name: str) -> None:
    with nobody(base):
        directory = base / "vm"
        directory.mkdir()
        path = bind(directory / "a.qmp")
        directory.chmod(0)
        with Discovery(f"{base}/{name}/*.qmp") as discovery:
            assert await take(discovery, 1) == [Unreadable(directory, "Permission denied")]
            directory.chmod(0o100)  # still: and not told again
            directory.chmod(0o700)
            assert await take(discovery, 1) == [Appeared(path)]
            await nothing_more(discovery, directory)
            directory.chmod(0o300)
            assert await take(discovery, 1) == [Unreadable(directory, "Permission denied")]
            path.unlink()  # what was watched still is
            assert await take(discovery, 1) == [Vanished(path)]
            directory.chmod(0o700)
            await nothing_more(discovery, directory)


@needs_root
async def test_a_directory_that_may_be_read_and_not_entered(base: Path) -> None:
    with nobody(base):
        directory = base / "vm"
        directory.mkdir()
        path = bind(directory / "a.qmp")
        directory.chmod(0o600)
        with Discovery(f"{directory}/*.qmp") as discovery:
            assert await take(discovery, 1) == [Unreadable(directory, "Permission denied")]
            directory.chmod(0o700)
            assert await take(discovery, 1) == [Appeared(path)]


@needs_root
async def test_a_directory_above_need_not_be_readable(base: Path) -> None:
    with nobody(base):
        above = base / "home"
        directory = above / "qemu"
        directory.mkdir(parents=True)
        above.chmod(0o300)
        with Discovery(f"{directory}/*.qmp") as discovery:
            await nothing_more(discovery, directory)
            directory.rmdir()  # now nothing would tell when it is made again
            assert await take(discovery, 1) == [Unreadable(above, "Permission denied")]
            above.chmod(0o700)
            directory.mkdir()
            await nothing_more(discovery, directory)


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


# Whatever is done to a tree, what was told adds up to what is there. Paths are relative to a base
# that has two levels of directories, a and b in each, and sockets x and y in them.
DIRECTORIES = ["a", "b", "a/a", "a/b", "b/a", "b/b"]
SOCKETS = [f"{directory}/{name}" for directory in DIRECTORIES[2:] for name in "xy"]
STEPS = st.one_of(
    st.tuples(st.just("mkdir"), st.sampled_from(DIRECTORIES)),
    st.tuples(st.just("remove"), st.sampled_from(DIRECTORIES + SOCKETS)),
    st.tuples(st.just("bind"), st.sampled_from(SOCKETS)),
    st.tuples(
        st.just("rename"),
        st.one_of(
            st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(DIRECTORIES)),
            st.tuples(st.sampled_from(SOCKETS), st.sampled_from(SOCKETS)),
        ),
    ),
    st.tuples(st.just("look"), st.none()),
)


def do(base: Path, kind: str, what: object) -> None:
    """Take one step, or none where it can't be taken."""
    with contextlib.suppress(OSError):
        match kind, what:
            case "mkdir", str(path):
                (base / path).mkdir(parents=True)
            case "bind", str(path):
                bind(base / path)
            case "remove", str(path) if (base / path).is_dir():
                shutil.rmtree(base / path)
            case "remove", str(path):
                (base / path).unlink()
            case "rename", (str(path), str(target)):
                (base / path).rename(base / target)
            case _:
                pass


def sockets(tree: Path, pattern: str) -> set[Path]:
    return {path for path in tree.glob(pattern) if stat.S_ISSOCK(path.lstat().st_mode)}


@settings(deadline=None)
@given(
    pattern=st.sampled_from(["*/*/*", "*/b/*", "a/*/x", "a/b/x"]),
    before=st.lists(STEPS, max_size=10),
    after=st.lists(STEPS, max_size=20),
)
def test_what_is_told_adds_up_to_what_is_there(
    pattern: str, before: list[tuple[str, object]], after: list[tuple[str, object]]
) -> None:
    async def scenario(base: Path, tree: Path) -> None:
        told: set[Path] = set()

        def keep(change: Change) -> None:
            match change:
                case Appeared(path):
                    assert path not in told
                    told.add(path)
                case Vanished(path):
                    told.remove(path)
                case Unreadable():
                    raise AssertionError(change)

        for kind, what in before:
            do(tree, kind, what)
        with Discovery(f"{base}/[tm]*/{pattern}") as discovery:
            for kind, what in after:
                do(tree, kind, what)
                if kind == "look":
                    discovery._read()
            # Events come in their order: when the mark is told, everything before it was.
            mark = base / "mark" / "/".join("a" if c == "*" else c for c in pattern.split("/"))
            mark.parent.mkdir(parents=True)
            bind(mark)
            while mark not in told:
                keep(*await take(discovery, 1))
            while discovery._changes:
                keep(*await take(discovery, 1))
        assert told - {mark} == sockets(tree, pattern)

    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        base = Path(name)
        (base / "tree").mkdir()
        trio.run(scenario, base, base / "tree")
