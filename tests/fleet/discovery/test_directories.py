import os
import shutil
from pathlib import Path

from panicd.fleet.discovery import LINK, Appeared, Discovery, PassedOver, Vanished
from tests.fleet.discovery.sockets import bind, nothing_more, take, told


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
        assert await told(discovery, base / "real") == [
            PassedOver(base / "link", LINK),
            Appeared(socket_file),
            PassedOver(base / "real" / "b.qmp", LINK),
        ]
        (base / "link").unlink()
        assert await take(discovery, 1) == [Vanished(base / "link")]
        (base / "real" / "b.qmp").unlink()
        second = bind(base / "real" / "b.qmp")
        assert await take(discovery, 2) == [Vanished(second), Appeared(second)]
        (base / "link").symlink_to("real")
        second.unlink()
        second.symlink_to("a.qmp")
        await take(discovery, 3)
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
