"""The container image, tried beside real QEMUs: ``python3 -m tests.service.on_image``.

For the machine that `make image-test` makes, or another that may be spoiled. It takes root, podman,
the image and its base, a QEMU, and this tree.
"""

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any
from urllib.request import urlopen

from tests.service.on_systemd import main, run, until

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/debian:12-slim"
SOCKETS = Path("/run/qemu")
CONFIG = Path("/etc/panicd/panicd.yaml")
STATE = Path("/var/lib/panicd")
WRITTEN = {str(STATE), "/run/panicd"}
VM, OTHER = "vm", "vm-other"  # whose QEMUs are not root's
ABOVE_BASE = 150  # MB at most: Debian's Python, numpy, and panicd with what else it needs

CONFIGURATION = """
monitors: [{glob: /run/qemu/*.qmp}]
storm: "off"
defaults:
  on_crash: preserve
  timeouts: {quit: 2s, terminate: 2s}
  coredump: {min_free: 1%}
domains:
  - {match: dump, on_crash: coredump-preserve}
  - {match: "end*", on_crash: destroy}
"""


def documented(*, user: str | None = None, changes_show: bool = False) -> list[str]:
    """The command of the Containerfile's header, for root or for a user without a capability.

    Args:
        user: as whom, without any capability.
        changes_show: nothing keeps the container from writing, so that what it writes can be seen.
    """
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    found = re.search(r"^# +(podman run .*?)^#$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    words = shlex.split(found[1].replace("\\\n#", " "))
    if user is not None:
        entry = pwd.getpwnam(user)
        words = [word for word in words if not word.startswith("--cap-add")]
        words[-1:-1] = ["--user", f"{entry.pw_uid}:{entry.pw_gid}"]
    return [word for word in words if not changes_show or word != "--read-only"]


def inside(*command: str) -> str:
    return run("podman", "exec", "panicd", "panicd", *command)


def asked(*command: str) -> Any:
    return json.loads(inside(*command, "--json"))


def inspected(what: str) -> str:
    return run("podman", "inspect", "--format", f"{{{{{what}}}}}", "panicd").strip()


def incident(name: str) -> Any:
    found = asked("incidents", "--domain", name)["incidents"]
    return found[0] if found else None


def armed(name: str) -> bool:
    domains = {domain["domain"]: domain for domain in asked("status")["domains"]}
    return name in domains and domains[name]["armed"] == "yes"


def start_container(command: list[str]) -> None:
    """Start it on a host that knows nothing of it yet, and has no QEMU."""
    run("podman", "rm", "--force", "--ignore", "panicd")
    run("systemctl", "stop", "vm-*", status=None)
    for place in (*map(Path, WRITTEN), SOCKETS):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if "--user" in command:
            os.chown(place, pwd.getpwnam(VM).pw_uid, -1)
    SOCKETS.chmod(0o1777)  # QEMUs of two users
    run(*command)
    until("it is ready", lambda: answer("/readyz"))


def answer(path: str) -> str | None:
    try:
        with urlopen(f"http://127.0.0.1:10077{path}", timeout=10) as reply:
            return str(reply.read(), "utf-8")
    except OSError:
        return None


def start_vm(name: str, user: str) -> None:
    text = inside("qemu-args", "--name", name)
    arguments = text.split()
    own = f"socket,id=own,path={SOCKETS / name}.own,server=on,wait=off"
    run(
        *("systemd-run", "--quiet", "--collect", "--unit", f"vm-{name}", "--uid", user),
        *("/usr/bin/qemu-system-x86_64", "-m", "16", "-display", "none", *arguments),
        *("-chardev", own, "-mon", "chardev=own,mode=readline"),
    )
    until(f"{name} is armed", lambda: armed(name))


def main_pid(name: str) -> int:
    return int(run("systemctl", "show", f"vm-{name}", "--value", "-p", "MainPID"))


def panic(name: str) -> None:
    with socket(AF_UNIX) as monitor:
        monitor.connect(f"{SOCKETS / name}.own")
        monitor.sendall(b"o /b 0x505 1\n")
        until(f"{name}'s incident", lambda: incident(name))


def hung_qemu_is_ended(name: str, user: str) -> None:
    start_vm(name, user)
    process = main_pid(name)
    inside("hold", name, "--why", "so that it hangs before it is ended")
    panic(name)
    os.kill(process, signal.SIGSTOP)  # it answers nothing, and a SIGTERM is kept from it
    inside("unhold", name, "--why", "go")
    until("the process is gone", lambda: not Path(f"/proc/{process}").exists())
    until("the incident's end", lambda: incident(name)["state"] == "closed")


def process_status() -> dict[str, list[str]]:
    lines = Path(f"/proc/{inspected('.State.Pid')}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def writable_mounts() -> Iterator[tuple[str, str]]:
    """Where the container may write, but for the kernel's own file systems: place, file system."""
    for line in Path(f"/proc/{inspected('.State.Pid')}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place, options = before.split()[4:6]
        kind = after.split()[0]
        kernel_s = kind in {"sysfs", "cgroup2", "devpts", "mqueue"} or place.startswith("/proc")
        if "rw" in options.split(",") and not kernel_s:
            yield place, kind


def set_up() -> None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    for user in {VM, OTHER} - known:
        run("useradd", "--system", "--no-create-home", user)
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(CONFIGURATION)


def the_image_is_small() -> None:
    sizes = [
        int(run("podman", "image", "inspect", "--format", "{{.Size}}", image)) / 1e6
        for image in ("panicd", BASE)
    ]
    print(f"        the image is {sizes[0]:.0f} MB, {sizes[0] - sizes[1]:.0f} above its base")
    assert sizes[0] - sizes[1] <= ABOVE_BASE


def the_image_holds_no_trace_of_its_build() -> None:
    lines = run("podman", "diff", "localhost/panicd:latest").splitlines()
    added = {Path(line[2:]) for line in lines if line.startswith("A ")}
    assert Path("/opt/panicd/bin/panicd") in added
    assert {path.parts[1] for path in added} == {"etc", "opt", "usr", "var"}
    names = {path.name for path in added}
    assert names.isdisjoint({"pip", "pip.conf", "ca-certificates", "setuptools"})
    assert not [name for name in names if name.endswith(".deb")]


def as_root_it_starts_with_two_capabilities() -> None:
    start_container(documented())
    status = process_status()
    assert status["CapEff"] == status["CapBnd"] == [f"{1 << 1 | 1 << 5:016x}"], status
    assert status["NoNewPrivs"] == ["1"]


def it_says_that_it_is_healthy() -> None:
    assert "status" in inspected(".Config.Healthcheck")
    run("podman", "healthcheck", "run", "panicd")


def memory_is_dumped() -> None:
    start_vm("dump", VM)
    panic("dump")
    until("the dump's end", lambda: incident("dump")["state"] == "preserved")
    (dump,) = (STATE / "coredumps").glob("*/dump/*.elf.zst")
    assert dump.stat().st_size > 10_000


def a_panicked_guest_is_destroyed() -> None:
    start_vm("end", OTHER)
    process = main_pid("end")
    panic("end")
    until("the process is gone", lambda: not Path(f"/proc/{process}").exists())


def another_user_s_hung_qemu_is_ended() -> None:
    hung_qemu_is_ended("end-hung", OTHER)


def metrics_answer() -> None:
    assert 'panicd_domain_panicked{domain="dump"} 1' in str(answer("/metrics"))


def it_writes_to_its_two_places_only() -> None:
    mounts = dict(writable_mounts())
    scratch = {place for place, kind in mounts.items() if kind == "tmpfs"} - WRITTEN
    assert set(mounts) >= WRITTEN
    assert set(mounts) - scratch == WRITTEN, mounts
    top = Path(f"/proc/{inspected('.State.Pid')}/root")
    left = {
        str(path.relative_to(top))
        for place in scratch
        for path in (top / place[1:]).rglob("*")
        if path.is_file() and not path.is_symlink() and str(path.parent) not in WRITTEN
    }
    assert left <= {"run/.containerenv"}, left  # podman's own


def it_stops_in_time() -> None:
    began = time.monotonic()
    run("podman", "stop", "--time", "60", "panicd")
    took = time.monotonic() - began
    assert inspected(".State.ExitCode") == "0"
    assert took < 30, took
    assert main_pid("dump") > 0  # the VM stays


def root_without_capabilities_reaches_nobody_s_monitor() -> None:
    command = [word for word in documented() if not word.startswith("--cap-add")]
    command[command.index("--detach")] = "--rm"
    command[command.index("panicd")] = "unable"
    done = subprocess.run(
        [*command, "probe", SOCKETS / "dump.qmp"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "Permission denied" in done.stdout + done.stderr, done


def as_the_qemus_user_it_starts_without_any() -> None:
    start_container(documented(user=VM, changes_show=True))
    status = process_status()
    assert set(status["Uid"]) == {str(pwd.getpwnam(VM).pw_uid)}
    assert status["CapEff"] == status["CapBnd"] == status["CapInh"] == ["0" * 16], status


def the_user_s_hung_qemu_is_ended() -> None:
    hung_qemu_is_ended("end-hung", VM)


def it_changes_nothing_of_its_image() -> None:
    # By podman: the places of the mounts, and the user's name.
    made = {"/etc/panicd", str(SOCKETS), *WRITTEN, "/etc/passwd", "/etc/group"}
    made |= {str(parent) for place in made for parent in Path(place).parents}
    changed = {line.split()[1] for line in run("podman", "diff", inspected(".Id")).splitlines()}
    assert changed <= made, changed - made


STEPS = (
    the_image_is_small,
    the_image_holds_no_trace_of_its_build,
    as_root_it_starts_with_two_capabilities,
    it_says_that_it_is_healthy,
    memory_is_dumped,
    a_panicked_guest_is_destroyed,
    another_user_s_hung_qemu_is_ended,
    metrics_answer,
    it_writes_to_its_two_places_only,
    it_stops_in_time,
    root_without_capabilities_reaches_nobody_s_monitor,
    as_the_qemus_user_it_starts_without_any,
    memory_is_dumped,
    the_user_s_hung_qemu_is_ended,
    metrics_answer,
    it_changes_nothing_of_its_image,
    it_stops_in_time,
)


if __name__ == "__main__":
    try:
        status = main(set_up, STEPS)
    except BaseException:
        subprocess.run(["podman", "logs", "panicd"], check=False)
        raise
    sys.exit(status)
