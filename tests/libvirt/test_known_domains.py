"""libvirt as panicd keeps it in memory, with a virsh that does what a test wants."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import trio

from panicd.libvirt import known_domains as module
from panicd.libvirt.known_domains import Libvirt, LibvirtAwayError
from panicd.libvirt.virsh import LibvirtRefusedError, LibvirtSilentError
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.on_crash import OnCrash
from panicd.rules.settings import LibvirtSettings
from tests.parts.patience import fail_after

UUID = "6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11"
MONITOR = "/run/qemu/vm.qmp"
DOMAIN = LibvirtDomain(7, "vm", UUID, "preserve", "restart", (MONITOR,))


def xml(on_crash: str, *, uuid: str = UUID, metadata: str = "", number: str = "id='7'") -> str:
    return f"""<domain type='kvm' {number}>
  <name>vm</name>
  <uuid>{uuid}</uuid>
  <metadata>{metadata}</metadata>
  <on_crash>{on_crash}</on_crash>
  <devices><panic model='isa'/></devices>
  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='socket,id=panicd,path={MONITOR},server=on,wait=off'/>
    <qemu:arg value='-mon'/>
    <qemu:arg value='chardev=panicd,mode=control'/>
  </qemu:commandline>
</domain>
"""


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Virsh:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(module, "ALIVE_WITHIN", 10.0)
    monkeypatch.setattr(module, "KNOWN_WITHIN", 10.0)
    return Virsh(tmp_path)


class Virsh:
    """A virsh: for each command, what it does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.does(dumpxml="true", domstate="echo crashed")

    def does(self, **commands: str) -> None:
        """Say, in shell, what commands do; ``_`` in a name stands for a dash."""
        for name, script in commands.items():
            (self._directory / f"does-{name.replace('_', '-')}").write_text(script)
        program = textwrap.dedent(f"""\
            #!/bin/sh
            shift 3  # --quiet --connect URI
            echo "$*" >>{self._directory}/told
            does={self._directory}/does-${{1%% *}}
            if [ -e "$does" ]; then . "$does"; fi
            """)
        (self._directory / "virsh").write_text(program)
        (self._directory / "virsh").chmod(0o755)

    def shows(self, text: str) -> None:
        """Have ``dumpxml`` print this."""
        (self._directory / "xml").write_text(text)
        self.does(dumpxml=f"cat {self._directory}/xml")

    @property
    def told(self) -> list[str]:
        """Every command so far."""
        path = self._directory / "told"
        return path.read_text().splitlines() if path.exists() else []


def libvirt(*, take_over: bool = True, dry_run: bool = False) -> Libvirt:
    settings = LibvirtSettings("test:///default", take_over=take_over)
    return Libvirt(lambda: settings, dry_run=dry_run)


async def test_a_domain_is_taken_over(virsh: Virsh) -> None:
    known = libvirt()
    virsh.shows(xml("restart"))
    await known.learn(UUID, MONITOR, "")

    domain = known.known(MONITOR)
    assert domain is not None
    assert (domain.acts, domain.on_crash) == (False, OnCrash.RESTART)
    assert [told.split()[0] for told in virsh.told[1:]] == ["metadata", "set-lifecycle-action"]
    assert virsh.told[1].endswith('--set <policy on_crash="restart"/>')
    assert virsh.told[2] == "set-lifecycle-action 7 crash preserve --live"


async def test_what_can_t_be_kept_is_not_taken_over(virsh: Virsh) -> None:
    known = libvirt()
    virsh.shows(xml("destroy"))
    virsh.does(metadata="exit 1")
    await known.learn(UUID, MONITOR, "")

    domain = known.known(MONITOR)
    assert domain is not None
    assert domain.acts
    assert "set-lifecycle-action" not in " ".join(virsh.told)


@pytest.mark.parametrize("options", [{"take_over": False}, {"dry_run": True}])
async def test_libvirt_is_left_as_it_is(virsh: Virsh, options: dict[str, bool]) -> None:
    known = libvirt(**options)
    virsh.shows(xml("destroy"))
    await known.learn(UUID, MONITOR, "")

    domain = known.known(MONITOR)
    assert domain is not None
    assert domain.acts
    assert virsh.told == [f"dumpxml {UUID}; uri"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no XML at all",
        "<domain id='7'>" + "<a>" * 50,
        xml("destroy", uuid="11111111-8d0e-4d5c-9b52-0a6f1f0d7a11"),
        xml("destroy", number=""),
        xml("destroy").replace(MONITOR, "/run/qemu/other.qmp"),
    ],
)
async def test_what_is_not_this_domain_s_is_not_believed(virsh: Virsh, answer: str) -> None:
    known = libvirt()
    virsh.shows(answer)
    await known.learn(UUID, MONITOR, "")

    assert known.known(MONITOR) is None
    assert not known.problem
    assert virsh.told == [f"dumpxml {UUID}; uri"]


async def test_a_uuid_is_never_a_command(virsh: Virsh) -> None:
    known = libvirt()
    await known.learn(f"{UUID}; destroy other", MONITOR, "")
    assert virsh.told == []


async def test_silence_is_waited_for_once(virsh: Virsh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN_WITHIN", 0.2)
    known = libvirt()
    virsh.does(dumpxml="exec sleep 60")
    await known.learn(UUID, MONITOR, "")
    assert "did not answer" in known.problem

    told = len(virsh.told)
    await known.learn(UUID, MONITOR, "")
    with pytest.raises(LibvirtAwayError):
        await known.act(DOMAIN, "reset")
    assert len(virsh.told) == told


async def test_what_was_missed_is_asked_for_again(
    virsh: Virsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_EVERY", 0.01)
    known, changed = libvirt(), trio.Event()
    known.on_change = changed.set
    virsh.does(dumpxml="exit 1")
    await known.learn(UUID, MONITOR, "")
    assert known.problem

    virsh.shows(xml("destroy"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.run)
        with fail_after(20):
            await changed.wait()
        nursery.cancel_scope.cancel()
    assert not known.problem
    assert known.known(MONITOR) is not None


async def test_a_problem_ends_though_there_is_no_domain_any_more(virsh: Virsh) -> None:
    known = libvirt()
    virsh.does(dumpxml="exit 1", uri="exit 1")
    await known.learn(UUID, MONITOR, "")
    known.forget(MONITOR)
    await known._refresh()
    assert known.problem
    virsh.does(uri="true")
    await known._refresh()
    assert not known.problem


async def test_a_domain_that_is_forgotten_is_asked_about_no_more(virsh: Virsh) -> None:
    known = libvirt()
    virsh.shows(xml("preserve"))
    await known.learn(UUID, MONITOR, "")
    known.forget(MONITOR)
    assert known.known(MONITOR) is not None, "its relaunch may still depend on it"
    await known._refresh()
    assert known.known(MONITOR) is None


async def test_libvirt_acts_once_it_has_seen_the_panic(virsh: Virsh, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    virsh.does(domstate=f"[ -e {seen} ] && echo crashed || echo running; touch {seen}")
    await libvirt().act(DOMAIN, "reset")
    assert virsh.told == ["domstate 7", "domstate 7", "reset 7"]


async def test_libvirt_that_is_silent_before_is_told_nothing(
    virsh: Virsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALIVE_WITHIN", 0.2)
    virsh.does(domstate="exec sleep 60")
    known = libvirt()
    with pytest.raises(LibvirtAwayError):
        await known.act(DOMAIN, "reset")
    with pytest.raises(LibvirtAwayError):
        await known.act(DOMAIN, "resume")
    assert virsh.told == ["domstate 7"], "and is not asked a second time"


async def test_libvirt_that_is_silent_after_may_have_done_it(virsh: Virsh) -> None:
    virsh.does(reset="exec sleep 60")
    with pytest.raises(LibvirtSilentError):
        await libvirt().act(DOMAIN, "reset", timeout=0.2)


async def test_libvirt_that_says_no(virsh: Virsh) -> None:
    virsh.does(reset="echo 'error: Timed out: cannot acquire state change lock' >&2; exit 1")
    with pytest.raises(LibvirtRefusedError, match="state change lock"):
        await libvirt().act(DOMAIN, "reset")


async def test_a_dump_that_is_given_up_is_ended_in_libvirt_too(virsh: Virsh) -> None:
    virsh.does(dump="exec sleep 60")
    with pytest.raises(LibvirtSilentError):
        await libvirt().dump(DOMAIN, Path("/dump"), "elf", 0.2)
    dump = "dump 7 /dump --memory-only --format elf"
    assert virsh.told == ["domstate 7", dump, "domjobabort 7"]


async def test_a_dump_waits_until_libvirt_has_seen_the_panic(virsh: Virsh, tmp_path: Path) -> None:
    """It would resume a guest afterwards that ran before, as far as it knew."""
    seen = tmp_path / "seen"
    virsh.does(domstate=f"[ -e {seen} ] && echo crashed || echo running; touch {seen}")
    await libvirt().dump(DOMAIN, Path("/dump"), "elf", 20.0)
    assert virsh.told == ["domstate 7", "domstate 7", "dump 7 /dump --memory-only --format elf"]


async def test_a_guest_that_libvirt_takes_for_running_is_not_dumped(
    virsh: Virsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALIVE_WITHIN", 0.5)
    virsh.does(domstate="echo running")
    with pytest.raises(LibvirtAwayError, match="has not seen that the guest is stopped"):
        await libvirt().dump(DOMAIN, Path("/dump"), "elf", 20.0)
    assert set(virsh.told) == {"domstate 7"}


async def test_no_virsh_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    known = libvirt()
    await known.learn(UUID, MONITOR, "")
    assert "virsh can't be run" in known.problem


ANOTHER = "0123/7/8"


async def test_the_next_qemu_at_a_path_is_not_the_one_before(
    virsh: Virsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it says, and whether libvirt can be asked or not."""
    known = libvirt()
    virsh.shows(xml("preserve"))
    await known.learn(UUID, MONITOR, "")
    known.forget(MONITOR)
    assert known.known(MONITOR) is not None
    monkeypatch.setattr(known, "problem", "no answer")
    await known.learn(UUID, MONITOR, ANOTHER)
    assert known.known(MONITOR) is None

    monkeypatch.setattr(known, "problem", "")
    await known.learn(UUID, MONITOR, "")
    assert known.known(MONITOR) is not None
    await known.learn("", MONITOR, "")
    assert known.known(MONITOR) is None


@pytest.mark.parametrize(("pid", "believed"), [("7", True), ("8", False), ("x", True)])
async def test_the_process_is_the_one_that_libvirt_started(
    virsh: Virsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: str, believed: bool
) -> None:
    monkeypatch.setattr(module, "pid_file", lambda *_: tmp_path / "vm.pid")
    (tmp_path / "vm.pid").write_text(pid)
    known = libvirt()
    virsh.shows(xml("preserve"))
    await known.learn(UUID, MONITOR, ANOTHER)
    assert (known.known(MONITOR) is not None) is believed


async def test_two_that_claim_one_domain_are_told_apart_by_the_monitor(virsh: Virsh) -> None:
    known = libvirt()
    virsh.shows(xml("preserve"))
    await known.learn(UUID, "/run/qemu/liar.qmp", "")
    await known.learn(UUID, MONITOR, "")
    assert known.known("/run/qemu/liar.qmp") is None
    assert known.known(MONITOR) is not None
    known.forget("/run/qemu/liar.qmp")
    assert known.known(MONITOR) is not None, "that the other has left changes nothing"
