from dataclasses import replace

import pytest

from panicd.rules.guest_system import (
    DRIVERS,
    FAMILIES,
    HYPERV,
    ISA,
    PCI,
    GuestSystem,
    advise,
    from_id,
    merge,
    parse_agent,
    parse_kernel,
    parse_osinfo,
)

# As osinfo-query 1.10 prints it: the columns come in an order of its own.
OSINFO = """\
 Name                 | Family       | Release date | ID
----------------------+--------------+--------------+------------------------------
 Debian 11            | linux        | 2021-08-14   | http://debian.org/debian/11
"""
DEBIAN = GuestSystem(
    "http://debian.org/debian/11", "Debian 11", "linux", "2021-08-14", known_by="osinfo-db"
)


def linux(released: str = "", kernel: tuple[int, int] | None = None) -> GuestSystem:
    return GuestSystem("http://example.org/os/1", "an OS", "linux", released, kernel)


@pytest.mark.parametrize(
    ("system", "architecture", "device", "verdicts"),
    [
        (linux(kernel=(3, 9)), "x86_64", "", "no no"),
        (linux(kernel=(3, 10)), "x86_64", ISA, "yes no"),
        (linux(kernel=(5, 13)), "x86_64", ISA, "yes yes"),
        (linux(kernel=(5, 12)), "aarch64", "", "yes no"),
        (linux(kernel=(6, 1)), "aarch64", PCI, "yes yes"),
        (linux(kernel=(6, 1)), "s390x", "", "yes yes"),
        (linux("2013-06-29"), "", "", "no no"),
        (linux("2013-12-01"), "", "", "unknown no"),  # its kernel may be older than it is
        (linux("2015-04-25"), "", ISA, "probably no"),
        (linux("2024-04-25"), "", ISA, "probably probably"),
        (linux(), "", "", "unknown unknown"),
        (DEBIAN, "", ISA, "yes no"),  # 5.10, as its release notes say
        (from_id("http://redhat.com/rhel/6.5", ""), "", ISA, "probably unknown"),
        (from_id("http://redhat.com/rhel/7.9", ""), "", ISA, "yes no"),
        (from_id("http://ubuntu.com/ubuntu/22.04", ""), "aarch64", PCI, "yes yes"),
        (from_id("http://debian.org/debian/12", ""), "aarch64", "", "no no"),
        (GuestSystem("debian", "Debian", "linux", kernel=(6, 12)), "aarch64", "", "no no"),
        (GuestSystem("debian", "Debian", "linux", kernel=(6, 12)), "x86_64", ISA, "yes yes"),
        (from_id("http://debian.org/debian/10", ""), "", ISA, "yes no"),  # and not Debian 1
        (from_id("windows", ""), "", HYPERV, "if-installed if-installed probably"),
        (
            GuestSystem("http://microsoft.com/win/7", "Windows 7", "winnt", "2009-10-22"),
            *("", ISA, "if-installed if-installed no"),
        ),
        (from_id("http://dragonflybsd.org/dragonflybsd/6.2", ""), "", ISA, "probably"),
        (from_id("http://freebsd.org/freebsd/13.1", ""), "", "", ""),
        (GuestSystem(), "", "", ""),
    ],
)  # fmt: skip
def test_which_device_a_guest_can_use(
    system: GuestSystem, architecture: str, device: str, verdicts: str
) -> None:
    advice = advise(system, architecture)
    assert advice.device == device
    assert [support.verdict for support in advice.support] == verdicts.split()
    assert advice.why
    assert all(support.why and support.source for support in advice.support)
    assert bool(advice.arguments) is bool(advice.libvirt) is bool(device)


def test_every_driver_has_its_source_and_a_family_that_libosinfo_knows() -> None:
    assert all(driver.source for driver in DRIVERS)
    assert {driver.family for driver in DRIVERS} <= FAMILIES


def test_kdump_and_grace_are_said_of_those_that_dump_themselves() -> None:
    windows, unknown = advise(from_id("windows", "")), advise(GuestSystem())
    assert "memory dump" in windows.grace
    assert "GUEST_CRASHLOADED" in windows.kdump
    assert "kernel.panic" in advise(linux()).ignore
    assert "crash_kexec_post_notifiers" in advise(linux()).kdump
    assert {unknown.ignore, unknown.grace, unknown.kdump} == {"not known of this system"}


@pytest.mark.parametrize(
    ("word", "family"),
    [
        ("http://debian.org/debian/12", "linux"),
        ("http://microsoft.com/win/2k19", "winnt"),
        ("https://freebsd.org/freebsd/14.0", "freebsd"),
        ("http://new.example/os/1", "linux"),
        ("windows", "winnt"),
        ("win2k22", "winnt"),
        ("linux", "linux"),
        ("openbsd7.4", "openbsd"),
        ("debian12", ""),
        ("", ""),
    ],
)
def test_what_an_id_tells_by_itself(word: str, family: str) -> None:
    assert from_id(word, "").family == family


def test_what_osinfo_query_prints() -> None:
    assert parse_osinfo(OSINFO) == DEBIAN


@pytest.mark.parametrize("text", ["", "\n".join(OSINFO.splitlines()[:2]), OSINFO * 2, "nonsense"])
def test_what_it_prints_of_nothing(text: str) -> None:
    assert parse_osinfo(text) is None


def test_what_a_guest_s_agent_answers() -> None:
    said = (
        '{"return":{"name":"Debian GNU/Linux","kernel-release":"6.1.0-18-amd64","version":"12",'
        '"pretty-name":"Debian GNU/Linux 12 (bookworm)","version-id":"12",'
        '"kernel-version":"#1 SMP","machine":"x86_64","id":"debian"}}'
    )
    system = parse_agent(said)
    assert system is not None
    assert (system.family, system.kernel) == ("linux", (6, 1))
    assert system.name == "Debian GNU/Linux 12 (bookworm)"
    windows = parse_agent(
        '{"return":{"id":"mswindows","kernel-release":"20348","name":"Microsoft Windows"}}'
    )
    assert windows is not None
    assert (windows.family, windows.kernel) == ("winnt", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"return":[]}',
        '{"return":{"id":7}}',
        '{"return":{"id":"templeos"}}',
        "{}",
        '{"return":' + "[" * 100_000,
    ],
)
def test_what_a_guest_s_agent_may_not_be_believed(text: str) -> None:
    assert parse_agent(text) is None


@pytest.mark.parametrize(
    ("text", "kernel"), [("6.1.0-18-amd64", (6, 1)), ("5.10", (5, 10)), ("six", None), ("", None)]
)
def test_version_of_a_kernel(text: str, kernel: tuple[int, int] | None) -> None:
    assert parse_kernel(text) == kernel


def test_further_sources_add_what_the_first_does_not_say() -> None:
    by_libvirt = from_id("http://debian.org/debian/11", "libvirt")
    merged = merge(by_libvirt, DEBIAN)
    assert merged == replace(DEBIAN, known_by="libvirt")
    agent = GuestSystem("debian", "Debian 12", "linux", kernel=(6, 1), known_by="the agent")
    assert merge(merged, agent) == replace(merged, kernel=(6, 1))
    assert merge(GuestSystem(), agent) == agent
    assert merge(merged, None) == merged
    liar = GuestSystem("x", "X", "winnt", "2026-01-01", (9, 9), known_by="the agent")
    assert merge(merged, liar) == merged
    assert merge(from_id("debian11", "an operator"), DEBIAN).id == DEBIAN.id
