from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import yaml

from panicd.rules.capability import Capability
from panicd.rules.command_line import GivenMonitor
from panicd.rules.exposure import Exposure, exposures, exposures_unwatched
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.policy import Situation, decide
from panicd.rules.settings import Budget, Evidence, Policy, Relaunch
from tests.rules.strategies import COREDUMP, IRREVERSIBLE, MODERN, NOW

POLICY = Policy(COREDUMP, OnCrash.RESTART)
BUILTIN = Capability((1, 5, 3), PanicDevice.BUILTIN, ("pvpanic",))
UNARMED = Capability((2, 8, 0), PanicDevice.REQUESTED, ("pvpanic",), no_shutdown=False)
UNKNOWN = replace(UNARMED, no_shutdown=None)
SILENT_PC = replace(MODERN, panic_device=PanicDevice.NONE, machine="pc-q35-7.2-machine")
SILENT_ARM = replace(SILENT_PC, machine="virt-7.2-machine")


DOMAIN = LibvirtDomain(1, "web 1", "", "preserve", has_vmcoreinfo=True)
BY_API = Capability(
    (0, 0, 0), PanicDevice.REQUESTED, ("isa",), no_shutdown=True, by_api=True, libvirt=DOMAIN
)


def found(policy: Policy, capability: Capability, **how: Any) -> list[str]:
    decision = decide(policy, capability, Situation(capability.panic_leaves), now=NOW)
    return [*exposures(policy, capability, decision, **how)]


@pytest.mark.parametrize(
    ("policy", "capability", "expected"),
    [
        (POLICY, MODERN, []),
        (POLICY, replace(MODERN, panic_device=PanicDevice.NONE), ["no-device"]),
        (POLICY, replace(MODERN, panic_device=PanicDevice.PLATFORM), []),
        (POLICY, BUILTIN, ["firmware", "builtin-device"]),
        (POLICY, replace(BUILTIN, version=(1, 6, 2)), ["builtin-device"]),
        (POLICY, replace(BUILTIN, panic_device=PanicDevice.REQUESTED), ["firmware"]),
        (POLICY, replace(BUILTIN, panic_device=PanicDevice.REQUESTED, backport=True), []),
        (POLICY, replace(BUILTIN, panic_device=PanicDevice.NEUTRALISED), []),
        (POLICY, UNARMED, ["not-armed"]),
        (POLICY, UNKNOWN, ["not-armed"]),
        (POLICY, replace(MODERN, reboot_is_shutdown=True), ["reset-impossible"]),
        (replace(POLICY, on_crash=OnCrash.DESTROY), replace(MODERN, reboot_is_shutdown=True), []),
        (replace(POLICY, on_crash=OnCrash.IGNORE), IRREVERSIBLE, ["irreversible"]),
        (replace(POLICY, on_crash=OnCrash.IGNORE), MODERN, []),
        (replace(POLICY, restart=Budget(max=0)), MODERN, ["budget-spent"]),
        (POLICY, replace(MODERN, libvirt=LibvirtDomain(1, "vm", "", "destroy")), ["libvirt"]),
        (POLICY, replace(MODERN, libvirt=LibvirtDomain(1, "vm", "", "preserve")), []),
        (
            POLICY,
            replace(UNARMED, panic_device=PanicDevice.NONE),
            ["no-device", "not-armed"],
        ),
    ],
)
def test_why_a_domain_could_not_be_acted_on(
    policy: Policy, capability: Capability, expected: list[str]
) -> None:
    assert found(policy, capability) == expected


@pytest.mark.parametrize(
    ("changed", "reason", "command"),
    [
        (
            {"panic_device": PanicDevice.NONE},
            Exposure.NO_DEVICE,
            "virt-xml 'web 1' --add-device --panic default",
        ),
        (
            {"libvirt": replace(DOMAIN, has_vmcoreinfo=False)},
            Exposure.NO_VMCOREINFO,
            "virt-xml 'web 1' --edit --features vmcoreinfo.state=on",
        ),
        (
            {"reboot_is_shutdown": True},
            Exposure.RESET_IMPOSSIBLE,
            "virt-xml 'web 1' --edit --events on_reboot=restart",
        ),
        (
            {"libvirt": replace(DOMAIN, handling="destroy")},
            Exposure.LIBVIRT,
            "virsh set-lifecycle-action 'web 1' crash preserve",
        ),
    ],
)
def test_the_command_that_a_domain_of_libvirt_s_takes(
    changed: dict[str, Any], reason: Exposure, command: str
) -> None:
    policy, capability = replace(POLICY, evidence=Evidence()), replace(BY_API, **changed)
    decision = decide(policy, capability, Situation(capability.panic_leaves), now=NOW)
    reasons = exposures(policy, capability, decision, name="web 1")
    assert [*reasons] == [reason]
    assert f"`{command}`" in reasons[reason]


def test_a_domain_of_libvirt_s_that_has_all_it_takes() -> None:
    assert found(replace(POLICY, evidence=Evidence()), BY_API) == []


@pytest.mark.parametrize(
    ("policy", "capability", "ends"),
    [
        (replace(POLICY, on_crash=OnCrash.DESTROY), MODERN, True),
        (replace(POLICY, fallback=Action.DESTROY), MODERN, True),
        (
            replace(POLICY, relaunch=Relaunch(("/bin/x",))),
            replace(MODERN, reboot_is_shutdown=True),
            True,
        ),
        (POLICY, MODERN, False),
        (replace(POLICY, on_crash=OnCrash.PRESERVE), MODERN, False),
    ],
)
def test_signals_matter_where_qemu_is_to_be_ended(
    policy: Policy, capability: Capability, ends: bool
) -> None:
    assert found(policy, capability) == []
    assert found(policy, capability, may_signal=False) == (["no-signal"] if ends else [])


@pytest.mark.parametrize(
    ("on_crash", "expected"),
    [(OnCrash.COREDUMP_RESTART, ["no-dump-space"]), (OnCrash.RESTART, [])],
)
def test_room_for_a_dump_matters_to_who_wants_one(on_crash: OnCrash, expected: list[str]) -> None:
    assert found(replace(POLICY, on_crash=on_crash), MODERN, dump_space=False) == expected


def test_held_domain_and_one_without_a_monitor() -> None:
    assert found(POLICY, MODERN, held=True) == ["held"]
    assert list(exposures(None, None, None, held=True)) == [Exposure.NO_MONITOR, Exposure.HELD]


IGNORES = replace(POLICY, on_crash=OnCrash.IGNORE)
UNREQUESTED = replace(POLICY, unrequested=OnCrash.IGNORE)
BUILTIN_1_6 = replace(BUILTIN, version=(1, 6, 2))


@pytest.mark.parametrize(
    ("policy", "capability", "exposure", "said", "not_said"),
    [
        (POLICY, UNARMED, "not-armed", "add -no-shutdown", "command line"),
        (POLICY, UNKNOWN, "not-armed", "let panicd read QEMU's command line", "add -no-shutdown"),
        (POLICY, BUILTIN_1_6, "builtin-device", "--no-notifier", "ioport"),
        (IGNORES, IRREVERSIBLE, "irreversible", "another on_crash than ignore", "unrequested"),
        (UNREQUESTED, BUILTIN_1_6, "irreversible", "another unrequested than ignore", "on_crash"),
        (POLICY, BUILTIN, "firmware", "QEMU 1.6 or later", "-device"),
        (POLICY, SILENT_PC, "no-device", "add -device pvpanic (or pvpanic-pci)", "pvpanic-pci:"),
        (POLICY, SILENT_ARM, "no-device", "add -device pvpanic-pci:", "pvpanic (or"),
    ],
)
def test_remedy_suits_what_is_known(
    policy: Policy, capability: Capability, exposure: str, said: str, not_said: str
) -> None:
    decision = decide(policy, capability, Situation(capability.panic_leaves), now=NOW)
    remedy = exposures(policy, capability, decision)[Exposure(exposure)]
    assert said in remedy
    assert not_said not in remedy


@pytest.mark.parametrize(
    ("name", "monitor", "by_libvirt", "said"),
    [
        ("web-1", GivenMonitor("/run/q", True), False, "add `- glob: /run/q` to `monitors`"),
        ("web-1", GivenMonitor("/run/q", False), False, "add `- listen: /run/q` to `monitors`"),
        ("web 1", None, False, "`panicd qemu-args --name 'web 1'`"),
        ("", None, False, "`panicd qemu-args --name NAME`"),
        ("web-1", None, True, "set `libvirt: {uri: …}`"),
    ],
)
def test_remedy_for_a_qemu_that_is_no_domain(
    name: str, monitor: GivenMonitor | None, by_libvirt: bool, said: str
) -> None:
    ((exposure, remedy),) = exposures_unwatched(name, monitor, by_libvirt=by_libvirt).items()
    assert exposure is Exposure.NO_MONITOR
    assert said in remedy


@pytest.mark.parametrize(
    "path",
    [
        "/run/vm.qmp",
        "/run/[1]/*/vm.qmp",
        "/run/vm: {a}, b #c",
        "/run/a\n- glob: '*'",
        '/run/"\\x/µ.qmp',
        "/run/ vm ",
    ],
)
def test_the_entry_for_a_monitor_names_it_alone(path: str) -> None:
    for listens in (True, False):
        monitor = GivenMonitor(path, listens)
        remedy = exposures_unwatched("", monitor, by_libvirt=False)[Exposure.NO_MONITOR]
        entry = remedy.removeprefix("add `").removesuffix(
            "` to `monitors` in the configuration, and `panicd reload`"
        )
        (given,) = yaml.safe_load(entry)
        if listens:
            assert fnmatchcase(path, given["glob"])
            assert not fnmatchcase("/run/1/vm/vm.qmp", given["glob"])
        else:
            assert given == {"listen": path}
