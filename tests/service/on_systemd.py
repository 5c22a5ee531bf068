"""The installed service, tried on a machine that systemd runs: ``python3 on_systemd.py``.

For a machine that may be spoiled, such as the one that `make service-test` makes. It takes root,
panicd's package, a QEMU, and nothing beyond Python's own library. The
names of steps may be given, to take only those.
"""

import json
import os
import pwd
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.parts.slowness import slowness

CONFIG = Path("/etc/panicd/panicd.yaml")
DROP_INS = Path("/run/systemd/system/panicd.service.d")
SOCKETS = Path("/run/qemu")
HOOKED = Path("/var/lib/panicd/hooked")
USER = "vm"  # whose QEMUs are not root's

CONFIGURATION = """
monitors: [{glob: /run/qemu/*.qmp}, {listen: /run/panicd/qmp.sock}]
metrics: {web_config: /etc/panicd/web.yaml}
storm: "off"
notify:
  webhook: {url: "http://127.0.0.1:8099/told"}
  hook: {command: [/usr/local/bin/panicd-hook]}
defaults:
  on_crash: preserve
  timeouts: {quit: 2s, terminate: 2s}
  coredump: {min_free: 1%}
domains:
  - {match: dump, on_crash: coredump-preserve}
  - {match: end, on_crash: destroy}
  - match: again
    on_crash: restart
    relaunch: {command: [/usr/bin/systemctl, restart, vm-again]}
  - {match: "anew-*", on_crash: restart, relaunch: {unit: "vm@{domain}.service"}}
"""

UNIT = """
[Service]
User=vm
ExecStart=/usr/bin/qemu-system-x86_64 -m 16 -display none -name %I -device pvpanic -no-reboot \\
  -chardev socket,id=panicd,path=/run/qemu/%I.qmp,server=on,wait=off -qmp chardev:panicd \\
  -chardev socket,id=own,path=/run/qemu/%I.own,server=on,wait=off -mon own,mode=readline
"""

told: list[Any] = []


class Webhook(BaseHTTPRequestHandler):
    """Takes what it is told."""

    def do_POST(self) -> None:
        told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def run(*command: str, status: int | None = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert status is None or done.returncode == status, (command, done)
    return done.stdout


def asked(*command: str) -> Any:
    return json.loads(run("panicd", *command, "--json"))


def until(what: str, holds: Callable[[], Any], limit: float = 30) -> Any:
    """Wait for a state that nothing tells of; on a busy machine longer than ``limit`` seconds."""
    pause = threading.Event()
    began = time.monotonic()
    while not (found := holds()):
        if time.monotonic() > began + limit * slowness():
            print(run("journalctl", "--unit", "panicd", "--lines", "30", "--output", "cat"))
            raise AssertionError(f"not within {limit} s: {what}")
        pause.wait(0.1)
    return found


def shown(key: str) -> str:
    return run("systemctl", "show", "panicd", "--value", "-p", key).strip()


def domain(name: str) -> Any:
    return next((d for d in asked("status")["domains"] if d["domain"] == name), None)


def incident(name: str) -> Any:
    found = asked("incidents", "--domain", name)["incidents"]
    return found[0] if found else None


def start_vm(name: str, *, dial_in: bool = False) -> None:
    extra = ("--dial-in", "/run/panicd/qmp.sock") if dial_in else ()
    text = run("panicd", "qemu-args", "--name", name, *extra)
    arguments = shlex.split(text, comments=True)
    own = f"socket,id=own,path={SOCKETS / name}.own,server=on,wait=off"
    run(
        *("systemd-run", "--quiet", "--collect", "--unit", f"vm-{name}"),
        *(() if dial_in else ("--uid", USER)),
        *("/usr/bin/qemu-system-x86_64", "-m", "16", "-display", "none", "-vga", "std", *arguments),
        *("-chardev", own, "-mon", "chardev=own,mode=readline"),
    )
    until(f"{name} is armed", lambda: (d := domain(name)) and d["armed"] == "yes")


def panic(name: str) -> None:
    with socket(AF_UNIX) as monitor:
        monitor.connect(f"{SOCKETS / name}.own")
        monitor.sendall(b"o /b 0x505 1\n")
        until(f"{name}'s incident", lambda: incident(name))


def main_pid(unit: str) -> int:
    return int(run("systemctl", "show", unit, "--value", "-p", "MainPID"))


def drop_in(text: str) -> None:
    DROP_INS.mkdir(parents=True, exist_ok=True)
    (DROP_INS / "test.conf").write_text(text)
    run("systemctl", "daemon-reload")


def set_up() -> None:
    run("systemctl", "stop", "panicd", "vm-*", status=None)
    shutil.rmtree(DROP_INS, ignore_errors=True)
    shutil.rmtree("/var/lib/panicd", ignore_errors=True)
    run("systemctl", "daemon-reload")
    if USER not in {entry.pw_name for entry in pwd.getpwall()}:
        run("useradd", "--system", "--no-create-home", USER)
    SOCKETS.mkdir(exist_ok=True)
    os.chown(SOCKETS, pwd.getpwnam(USER).pw_uid, -1)
    hook = Path("/usr/local/bin/panicd-hook")
    hook.write_text(f'#!/bin/sh\necho "$PANICD_NOTICE $PANICD_DOMAIN nice $(nice)" >>{HOOKED}\n')
    hook.chmod(0o755)
    hashed = run(
        "/usr/lib/panicd/bin/python3",
        *("-c", "import bcrypt; print(bcrypt.hashpw(b'secret', bcrypt.gensalt(6)).decode())"),
    )
    (CONFIG.parent / "web.yaml").write_text(f"basic_auth_users: {{ops: {hashed.strip()}}}\n")
    CONFIG.write_text(CONFIGURATION)
    receiver = HTTPServer(("127.0.0.1", 8099), Webhook)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()


def it_starts() -> None:
    run("systemctl", "enable", "panicd")
    run("systemctl", "start", "panicd")
    assert (shown("ActiveState"), shown("NotifyAccess")) == ("active", "main")
    until("it says how its domains stand", lambda: shown("StatusText"))
    start_vm("left")


def it_is_confined() -> None:
    rated = run("systemd-analyze", "security", "--threshold=21", "--no-pager", "panicd")
    assert rated
    status = Path(f"/proc/{main_pid('panicd')}/status").read_text().split()
    assert status[status.index("CapEff:") + 1] == f"{1 << 1 | 1 << 5:016x}"
    assert status[status.index("NoNewPrivs:") + 1] == "1"
    threads = [int(path.name) for path in Path(f"/proc/{main_pid('panicd')}/task").iterdir()]
    nice = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert nice[main_pid("panicd")] == -5
    # LimitNICE is in force only where systemd itself may raise it (CAP_SYS_RESOURCE).
    may, _ = resource.prlimit(main_pid("panicd"), resource.RLIMIT_NICE)
    journals = 1 if may >= 25 else 0
    assert list(nice.values()).count(-5) == 1 + journals, (nice, may)


def a_panic_is_preserved_with_evidence_and_told() -> None:
    panic("left")
    until("evidence", lambda: incident("left")["incident_state"] == "preserved")
    bundle = Path("/var/lib/panicd/incidents") / incident("left")["incident"]
    assert {"bundle.json", "registers.txt", "screen.png"} <= {
        path.name for path in bundle.iterdir()
    }
    until("the webhook", lambda: [t for t in told if t["incident"]["domain"] == "left"])
    until("the hook", lambda: HOOKED.exists() and "panicked left nice 0" in HOOKED.read_text())


def memory_is_dumped() -> None:
    start_vm("dump")
    panic("dump")
    until("the dump's end", lambda: incident("dump")["incident_state"] == "preserved")
    dumps = list(Path("/var/lib/panicd/coredumps").glob("*/dump/*"))
    assert any(path.stat().st_size > 10_000 for path in dumps), dumps


def another_user_s_hung_qemu_is_ended() -> None:
    start_vm("end")
    process = main_pid("vm-end")
    with socket(AF_UNIX) as monitor:
        monitor.connect(f"{SOCKETS / 'end'}.own")
        run("panicd", "hold", "end", "--why", "so that it hangs before it is ended")
        monitor.sendall(b"o /b 0x505 1\n")
        until("the incident", lambda: incident("end"))
    os.kill(process, signal.SIGSTOP)
    run("panicd", "unhold", "end", "--why", "go")
    until("the process is gone", lambda: not Path(f"/proc/{process}").exists())
    until("the incident's end", lambda: incident("end")["incident_state"] == "closed")


def a_vm_that_dialled_in_is_reset() -> None:
    start_vm("again", dial_in=True)
    panic("again")
    until("the restart", lambda: incident("again")["incident_state"] == "closed")


def start_vm_unit(name: str, unit: str) -> None:
    Path("/run/systemd/system/vm@.service").write_text(UNIT)
    run("systemctl", "daemon-reload")
    run("systemctl", "start", unit)
    until("it is armed", lambda: (d := domain(name)) and d["armed"] == "yes")


def a_vm_that_can_t_be_reset_is_started_anew_by_its_unit() -> None:
    name, unit = "anew-1", "vm@anew\\x2d1.service"
    start_vm_unit(name, unit)
    before = main_pid(unit)
    panic(name)
    until("the relaunch", lambda: incident(name)["incident_state"] == "closed")
    assert incident(name)["ending"] == "relaunched", incident(name)
    assert main_pid(unit) not in {0, before}
    until("it is armed again", lambda: (d := domain(name)) and d["armed"] == "yes")


def a_page_asks_who_reads() -> None:
    request = Request("http://127.0.0.1:10077/metrics")
    try:
        urlopen(request, timeout=10).close()  # noqa: S310 - our own loopback
        status = 200
    except HTTPError as refused:
        status = refused.code
    assert status == 401
    request.add_header("Authorization", "Basic b3BzOnNlY3JldA==")
    with urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        assert b'panicd_domain_panicked{domain="left"} 1' in answer.read()


def a_reload_is_all_or_nothing() -> None:
    CONFIG.write_text(CONFIGURATION.replace("on_crash: preserve", "on_crash: ignore", 1))
    run("systemctl", "reload", "panicd")
    in_force = domain("left")["on_crash"]
    CONFIG.write_text("monitors: none\n")
    run("systemctl", "reload", "panicd", status=1)
    assert (shown("ActiveState"), domain("left")["on_crash"], in_force) == (
        "active",
        *["ignore"] * 2,
    )
    CONFIG.write_text(CONFIGURATION)
    run("systemctl", "reload", "panicd")


def an_open_incident_outlives_a_restart() -> None:
    before, directory = incident("left"), Path("/run/panicd").stat().st_ino
    run("systemctl", "restart", "panicd")
    until("left is armed", lambda: (d := domain("left")) and d["armed"] == "yes")
    assert incident("left") == before
    assert Path("/run/panicd").stat().st_ino == directory
    until("again dials in anew", lambda: (d := domain("again")) and d["armed"] == "yes")


def a_wedged_daemon_is_started_anew() -> None:
    wedged = main_pid("panicd")
    os.kill(wedged, signal.SIGSTOP)
    until("another process", lambda: main_pid("panicd") not in {0, wedged}, limit=100)
    until("it is ready", lambda: shown("ActiveState") == "active")
    until("left is armed", lambda: (d := domain("left")) and d["armed"] == "yes")
    assert "watchdog" in run("journalctl", "-b", "-o", "cat", "-u", "panicd").lower()
    assert incident("left")["incident_state"] == "preserved"


def a_stop_leaves_the_vms() -> None:
    run("systemctl", "stop", "panicd")
    assert shown("Result") == "success"
    assert main_pid("vm-left") > 0


def a_bad_configuration_is_not_tried_again() -> None:
    CONFIG.write_text("monitors: none\n")
    run("systemctl", "start", "panicd", status=1)
    assert (shown("ExecMainStatus"), shown("ActiveState")) == ("2", "failed")
    CONFIG.write_text(CONFIGURATION)


def it_works_for_one_user_without_root() -> None:
    drop_in((Path(__file__).parents[2] / "systemd/unprivileged.conf").read_text())
    web = CONFIG.parent / "web.yaml"
    os.chown(web, 0, pwd.getpwnam(USER).pw_gid)
    web.chmod(0o640)
    run("systemctl", "restart", "panicd")
    status = Path(f"/proc/{main_pid('panicd')}/status").read_text().split()
    assert status[status.index("CapEff:") + 1] == "0" * 16
    until("left is armed", lambda: (d := domain("left")) and d["armed"] == "yes")
    start_vm("end")
    process = main_pid("vm-end")
    panic("end")
    until("the process is gone", lambda: not Path(f"/proc/{process}").exists())
    start_vm_unit("anew-2", "vm@anew\\x2d2.service")
    panic("anew-2")
    until("the refusal", lambda: incident("anew-2")["incident_state"] == "failed")
    told_why = run("panicd", "incident", incident("anew-2")["incident"])
    # Without polkit; with it, and no rule of its, systemd wants a password.
    assert "vm@anew\\x2d2.service: Permission denied" in told_why, told_why
    run("systemctl", "stop", "panicd")


STEPS = (
    it_starts,
    it_is_confined,
    a_panic_is_preserved_with_evidence_and_told,
    memory_is_dumped,
    another_user_s_hung_qemu_is_ended,
    a_vm_that_dialled_in_is_reset,
    a_vm_that_can_t_be_reset_is_started_anew_by_its_unit,
    a_page_asks_who_reads,
    a_reload_is_all_or_nothing,
    an_open_incident_outlives_a_restart,
    a_wedged_daemon_is_started_anew,
    a_stop_leaves_the_vms,
    a_bad_configuration_is_not_tried_again,
    it_works_for_one_user_without_root,
)


def main(prepare: Callable[[], None], steps: Iterable[Callable[[], None]]) -> int:
    """Take the steps that the command line names, or all; return the exit status."""
    if os.geteuid() != 0 or not Path("/run/systemd/system").is_dir():
        print("this takes root, on a machine that systemd runs and that may be spoiled")
        return 2
    prepare()
    chosen = sys.argv[1:]
    for step in (s for s in steps if not chosen or s.__name__ in chosen):
        began = time.monotonic()
        step()
        print(f"{time.monotonic() - began:5.1f} s  {step.__name__.replace('_', ' ')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(set_up, STEPS))
