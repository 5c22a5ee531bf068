"""One archive of all that is known of an incident."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from panicd.cli import export, render_incident
from panicd.cli.export import ExportError, write_archive

ID = "20261123T040000-0a1b2c3d"


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An incident whose guest and whose domain are up to no good."""
    bundle, dumps = tmp_path / "incidents" / ID, tmp_path / "coredumps"
    bundle.mkdir(parents=True)
    dumps.mkdir()
    (bundle / "kernel.log").write_bytes(b"Oops\xff\n")
    (bundle / "console-0.log").write_bytes(b"\x1b[2J" * 1000)
    (bundle / "elsewhere").symlink_to("/etc/passwd")
    os.mkfifo(bundle / "pipe")
    (dumps / f"{ID}.kdump").write_bytes(b"KDUMP   " * 100_000)
    return {
        "id": ID,
        "domain": "../../etc/\x1b]0;evil\x07",
        "uuid": "",
        "monitor": "/run/qemu/vm.qmp",
        "opened_at": 1000.0,
        "closed_at": None,
        "source": "event",
        "payload": {"summary": "none", "members": [], "missing": []},
        "panic_line": "Kernel panic - not syncing: \x1b[31m[red]\ud800",
        "signature": None,
        "same": None,
        "repeats": 0,
        "decisions": [],
        "state": "preserved",
        "ending": None,
        "acknowledged": None,
        "history": [{"at": 1000.0, "kind": "opened", "source": "event"}],
        "evidence_directory": str(bundle),
        "evidence": {"files": {"kernel.log": "the log"}, "problems": {}},
        "screenshot": None,
        "dump": None,
        "dumps": [str(dumps / f"{ID}.kdump")],
        "dump_facts": [],
    }


def archived(
    record: dict[str, Any], target: Path, *, dump: bool = True, force: bool = False
) -> None:
    write_archive(record, target, dump=dump, force=force, now=2000.0)


def test_archive_holds_record_timeline_bundle_and_dump(
    record: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "out.tar.gz"
    archived(record, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        assert sorted(archive.getnames()) == [
            f"panicd-{ID}/bundle/console-0.log",
            f"panicd-{ID}/bundle/kernel.log",
            f"panicd-{ID}/dump/{ID}.kdump",
            f"panicd-{ID}/record.json",
            f"panicd-{ID}/timeline.txt",
        ]
        assert all(entry.isreg() and entry.mode == 0o600 for entry in archive)
        assert {(entry.uid, entry.uname) for entry in archive} == {(0, "")}

        def content(name: str) -> bytes:
            file = archive.extractfile(f"panicd-{ID}/{name}")
            assert file is not None
            return file.read()

        assert json.loads(content("record.json"))["incident"] == ID
        assert content("bundle/kernel.log") == b"Oops\xff\n"
        assert content(f"dump/{ID}.kdump") == Path(record["dumps"][0]).read_bytes()
        timeline = content("timeline.txt").decode()
    assert timeline.splitlines()[0] == r"Kernel panic - not syncing: \x1b[31m[red]\ud800"
    assert "\x1b" not in timeline
    # And with what people have.
    listed = subprocess.run(["tar", "tzf", target], capture_output=True, text=True, check=True)
    assert f"panicd-{ID}/record.json" in listed.stdout.splitlines()


def test_dump_that_is_compressed_already_is_stored(record: dict[str, Any], tmp_path: Path) -> None:
    sizes = {}
    for suffix in (".kdump", ".elf"):
        dump = Path(record["dumps"][0]).with_suffix(suffix)
        dump.write_bytes(bytes(1_000_000))
        archived(record | {"dumps": [str(dump)]}, tmp_path / suffix)
        sizes[suffix] = (tmp_path / suffix).stat().st_size
        with tarfile.open(tmp_path / suffix) as archive:
            packed = archive.extractfile(f"panicd-{ID}/dump/{ID}{suffix}")
            assert packed is not None
            assert packed.read() == bytes(1_000_000)
    assert sizes[".elf"] < 50_000
    assert sizes[".kdump"] > 1_000_000


def test_what_is_too_long_for_evidence_is_left_out_and_said(
    record: dict[str, Any], tmp_path: Path
) -> None:
    screen = Path(record["evidence_directory"]) / "screen.png"
    with screen.open("wb") as file:
        file.truncate(1 << 40)  # what a QEMU could do that was handed the file itself
    (told,) = (
        what
        for what in write_archive(
            record, tmp_path / "out.tar.gz", dump=True, force=False, now=2000.0
        )
        if "no file" not in what
    )
    assert told == f"{screen}: {1 << 40} bytes are more than any evidence has"
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        assert f"panicd-{ID}/bundle/kernel.log" in archive.getnames()
        assert not any("screen.png" in name for name in archive.getnames())


def test_dump_can_be_left_out(record: dict[str, Any], tmp_path: Path) -> None:
    archived(record, tmp_path / "out.tar.gz", dump=False)
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        assert not any("/dump/" in name for name in archive.getnames())


def test_nothing_is_overwritten_unasked(record: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "out.tar.gz"
    target.write_text("precious")
    with pytest.raises(ExportError, match="is there already"):
        archived(record, target)
    assert target.read_text() == "precious"
    archived(record, target, force=True)
    assert tarfile.is_tarfile(target)


def test_target_that_appears_meanwhile_is_left_alone(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.tar.gz"
    page = render_incident.page

    def written_meanwhile(*arguments: Any) -> Any:
        target.write_text("precious")
        return page(*arguments)

    monkeypatch.setattr(export, "page", written_meanwhile)
    with pytest.raises(ExportError, match="is there already"):
        archived(record, target)
    assert target.read_text() == "precious"
    assert list(tmp_path.glob(".*")) == []


def test_what_fails_leaves_nothing_behind(record: dict[str, Any], tmp_path: Path) -> None:
    Path(record["dumps"][0]).unlink()
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ExportError, match=r"kdump: No such file"):
        archived(record, place / "out.tar.gz")
    assert list(place.iterdir()) == []


def test_dump_that_can_t_be_filtered_is_said_to_be_so(
    record: dict[str, Any], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ExportError, match=r"can't be filtered: only ELF cores"):
        write_archive(record, place / "out.tar.gz", dump=True, force=False, now=2000.0, level=31)
    assert list(place.iterdir()) == []


def test_unwritable_target_is_named(record: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=r"nowhere"):
        archived(record, Path("/nowhere/out.tar.gz"))


def test_incident_without_evidence_is_exported(record: dict[str, Any], tmp_path: Path) -> None:
    record |= {"evidence": None, "evidence_directory": str(tmp_path / "none"), "dumps": []}
    archived(record, tmp_path / "out.tar.gz")
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        assert len(archive.getnames()) == 2
