"""The QEMUs of this host."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from panicd.qemu import process_list
from panicd.qemu.process_list import RunningQemu, running_qemus
from tests.parts.qemu import RealQemu


async def found(pid: int, *but: int) -> list[RunningQemu]:
    return [each for each in await running_qemus(but) if each.pid == pid]


@pytest.mark.real
async def test_a_qemu_is_found_but_for_those_that_are_known(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RealQemu.start(socket_dir, name="web") as vm:
        (qemu,) = await found(vm.pid)
        assert (qemu.name, qemu.by_libvirt, qemu.hangs) == ("web", False, False)
        assert qemu.monitor is not None
        assert qemu.monitor.path == str(vm.socket)
        assert await found(vm.pid, vm.pid) == []

        def unseen(pid: int) -> str:
            raise PermissionError(pid)

        monkeypatch.setattr(process_list, "executed_by", unseen)
        assert await found(vm.pid) == [qemu], "its arguments tell"


async def test_no_descriptor_for_them_is_no_group_of_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request for an audit fails of one; a group ended panicd."""

    def none_left(_path: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "listdir", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        await running_qemus([])
