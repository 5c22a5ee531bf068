import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.command_line import (
    CommandLine,
    GivenMonitor,
    given_monitors,
    guest_name,
    parse_command_line,
)

QEMU = "/usr/bin/qemu-system-x86_64"
NOTHING = CommandLine(
    no_shutdown=False, reboot_is_shutdown=False, panic_action=None, panic_devices=()
)


def parse(text: str) -> CommandLine:
    return parse_command_line([QEMU, *text.split()])


@pytest.mark.parametrize("arguments", [[], [QEMU], [QEMU, "-m", "64", "disk.img"]])
def test_says_nothing_of_what_is_not_there(arguments: list[str]) -> None:
    assert parse_command_line(arguments) == NOTHING


# Each row was run on QEMU 7.2: the action is the one that its GUEST_PANICKED then told
# (poweroff with exit status 0 is 'shutdown', or None where no option says so).
@pytest.mark.parametrize(
    ("arguments", "no_shutdown", "panic_action"),
    [
        ("-no-shutdown", True, "pause"),
        ("--no-shutdown", True, "pause"),
        ("-action panic=pause", False, "pause"),
        ("-action panic=none", False, "none"),
        ("-action panic=pause -action panic=none", False, "none"),
        ("-action panic=none,panic=pause", False, "pause"),
        ("-action panic=pause,panic=shutdown", False, "shutdown"),
        ("-no-shutdown -action panic=shutdown", True, "pause"),
        ("-action panic=shutdown -no-shutdown", True, "pause"),
        ("-no-shutdown -action panic=none", True, "none"),
        ("-action panic=none -no-shutdown", True, "none"),
        ("-no-shutdown -action panic=exit-failure", True, "exit-failure"),
        ("-action shutdown=pause", True, "pause"),
        ("--action shutdown=pause", True, "pause"),
        ("-action shutdown=pause -action shutdown=poweroff", False, None),
        ("-no-shutdown -action shutdown=poweroff", False, None),
        ("-action shutdown=poweroff -no-shutdown", True, "pause"),
    ],
)
def test_what_a_panic_does(arguments: str, no_shutdown: bool, panic_action: str | None) -> None:
    line = parse(arguments)
    assert (line.no_shutdown, line.panic_action) == (no_shutdown, panic_action)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-no-reboot", True),
        ("--no-reboot", True),
        ("-action reboot=shutdown", True),
        ("-action shutdown=pause,reboot=shutdown", True),
        ("-action reboot=reset", False),
        ("-no-reboot -action reboot=reset", False),
        ("-no-shutdown", False),
    ],
)
def test_whether_a_reset_ends_the_process(arguments: str, expected: bool) -> None:
    assert parse(arguments).reboot_is_shutdown is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-device", "pvpanic"], ("pvpanic",)),
        (["--device", "pvpanic,ioport=0x506,id=panic0"], ("pvpanic",)),
        (["-device", "driver=pvpanic,ioport=1285"], ("pvpanic",)),
        (["-device", "id=panic0,driver=pvpanic-pci"], ("pvpanic-pci",)),
        (["-device", '{"driver":"pvpanic","ioport":1285}'], ("pvpanic",)),
        (["-device", "pvpanic-pci", "-device", "pvpanic"], ("pvpanic-pci", "pvpanic")),
        (["-device", "virtio-net,id=pvpanic"], ()),
        (["-device", '{"driver":["pvpanic"]}'], ()),
        (["-device", '{"driver":"pvpanic"'], ()),
        (["-device", '{"a":' * 100_000], ()),
        (["-cpu", "host,hv-crash"], ("hv-crash",)),
        (["-cpu", "host,hv_crash=on", "-device", "pvpanic"], ("pvpanic", "hv-crash")),
        (["-cpu", "host,+hv-crash"], ("hv-crash",)),
        (["-cpu", "host,hv-crash=off"], ()),
        (["-cpu", "host,hv-crash", "-cpu", "host"], ()),
    ],
)
def test_panic_devices(arguments: list[str], expected: tuple[str, ...]) -> None:
    assert parse_command_line([QEMU, *arguments]).panic_devices == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["-append", "-no-shutdown"],
        ["-name", "-no-reboot"],
        ["-name", "-device", "pvpanic"],
        ["-append", "a,,-no-shutdown", "-k", "-action"],
        ["disk -no-shutdown"],
        ["-device"],
    ],
)
def test_a_value_is_not_taken_for_an_option(arguments: list[str]) -> None:
    assert parse_command_line([QEMU, *arguments]) == NOTHING


def test_a_programs_own_name_is_no_option() -> None:
    assert parse_command_line(["-no-shutdown"]) == NOTHING


def test_a_doubled_comma_is_part_of_a_value() -> None:
    assert parse_command_line([QEMU, "-device", "driver=pvpanic,,x"]).panic_devices == ()


LIBVIRT = (
    "/usr/bin/qemu-system-x86_64 -name guest=vm,debug-threads=on -S -machine pc-q35-7.2,usb=off"
    " -accel kvm -cpu host,migratable=on,hv-time=on,hv-crash=on -no-user-config -nodefaults"
    " -chardev socket,id=charmonitor,fd=22,server=on,wait=off"
    " -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc -no-shutdown"
    ' -boot strict=on -device {"driver":"pvpanic","ioport":1285} -msg timestamp=on'
)


def test_as_libvirt_starts_a_qemu() -> None:
    assert parse_command_line(LIBVIRT.split()) == CommandLine(
        no_shutdown=True,
        reboot_is_shutdown=False,
        panic_action="pause",
        panic_devices=("pvpanic", "hv-crash"),
    )


WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["-", "--", "-device", "-action", "-cpu", "-no-shutdown", "panic=", "{", "{}", ",", "=,"]
    ),
)


@given(st.lists(WORDS))
def test_no_list_of_arguments_makes_it_fail(arguments: list[str]) -> None:
    line = parse_command_line(arguments)
    assert set(line.panic_devices) <= {"pvpanic", "pvpanic-pci", "hv-crash"}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-name", "web"], "web"),
        (["-name", "guest=web,debug-threads=on"], "web"),
        (["-name", "web,debug-threads=on"], "web"),
        (["-name", "a,,b"], "a,b"),
        (["-name", "debug-threads=on"], ""),
        (["-append", "-name web"], ""),
        ([], ""),
    ],
)
def test_name_of_the_guest(arguments: list[str], name: str) -> None:
    assert guest_name(["qemu", *arguments]) == name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("-qmp stdio -monitor unix:/run/h,server=on", {}),
        ("-qmp unix:/run/q,server=on,wait=off", {"unix:/run/q": GivenMonitor("/run/q", True)}),
        ("-qmp unix:/run/q,server,nowait", {"unix:/run/q": GivenMonitor("/run/q", True)}),
        (
            "-mon chardev=m,mode=control -chardev socket,id=m,path=/run/q,reconnect=1",
            {"m": GivenMonitor("/run/q", False)},
        ),
        ("-mon chardev=m -chardev socket,id=m,path=/run/h,server=on", {}),  # HMP
        (
            "-chardev socket,path=/run/a,,b,id=m,server=on -qmp-pretty chardev:m",
            {"m": GivenMonitor("/run/a,b", True)},
        ),
        (
            "-chardev socket,id=m,path=/run/q,server=on -object monitor-qmp,id=x,chardev=m",
            {"m": GivenMonitor("/run/q", True)},
        ),
        ("-chardev socket,id=m,fd=25,server=on -mon chardev=m,mode=control", {}),
        ("-chardev socket,id=s,path=/run/s,server=on -serial chardev:s", {}),
    ],
)
def test_monitors_that_a_qemu_was_given(text: str, found: dict[str, GivenMonitor]) -> None:
    assert given_monitors([QEMU, *text.split()]) == found
