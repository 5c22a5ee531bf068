"""The Debian package, from its installation to its end: ``python3 -m tests.service.on_package``.

For the machine that `tests/service/package` makes: its packages are in /src. It takes root and a
QEMU. A panicked VM is there all along, and no step may lose it. The names of steps may be given, to
take only those; `upgrade-release` takes those of an upgrade of the whole release instead.
"""

import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from socket import AF_UNIX, socket

from tests.service.on_systemd import (
    CONFIG,
    SOCKETS,
    USER,
    domain,
    incident,
    main,
    main_pid,
    panic,
    run,
    shown,
    start_vm,
    until,
)

STATE = Path("/var/lib/panicd")
APT = ("apt-get", "-qq", "-y", "-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Use-Pty=0")
NEWEST = Path("/src/panicd.deb")
EARLIER = Path("/src/earlier.deb")
OF_NEW_RELEASE = Path("/src/new.deb")
MINUTES = 1800.0  # seconds that an upgrade of everything may take


def apt(*arguments: str | Path, panicking: str | None = None) -> str:
    """Run apt-get, which may ask nothing; return what it and the packages' scripts said.

    Args:
        arguments: apt-get's.
        panicking: a VM that is to panic when dpkg is at panicd.
    """
    with subprocess.Popen(
        [*APT, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    ) as process:
        if panicking is not None:
            until("dpkg is at panicd", lambda: is_in_between() or process.poll() is not None)
            panicked_in_between = is_in_between()
            panic_unheard(panicking)
        said, _ = process.communicate(timeout=MINUTES)
    assert process.returncode == 0, said
    assert panicking is None or panicked_in_between, "dpkg was faster than this"
    return said


def package(field: str, name: str = "panicd") -> str:
    return run("dpkg-query", "--show", f"--showformat=${{{field}}}", name, status=None)


def is_in_between() -> bool:
    """Whether dpkg has begun with panicd, and not ended."""
    return package("db:Status-Status") not in {"installed", "config-files", ""}


def panic_unheard(name: str) -> None:
    """Panic a VM, and don't ask panicd about it: it may be down."""
    with socket(AF_UNIX) as monitor:
        monitor.connect(f"{SOCKETS / name}.own")
        monitor.sendall(b"o /b 0x505 1\n")
        said = b""
        while said.count(b"(qemu)") < 2:  # the prompt of the start, and the one after the command
            said += monitor.recv(4096)


def is_preserved(name: str) -> None:
    until(
        f"{name} is preserved", lambda: (i := incident(name)) and i["incident_state"] == "preserved"
    )


def serves() -> None:
    """panicd runs, starts with the machine, and has found what it knew before."""
    assert (shown("ActiveState"), shown("UnitFileState")) == ("active", "enabled")
    until("the first VM is connected", lambda: (d := domain("first")) and d["connected"])
    is_preserved("first")


def one_command_installs_a_service_that_runs() -> None:
    apt("install", NEWEST)
    assert (shown("ActiveState"), shown("UnitFileState")) == ("active", "enabled")
    run("systemd-analyze", "security", "--threshold=21", "--no-pager", "panicd")
    place = SOCKETS.stat()
    assert (stat.S_IMODE(place.st_mode), place.st_uid) == (0o1770, 0)
    for file in (
        "man/man1/panicd.1.gz",
        "man/man5/panicd.yaml.5.gz",
        "bash-completion/completions/panicd",
        "zsh/vendor-completions/_panicd",
        "fish/vendor_completions.d/panicd.fish",
        "panicd/prometheus/panicd.rules.yaml",
        "panicd/grafana/panicd.json",
        "doc/panicd/panicd.cdx.json",
    ):
        assert Path("/usr/share", file).is_file(), file
    run("panicd", "check")
    if USER not in {entry.pw_name for entry in pwd.getpwall()}:  # the group is the package's
        run("useradd", "--system", "--no-create-home", "--groups", "kvm", USER)


def the_demonstration_works() -> None:
    assert "✘" not in run("panicd", "demo")


def a_vm_as_qemu_args_prints_it_is_acted_on() -> None:
    start_vm("first")
    panic("first")
    is_preserved("first")
    serves()


def it_is_no_other_python_s() -> None:
    run("python3", "-I", "-c", "import panicd", status=1)
    maps = Path(f"/proc/{main_pid('panicd')}/maps").read_text()
    assert "/usr/lib/panicd/lib/" in maps
    assert "dist-packages" not in maps


def what_can_t_be_compiled_costs_time_only() -> None:
    (modules,) = Path("/usr/lib/panicd/lib").glob("*/site-packages")
    broken = modules / "broken.py"  # fails as all of it does where the disk is full
    broken.write_text("no Python\n")
    apt("install", "--reinstall", NEWEST)
    broken.unlink()
    assert package("db:Status-Status") == "installed"
    serves()


def a_downgrade_keeps_what_is_open() -> None:
    apt("install", "--allow-downgrades", EARLIER)
    assert package("Version") == "0.0.1"
    serves()


def a_panic_during_an_upgrade_is_found() -> None:
    CONFIG.write_text(CONFIG.read_text() + "# ours\n")
    start_vm("during")
    before = main_pid("panicd")
    apt("install", NEWEST, panicking="during")
    assert package("Version") != "0.0.1"
    assert main_pid("panicd") not in {0, before}
    assert CONFIG.read_text().endswith("# ours\n")
    is_preserved("during")
    serves()


def a_panic_while_it_is_removed_is_found_afterwards() -> None:
    start_vm("away")
    apt("remove", "panicd")
    assert not Path("/usr/bin/panicd").exists()
    assert not Path("/usr/lib/panicd").exists()
    assert CONFIG.exists()
    panic_unheard("away")
    apt("install", NEWEST)
    is_preserved("away")
    serves()


def purge_asks_nothing_and_says_what_it_leaves() -> None:
    said = apt("purge", "panicd")
    assert str(STATE) in said, said
    assert (STATE / "journal.sqlite3").exists()
    assert not CONFIG.parent.exists()
    assert main_pid("vm-first") > 0
    shutil.rmtree(STATE)
    apt("install", NEWEST)
    until("what panicked is found anew", lambda: incident("first"))


def purge_leaves_nothing_where_nothing_happened() -> None:
    run("systemctl", "stop", "panicd", "vm-*")
    shutil.rmtree(STATE)
    STATE.mkdir()
    said = apt("purge", "panicd")
    assert "journal" not in said, said
    left = [place for place in (STATE, CONFIG.parent, Path("/usr/lib/panicd")) if place.exists()]
    assert left == []


STEPS = (
    one_command_installs_a_service_that_runs,
    the_demonstration_works,
    a_vm_as_qemu_args_prints_it_is_acted_on,
    it_is_no_other_python_s,
    what_can_t_be_compiled_costs_time_only,
    a_downgrade_keeps_what_is_open,
    a_panic_during_an_upgrade_is_found,
    a_panic_while_it_is_removed_is_found_afterwards,
    purge_asks_nothing_and_says_what_it_leaves,
    purge_leaves_nothing_where_nothing_happened,
)


def python_of_the_release() -> str:
    return run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def the_release_is_upgraded_with_an_open_incident() -> None:
    start_vm("before")
    old = python_of_the_release()
    before = main_pid("panicd")
    apt("--no-download", "full-upgrade")
    assert python_of_the_release() != old
    assert package("db:Status-Status") == "installed"
    # systemd went on with it, or started it anew: either way it is there.
    assert main_pid("panicd") > 0
    print(
        f"        the daemon is {'the same' if main_pid('panicd') == before else 'another'} process"
    )
    panic("before")
    is_preserved("before")
    serves()


def it_starts_on_the_new_release_too() -> None:
    run("systemctl", "restart", "panicd")
    serves()
    assert re.search(r"python3\.11", Path(f"/proc/{main_pid('panicd')}/maps").read_text())


def the_package_of_the_new_release_takes_over() -> None:
    start_vm("during")
    apt("install", OF_NEW_RELEASE, panicking="during")
    is_preserved("during")
    serves()
    is_preserved("before")
    python = f"python{python_of_the_release()}"
    assert python in Path(f"/proc/{main_pid('panicd')}/maps").read_text()


RELEASE_STEPS = (
    one_command_installs_a_service_that_runs,
    a_vm_as_qemu_args_prints_it_is_acted_on,
    the_release_is_upgraded_with_an_open_incident,
    it_starts_on_the_new_release_too,
    the_package_of_the_new_release_takes_over,
)


if __name__ == "__main__":
    if sys.argv[1:] == ["upgrade-release"]:
        del sys.argv[1:]
        sys.exit(main(lambda: None, RELEASE_STEPS))
    sys.exit(main(lambda: None, STEPS))
