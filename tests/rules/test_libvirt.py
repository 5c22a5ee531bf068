"""What libvirt's XML says about a panic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from panicd.rules.capability import Capability, PanicSetting, run_by_libvirt
from panicd.rules.libvirt import (
    METADATA_URI,
    ON_CRASH,
    TAKEN_FROM,
    LibvirtDomain,
    UnreadableXMLError,
    inherit,
    is_own_monitor,
    parse_domain,
    parse_guest,
    pid_file,
    tells_of_own_monitor,
)
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.plan import Cont, Dump, Quit, SystemReset, make_plan
from panicd.rules.policy import Reason, Situation, decide, panic_setting
from panicd.rules.qapi import RunState
from panicd.rules.settings import CoredumpSettings, Policy

POLICY = Policy(CoredumpSettings(Path("/dumps")), on_crash=OnCrash.COREDUMP_RESTART)
INHERITS = Policy(CoredumpSettings(Path("/dumps")), inherits_on_crash=True)
PANICKED = Situation(RunState.GUEST_PANICKED)


QEMU_ARGUMENT = (
    "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<q:arg value='-device'/><q:arg value='{}'/></q:commandline>"
)


def xml(inside: str = "", number: str = "id='3'") -> str:
    return f"<domain type='kvm' {number}>\n<name>a</name><uuid>u</uuid>{inside}</domain>\n"


def kept(word: str) -> str:
    return f"<metadata><p:policy xmlns:p='{METADATA_URI}' on_crash='{word}'/></metadata>"


def domain(handling: str, word: str = "") -> LibvirtDomain:
    return LibvirtDomain(3, "a", "u", handling, word)


@pytest.mark.parametrize(
    ("handling", "word", "acts", "on_crash"),
    [
        ("destroy", "", True, OnCrash.DESTROY),
        ("restart", "", True, OnCrash.RESTART),
        ("preserve", "", False, OnCrash.PRESERVE),
        ("coredump-destroy", "", True, OnCrash.COREDUMP_DESTROY),
        ("coredump-restart", "", True, OnCrash.COREDUMP_RESTART),
        ("rename-restart", "", True, OnCrash.RESTART),
        ("preserve-running", "", True, OnCrash.IGNORE),
        ("something-new", "", True, None),
        ("preserve", "restart", False, OnCrash.RESTART),
        ("preserve", "coredump-ignore", False, OnCrash.COREDUMP_IGNORE),
        ("preserve", "nonsense", False, OnCrash.PRESERVE),
        ("destroy", "restart", True, OnCrash.DESTROY),  # set after panicd had taken it over
    ],
)
def test_a_domain_s_own_policy(
    handling: str, word: str, acts: bool, on_crash: OnCrash | None
) -> None:
    read = parse_domain(xml(f"{kept(word)}<on_crash>{handling}</on_crash>"))
    assert (read.acts, read.on_crash) == (acts, on_crash)


def test_libvirt_s_own_default() -> None:
    assert parse_domain(xml()).handling == "destroy"


def test_what_stands_for_nothing_known_is_not_taken_over() -> None:
    assert not domain("something-new").takeover
    assert not domain("preserve").takeover
    assert 'on_crash="ignore"' in domain("preserve-running").takeover


@pytest.mark.parametrize(
    ("handling", "given_back"),
    [
        ("restart", "restart"),
        ("rename-restart", "rename-restart"),
        ("coredump-destroy", "coredump-destroy"),
        ("preserve-running", ""),
    ],
)
def test_what_was_taken_over_can_be_given_back(handling: str, given_back: str) -> None:
    taken = domain(handling).taken_over()
    arrived = parse_domain(
        xml(
            f"<metadata><p:policy xmlns:p='{METADATA_URI}' on_crash='{taken.kept}'"
            f" {TAKEN_FROM}='{taken.taken_from}'/></metadata><on_crash>preserve</on_crash>"
        )
    )
    assert arrived.on_crash is ON_CRASH[handling], "as after a managedsave, or on another host"
    assert arrived.gives_back == given_back
    assert not domain(handling).gives_back, "it was never taken over"


def test_a_word_that_somebody_wrote_is_not_taken_for_a_takeover() -> None:
    assert not domain("preserve", "restart").gives_back


def test_a_word_that_libvirt_has_not_is_not_given_back() -> None:
    assert not replace(domain("restart").taken_over(), taken_from="nonsense").gives_back


def test_set_by_others_after_the_takeover_is_not_given_back() -> None:
    assert not replace(domain("restart").taken_over(), handling="destroy").gives_back


@pytest.mark.parametrize("text", ["", "x", "<domain/>", "<domain id='x'/>", xml(number="")])
def test_no_running_domain_s_xml(text: str) -> None:
    with pytest.raises(UnreadableXMLError):
        parse_domain(text)


def arguments(*values: str) -> str:
    space = "xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'"
    inside = "".join(f"<q:arg value='{value}'/>" for value in values)
    return f"<q:commandline {space}>{inside}</q:commandline>"


@pytest.mark.parametrize(
    ("given", "monitors"),
    [
        ((), ()),
        (("-chardev", "socket,id=a,path=/a,server=on"), ()),
        (("-chardev", "socket,id=a,fd=3", "-mon", "chardev=a,mode=control"), ()),
        (("-chardev", "socket,id=a,path=/a", "-mon", "chardev=a,mode=readline"), ()),
        (("-chardev", "socket,id=a,path=/a", "-qmp", "chardev:a"), ("/a",)),
        (("-chardev", "socket,id=a,path=/r//./a", "-qmp", "chardev:a"), ("/r/a",)),
        (("-chardev", "socket,id=a,path=/a", "-qmp", "unix:/b"), ()),
        (("-chardev", "socket,id=a,path=/a", "-monitor", "chardev:a"), ()),
        (("-chardev", "socket,id=a,path=/a", "-object", "monitor-qmp,id=m,chardev=a"), ("/a",)),
        (("-chardev", "socket,id=a,path=/a", "-object", "monitor-hmp,id=m,chardev=a"), ()),
        (
            ("-mon", "chardev=a,mode=control", "-chardev", "socket,id=a,path=/r,,b.qmp"),
            ("/r,b.qmp",),
        ),
        (
            (
                *("-chardev", "socket,path=/a,id=a", "-mon", "chardev=a,mode=control"),
                *("-chardev", "socket,path=/p,id=panicd", "-mon", "mode=control,chardev=panicd"),
            ),
            ("/p", "/a"),
        ),
    ],
)
def test_the_monitors_that_it_was_given(given: tuple[str, ...], monitors: tuple[str, ...]) -> None:
    assert parse_domain(xml(arguments(*given))).monitors == monitors


@pytest.mark.parametrize(
    ("monitors", "chosen"),
    [
        ((), ""),
        (("/a", "/b"), "/a"),
        (("/a*b[", "/b"), "/a*b["),
        (("a", "/b/../c", "//d", "/e/"), ""),
        (("a", "/b"), "/b"),
    ],
)
def test_which_of_its_monitors_can_be_dialled(monitors: tuple[str, ...], chosen: str) -> None:
    """Another path in a domain's XML, such as a relative one, once ended panicd."""
    assert replace(domain("restart"), monitors=monitors).monitor_to_dial == chosen


def test_only_a_policy_that_inherits_does() -> None:
    assert inherit(INHERITS, domain("restart")).on_crash is OnCrash.RESTART
    assert inherit(INHERITS, domain("something-new")).on_crash is OnCrash.PRESERVE
    assert inherit(INHERITS, None) is INHERITS
    assert inherit(POLICY, domain("destroy")) is POLICY


@pytest.mark.parametrize(
    ("inside", "has"),
    [
        ("", False),
        ("<features><vmcoreinfo state='on'/></features>", True),
        ("<features><acpi/><vmcoreinfo/></features>", True),
        ("<features><vmcoreinfo state='off'/></features>", False),
        (QEMU_ARGUMENT.format("vmcoreinfo"), True),
        (QEMU_ARGUMENT.format("pvpanic"), False),
    ],
)
def test_whether_the_guest_s_kernel_can_leave_a_note(inside: str, has: bool) -> None:
    assert parse_domain(xml(inside)).has_vmcoreinfo is has


def test_a_panic_device_of_libvirt_s_was_asked_for() -> None:
    read = parse_domain(xml("<devices><panic model='s390'/><panic/></devices>"))
    assert read.panic_models == ("s390", "default")
    capability = run_by_libvirt(Capability((7, 2, 0)), read)
    assert capability.panic_device is PanicDevice.REQUESTED
    seen = Capability((7, 2, 0), PanicDevice.BUILTIN)
    assert run_by_libvirt(seen, read).panic_device is PanicDevice.BUILTIN


def test_libvirt_that_acts_is_not_interfered_with() -> None:
    capability = Capability((7, 2, 0), libvirt=domain("destroy"))
    decision = decide(POLICY, capability, PANICKED, now=0.0)
    assert (decision.action, decision.reason) == (Action.PRESERVE, Reason.LIBVIRT)
    gone = decide(POLICY, capability, Situation(None), now=0.0)
    assert gone.reason is Reason.QEMU_EXITED


@pytest.mark.parametrize("runs_it", [True, False])
@pytest.mark.parametrize("on_crash", list(OnCrash))
def test_what_goes_through_libvirt(on_crash: OnCrash, runs_it: bool) -> None:
    policy = Policy(CoredumpSettings(Path("/dumps")), on_crash=on_crash)
    capability = Capability((7, 2, 0), libvirt=domain("preserve") if runs_it else None)
    plan = make_plan(decide(policy, capability, PANICKED, now=0.0), policy, capability, PANICKED)
    through = {type(step) for step in plan.steps if step.by_libvirt}
    commands = {type(step) for step in plan.steps} & {Dump, SystemReset, Cont, Quit}
    assert through == (commands if runs_it else set())


def test_grace_goes_through_libvirt_where_that_does_not_act() -> None:
    policy = Policy(CoredumpSettings(Path("/dumps")), on_crash=OnCrash.DESTROY, grace=900.0)
    capability = Capability((7, 2, 0), libvirt=domain("preserve"))
    decision = decide(policy, capability, PANICKED, now=0.0)
    assert decision.reason is Reason.GRACE
    plan = make_plan(decision, policy, capability, PANICKED)
    assert [step.by_libvirt for step in plan.steps if isinstance(step, Cont)] == [True]
    # A second notifier is not to cut the guest's own dump, whatever libvirt takes it for.
    assert panic_setting(policy, capability, decision) is PanicSetting.NONE
    acting = replace(capability, libvirt=domain("destroy"))
    assert decide(policy, acting, PANICKED, now=0.0).reason is Reason.LIBVIRT


def test_ignored_guest_of_libvirt_s_is_stopped_and_resumed() -> None:
    policy = replace(POLICY, on_crash=OnCrash.IGNORE)
    for runs_it, setting in ((domain("preserve"), PanicSetting.PAUSE), (None, PanicSetting.NONE)):
        assert panic_setting(policy, Capability((7, 2, 0), libvirt=runs_it), None) is setting


def test_a_guest_that_libvirt_lets_run_is_not_stopped() -> None:
    """It would say 'running' of a guest that is stopped, and nobody would resume it."""
    capability = Capability((11, 1, 0), libvirt=domain("preserve-running"))
    running = replace(PANICKED, run_state=RunState.RUNNING)
    for on_crash in OnCrash:
        policy = replace(POLICY, on_crash=on_crash)
        assert panic_setting(policy, capability, None) is PanicSetting.NONE
        decision = decide(policy, capability, running, now=0.0)
        ignored = on_crash is OnCrash.IGNORE
        assert decision.reason is (Reason.ON_CRASH if ignored else Reason.LIBVIRT)
        assert make_plan(decision, policy, capability, running).steps == ()
    stopped = make_plan(
        decide(replace(POLICY, on_crash=OnCrash.IGNORE), capability, PANICKED, now=0.0),
        POLICY,
        capability,
        PANICKED,
    )
    # libvirt takes it for running, and would do nothing.
    assert [step.by_libvirt for step in stopped.steps if isinstance(step, Cont)] == [False]


def test_what_qemu_does_is_not_known_once_libvirt_was_told_something() -> None:
    armed = Capability((11, 1, 0), panic_setting=PanicSetting.PAUSE)
    taken_over = run_by_libvirt(armed, domain("preserve-running").taken_over())
    assert taken_over.panic_setting is None
    armed = replace(taken_over, panic_setting=PanicSetting.PAUSE)
    assert run_by_libvirt(armed, armed.libvirt).panic_setting is PanicSetting.PAUSE
    assert run_by_libvirt(armed, domain("destroy")).panic_setting is None


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/var/lib/libvirt/qemu/domain-7-web/monitor.sock", True),
        ("/home/u/.config/libvirt/qemu/lib/domain-12-a b/monitor.sock", True),
        ("/srv/embedded/lib/qemu/domain-1-x/monitor.sock", True),
        ("/var/lib/libvirt/qemu/web.monitor", True),
        ("/home/u/.config/libvirt/qemu/lib/web.monitor", True),
        ("/run/qemu/monitor.sock", False),
        ("/run/domain-7-web/qmp.sock", False),
        ("/run/qemu/web.monitor", False),
        ("/var/lib/libvirt/qemu/domain-7-web/panicd.sock", False),
    ],
)
def test_libvirt_s_own_monitor_is_known_by_its_path(path: str, own: bool) -> None:
    assert is_own_monitor(path) is own


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (["qemu-kvm", "-chardev", "socket,id=charmonitor,path=/run/m,server=on,wait=off"], True),
        (["qemu-kvm", "-chardev", "socket,path=/run/m,id=charmonitor,server=on"], True),
        (["qemu-kvm", "-chardev", "socket,id=panicd,path=/run/m,server=on"], False),
        (["qemu-kvm", "-chardev", "socket,id=charmonitor,path=/run/other,server=on"], False),
        (["qemu-kvm", "-chardev", "socket,id=charmonitor,fd=22,server=on"], False),
        (["/usr/sbin/libvirtd", "--timeout", "120"], True),
        (["/usr/sbin/virtqemud"], True),
        ([], False),
    ],
)
def test_libvirt_s_own_monitor_is_known_by_who_listens(arguments: list[str], own: bool) -> None:
    assert is_own_monitor("/run/m", arguments) is own
    assert tells_of_own_monitor(arguments) or not own
    assert not tells_of_own_monitor(["qemu-system-x86_64", "-chardev", "socket,id=mon,path=/run/m"])


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("qemu:///system", "/run/libvirt/qemu/vm.pid"),
        ("qemu:///system?socket=/tmp/s", "/run/libvirt/qemu/vm.pid"),
        ("qemu:///session", "/run/user/7/libvirt/qemu/run/vm.pid"),
    ],
)
def test_where_libvirt_writes_a_domain_s_process_down(uri: str, place: str) -> None:
    assert str(pid_file(uri, "vm", {"XDG_RUNTIME_DIR": "/run/user/7"})) == place


DESCRIBED = """
<domain type='kvm'>
  <name>vm</name>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <os><type arch='aarch64' machine='virt'>hvm</type></os>
  <devices>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <panic model='pvpanic'/>
  </devices>
</domain>
"""


def test_what_a_domain_s_xml_says_of_its_guest() -> None:
    guest = parse_guest(DESCRIBED)
    assert guest.osinfo == "http://debian.org/debian/12"
    assert (guest.architecture, guest.panic_models) == ("aarch64", ("pvpanic",))
    assert guest.has_agent
    assert not guest.runs
    bare = parse_guest("<domain id='3'><name>vm</name></domain>")
    assert (bare.osinfo, bare.architecture, bare.has_agent, bare.runs) == ("", "", False, True)
    with pytest.raises(UnreadableXMLError):
        parse_guest("no XML")
