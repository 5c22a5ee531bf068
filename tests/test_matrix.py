"""docs/matrix.md, each line of it observed: what every policy does on every QEMU.

Old releases are fakes that behave as the real ones were recorded (``tests/parts/profile.py``).
``$PANICD_TEST_QEMU`` says which real QEMU is run; a line of the table is compared where there is
one for its version. A real one of a release that was recorded has to be as it was recorded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from panicd.demo.guests import Guest
from panicd.fleet.connector import connect
from panicd.qemu.monitor import event_loop, open_monitor
from panicd.qemu.probe import probe
from panicd.rules.capability import SET_ACTION_SINCE, Capability
from panicd.rules.command_line import parse_command_line
from panicd.rules.on_crash import OnCrash
from panicd.rules.qemu_args import PVPANIC_PCI_SINCE
from tests.parts.daemon import DaemonInside, ObservedDaemon, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.machines import ARM, RISCV, S390, Machine
from tests.parts.patience import fail_after
from tests.parts.profile import BUILTIN, RECORDED, RHEL_7, Profile
from tests.parts.qemu import RealQemu, qemu_version
from tests.parts.qmp import QmpClient, QmpCommandError, connect_qmp

MATRIX = (Path(__file__).parents[1] / "docs/matrix.md").read_text(encoding="utf-8").splitlines()
TIME_LIMIT = 60.0
PAUSE = ("-action", "panic=pause")
PVPANIC = "`-device pvpanic`"


@dataclass(frozen=True)
class Case:
    """One QEMU with one notifier.

    Attributes:
        qemu: Its version.
        machine: The machine types that this holds for.
        notifier: Where its panic device comes from, and what else matters on its command line.
        profile: How the fake behaves; None: it is run for real.
        devices: A ``-device`` each.
        no_shutdown: ``-no-shutdown`` is on its command line.
        panic_notifier: The configuration's.
        guest: What runs on a real one: it panics at a key press, or as soon as it is started.
        other: A real one that is no PC; its guest is its own.
    """

    qemu: str
    machine: str
    notifier: str
    profile: Profile | None
    devices: Sequence[str] = ("pvpanic",)
    no_shutdown: bool = False
    panic_notifier: str = "required"
    guest: Guest = Guest.PANIC_ON_KEY
    other: Machine | None = None

    def __str__(self) -> str:
        return f"{self.qemu} {self.machine.split(',')[0]} {self.notifier}".replace("`", "")


def recorded() -> list[Case]:
    cases = []
    for version, profile in RECORDED.items():
        if version in BUILTIN:
            old = "pc-i440fx-1.5, pc-q35-1.5"
            builtin = replace(profile, builtin_pvpanic=True)
            cases += [
                Case(version, old, "built in", builtin, ()),
                Case(version, old, "built in, `any`", builtin, (), panic_notifier="any"),
                Case(version, "other pc types", PVPANIC, profile),
            ]
        elif version == "2.8.0":
            named = f"{PVPANIC} `-no-shutdown`"
            cases += [
                Case(version, "pc, q35", PVPANIC, profile),
                Case(version, "pc, q35", named, profile, no_shutdown=True),
            ]
        else:
            cases.append(Case(version, "pc, q35", PVPANIC, profile))
    return cases


BACKPORT = Case("RHEL 7's 1.5.3", "pc, q35", PVPANIC, RHEL_7)


REAL = [
    Case("real", "pc", PVPANIC, None),
    Case(
        "real",
        "pc",
        "`-device pvpanic-pci`",
        None,
        ("pvpanic-pci,addr=4",),
        guest=Guest.PANIC_BY_PCI,
    ),
    *(
        Case("real", machine, notifier, None, other.devices, guest=Guest.PANIC_ONCE, other=other)
        for machine, notifier, other in (
            ("virt (aarch64)", "`-device pvpanic-pci`", ARM),
            ("virt (riscv64)", "`-device pvpanic-pci`", RISCV),
            ("s390-ccw-virtio", "the machine's own", S390),
        )
    ),
]

# How an incident ends, or stays open: what became of the guest.
BECAME = {
    "destroyed": "destroyed",
    "restarted": "restarted",
    "preserved": "preserved",
    "running-on": "runs on",
    "qemu-exited": "QEMU is gone",
}


@asynccontextmanager
async def started(
    case: Case, directory: Path, name: str, *, stops: bool = False
) -> AsyncIterator[FakeQemu | RealQemu]:
    """Start one VM; ``stops``: a panic stops it, though panicd is not there to see to that."""
    if case.profile is None:
        by_pci = case.guest is Guest.PANIC_BY_PCI
        if by_pci and qemu_version() < PVPANIC_PCI_SINCE:
            pytest.skip("this QEMU has no pvpanic-pci")
        stopping = ("-no-shutdown",) if qemu_version() < SET_ACTION_SINCE else PAUSE
        extra = stopping if stops else ()
        async with RealQemu.start(
            directory,
            guest=case.guest,
            devices=case.devices,
            machine=case.other,
            name=name,
            paused=case.guest is not Guest.PANIC_ON_KEY,
            extra=extra,
        ) as vm:
            yield vm
    else:
        fake = FakeQemu(
            directory / f"{name}.qmp",
            profile=case.profile,
            name=name,
            devices=case.devices,
            shutdown_action="pause" if case.no_shutdown or stops else "poweroff",
        )
        async with fake.running():
            yield fake


async def panic(vm: FakeQemu | RealQemu) -> None:
    if isinstance(vm, RealQemu):
        asleep = await vm.status() == "prelaunch"
        await (vm.start_guest() if asleep else vm.press_key())
    else:
        vm.panic()


def version_of(vm: FakeQemu | RealQemu) -> str:
    if isinstance(vm, FakeQemu):
        return ".".join(map(str, vm.machine.profile.version))
    return vm.version if vm.version in RECORDED else ".".join(vm.version.split(".")[:2])


def _skip_where_missing(case: Case) -> None:
    if case.other is not None and shutil.which(case.other.qemu) is None:
        pytest.skip(f"no {case.other.qemu} here")


async def outcomes(case: Case, directory: Path) -> tuple[str, dict[OnCrash, str]]:
    """Have a VM for each policy panic, and return its version and what became of each."""
    rules: list[dict[str, Any]] = [{"match": str(x), "on_crash": str(x)} for x in OnCrash]
    defaults = {"panic_notifier": case.panic_notifier, "coredump": {"min_free": "1MiB"}}
    # A panic device is in the same process as the test where it is a fake's.
    daemon_class: type[DaemonInside | RunningDaemon] = (
        RunningDaemon if case.profile is None else DaemonInside
    )
    _skip_where_missing(case)
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(
            daemon_class.start(
                directory, defaults, domains=rules, storm="off", time_limit=TIME_LIMIT
            )
        )
        became = {}
        version = ""
        for on_crash in OnCrash:
            vm = await stack.enter_async_context(started(case, directory, on_crash))
            await daemon.wait_armed(on_crash)
            version = version_of(vm)
            await panic(vm)
            became[on_crash] = await what_became(daemon, directory, on_crash)
        return version, became


async def what_became(daemon: ObservedDaemon, directory: Path, on_crash: OnCrash) -> str:
    while True:
        mark = daemon.mark()
        for incident in daemon.incidents():
            if incident.domain == on_crash and (incident.ending or incident.state):
                _, reason = incident.decisions[-1]
                text = BECAME[incident.ending or incident.state]
                dumps = list((directory / "state/coredumps").glob(f"*/{on_crash}/*.*"))
                why = "" if reason in {"on-crash", "qemu-exited"} else f" ({reason})"
                return f"{'dump, ' if dumps else ''}{text}{why}"
        await daemon._wait_line(mark)


async def capability_of(case: Case, directory: Path) -> Capability:
    """Return what panicd takes a VM to be able to do, once it has armed it."""
    arguments = ["qemu", *(["-no-shutdown"] if case.no_shutdown else [])]
    async with started(case, directory, "vm") as vm, event_loop():
        sock = await connect(vm.socket)
        async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
            line = parse_command_line(arguments)
            return (await probe(monitor, line, timeout=TIME_LIMIT)).capability


async def resumes(case: Case, directory: Path) -> bool:
    """Tell whether ``cont`` resumes a panicked guest: the proof."""
    async with (
        started(case, directory, "proof", stops=True) as vm,
        connect_qmp(vm.socket) as client,
    ):
        await panic(vm)
        await until_panicked(client)
        try:
            await client.execute("cont")
        except QmpCommandError:
            return False
        return bool((await client.execute("query-status"))["status"] == "running")


async def state_after_reset(case: Case, directory: Path) -> str:
    async with (
        started(case, directory, "reset", stops=True) as vm,
        connect_qmp(vm.socket) as client,
    ):
        await panic(vm)
        await until_panicked(client)
        await client.execute("system_reset")
        return str((await client.execute("query-status"))["status"])


async def until_panicked(client: QmpClient) -> None:
    while (await client.execute("query-status"))["status"] != "guest-panicked":
        await client.wait_event("STOP")


def how_known(case: Case, version: str) -> tuple[str, str, str]:
    """Return for which machines something is known of a QEMU, which notifier it has, and how."""
    if case is BACKPORT:
        return case.machine, case.notifier, "by its patches"
    if case.profile is not None:
        return case.machine, case.notifier, "recorded"
    if version in RECORDED:  # a real one, to be compared with what was recorded
        machine = "other pc types" if version in BUILTIN else "pc, q35"
        return machine, case.notifier, "recorded"
    return case.machine, case.notifier, "**run**"


def outcome_line(case: Case, version: str, became: dict[OnCrash, str]) -> str:
    known = how_known(case, version)
    version = case.qemu if case is BACKPORT else version
    cells = [version, *known, *became.values()]
    return f"| {' | '.join(cells)} |"


def capability_line(case: Case, capability: Capability, *, proof: bool, reset: str) -> str:
    version = ".".join(map(str, capability.version))
    if case.profile is None and version not in RECORDED:
        version = version.rpartition(".")[0]
    cells = [
        case.qemu if case is BACKPORT else version,
        *how_known(case, version),
        f"{capability.panic_device}",
        "yes, by `set-action`" if capability.can_set_action else f"{capability.armed}",
        "resumes" if proof else "refused",
        reset,
        ", ".join(capability.dump_formats),
    ]
    return f"| {' | '.join(cells)} |"


def check(line: str) -> None:
    """Assert that the table has this line, or none of such a QEMU and machine."""
    cells = line.split(" | ")
    known = [row for row in MATRIX if row.split(" | ")[:2] == cells[:2]]
    if not known:
        pytest.skip(f"the table has no such QEMU: {line}")
    assert line in MATRIX


CASES = [
    *recorded(),
    BACKPORT,
    *(pytest.param(case, marks=pytest.mark.real) for case in REAL),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
async def test_what_every_policy_does(socket_dir: Path, case: Case) -> None:
    version, became = await outcomes(case, socket_dir)
    check(outcome_line(case, version, became))


@cases
async def test_what_is_known_of_it(socket_dir: Path, case: Case) -> None:
    _skip_where_missing(case)
    with fail_after(TIME_LIMIT):
        capability = await capability_of(case, socket_dir)
        proof = await resumes(case, socket_dir)
        assert capability.reversible == proof, "the hint is right"
        reset = await state_after_reset(case, socket_dir)
        line = capability_line(case, capability, proof=proof, reset=reset)
        check(line)


def test_the_tables_have_nothing_that_is_not_observed() -> None:
    told = [row for row in MATRIX if re.search(r"\| recorded \|", row)]
    assert len(told) == 2 * len(recorded())
    run = {row.split(" | ", 3)[0] for row in MATRIX if "| **run** |" in row}
    assert all(re.fullmatch(r"\| \d+\.\d+", version) for version in run)


def test_every_test_that_the_sources_name_is_there() -> None:
    tests = Path(__file__).parent
    files = ("e2e/test_sources.py", "incident/test_own_time.py")
    code = "".join((tests / file).read_text() for file in files)
    named = set(re.findall(r"`(test_\w+)`", "\n".join(MATRIX)))
    assert named
    assert all(f"async def {name}(" in code for name in named)
