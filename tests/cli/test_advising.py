"""`panicd advise`, with a real libvirtd and osinfo-db where they are installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.host.osinfo import PROGRAM
from tests.parts.commands import BAD_USAGE, DONE, FAILED, panicd
from tests.parts.libvirt import Libvirtd
from tests.parts.patience import fail_after

TIME_LIMIT = 60.0

OSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"

known_to_osinfo = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason="libosinfo-bin is not installed"
)


def advise(directory: Path, *arguments: str, status: int = DONE) -> Any:
    config = directory / "no-such.yaml"
    result = panicd("--config", config, "advise", *arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.output)["guests"] if status == DONE else result.output


def test_system_that_an_operator_names_needs_neither_libvirt_nor_configuration(
    tmp_path: Path,
) -> None:
    (advice,) = advise(tmp_path, "--os", "linux", "--kernel", "5.10")
    assert advice["device"] == "pvpanic"
    assert [row["verdict"] for row in advice["support"]] == ["yes", "no"]
    assert advice["system"]["known_by"] == "the operator"
    said = panicd("advise", "--os", "windows").output
    assert "hv-crash" in said
    assert "virtio-win" in said


def test_kernel_that_is_no_version_is_refused(tmp_path: Path) -> None:
    said = advise(tmp_path, "--os", "linux", "--kernel", "new", status=BAD_USAGE)
    assert "--kernel" in said
    assert "such as 5.10" in said


def test_libvirt_that_does_not_answer_is_said_to(tmp_path: Path) -> None:
    uri = f"qemu:///system?socket={tmp_path}/nobody"
    assert "no libvirtd answers" in advise(tmp_path, "vm", "--libvirt", uri, status=FAILED)


@known_to_osinfo
def test_short_id_is_looked_up_in_osinfo_db(tmp_path: Path) -> None:
    (advice,) = advise(tmp_path, "--os", "debian11")
    assert advice["system"]["id"] == "http://debian.org/debian/11"
    assert advice["system"]["released"] == "2021-08-14"
    (advice,) = advise(tmp_path, "--os", "win7")
    assert (advice["device"], advice["system"]["family"]) == ("pvpanic", "winnt")


@pytest.mark.real
async def test_domain_s_metadata_tells_what_it_runs(socket_dir: Path, libvirtd: Libvirtd) -> None:
    element = '<libosinfo><os id="http://debian.org/debian/11"/></libosinfo>'

    def ask(*arguments: str) -> Any:
        return advise(socket_dir, *arguments, "--libvirt", libvirtd.uri)

    with fail_after(TIME_LIMIT):
        async with libvirtd.domain(socket_dir, "destroy") as vm:
            (unknown,) = await trio.to_thread.run_sync(ask)
            assert (unknown["domain"], unknown["has"], unknown["device"]) == ("vm", ["isa"], "")
            assert "--os" in unknown["why"]
            (told,) = await trio.to_thread.run_sync(ask, "vm", "--os", "linux", "--kernel", "6.1")
            assert told["device"] == "pvpanic"

            metadata = ("metadata", vm.name, OSINFO, "--key", "libosinfo", "--set", element)
            await libvirtd.virsh(*metadata)
            (known,) = await trio.to_thread.run_sync(ask, "vm")
            assert known["system"]["id"] == "http://debian.org/debian/11"
            assert known["system"]["known_by"] == "libosinfo, in libvirt's XML"
            assert known["device"] == "pvpanic"
            assert await vm.status() == "running"
