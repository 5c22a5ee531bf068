import os
from pathlib import Path

import trio
import trio.testing

from panicd.fleet.discovery import UNPRINTABLE, Appeared, Change, Discovery, PassedOver, Vanished
from tests.fleet.discovery.sockets import LIMIT, bind, nothing_more, take, told
from tests.parts.patience import fail_after


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
        odd = [bind(base / f"a{odd}.qmp") for odd in ("\n", "\x1b[31m", "\udcff")]
        (base / "file\n.qmp").touch()
        assert await told(discovery, base) == [PassedOver(path, UNPRINTABLE) for path in odd]
        odd[0].unlink()
        assert await take(discovery, 1) == [Vanished(odd[0])]
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


async def test_waiting_can_be_cancelled(base: Path) -> None:
    with Discovery(f"{base}/*.qmp") as discovery, fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, discovery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        bind(base / "a.qmp")
        assert await take(discovery, 1) == [Appeared(base / "a.qmp")]
