"""A real libvirtd with its own files, and the domains that it runs.

It is started by hand in a mount namespace of its own, where it finds its directories empty:
nothing of the host's libvirt is seen or touched, and nothing is left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import trio

from panicd.demo.guests import COUNTER_ADDRESS, Guest, write_rom
from panicd.demo.process import kill_by_pid_file
from panicd.demo.qemu import Watched
from panicd.demo.qmp import connect_qmp
from panicd.libvirt import requests
from panicd.libvirt.once import connected
from tests.parts.linux import Kernel, Trouble, make_initramfs
from tests.parts.patience import fail_after, patience
from tests.parts.qemu import qemu_binary
from tests.parts.windows import write_windows
from tests.rules.windows_memory import WindowsMemory

STARTS_WITHIN: Final = 30.0  # seconds
ANSWERS_WITHIN: Final = 60.0  # seconds; the first domain has libvirt ask QEMU what it can do

ROOT: Final = "PANICD_TEST_LIBVIRT_ROOT"
"""The environment variable that names a tree with another libvirtd and its QEMU, as debootstrap
unpacks one; they are run in it. virsh is the host's all the same."""

_START: Final = """
hostname "panicd-$$"  # libvirt won't migrate to the host where a domain is
root=$2
if [ -n "$root" ]; then
  for directory in /dev /proc /sys /tmp; do
    mount --rbind $directory "$root$directory"
  done
fi
for directory in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
  mkdir -p "$root$directory"
  mount -t tmpfs none "$root$directory"
done
cp "$1/qemu.conf" "$root/etc/libvirt/"
if [ -z "$root" ]; then
  for file in passwd group; do  # Debian's libvirt won't start without its own user
    { cat /etc/$file; [ $file = group ] || echo "libvirt-qemu:x:64055:64055::/:/bin/false"
      [ $file = passwd ] || echo "libvirt-qemu:x:64055:"; } >"$1/$file"
    mount --bind "$1/$file" /etc/$file
  done
fi
"""
_RUN: Final = """
exec chroot "$2/" sh -ec 'PATH=$2 exec "$(command -v libvirtd)" --config "$1/libvirtd.conf" \
  --pid-file "$1/libvirtd.pid"' sh "$1" "$1/path"
"""
"""It asks each QEMU of its PATH what that can do, 2 s each and one after the other."""

_LIBVIRTD: Final = """
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
log_outputs = "2:file:{directory}/libvirtd.log"
host_uuid = "{uuid}"
"""
_QEMU: Final = """
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
"""
_DOMAIN: Final = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    {boots}
  </os>
  <features><acpi/><vmcoreinfo state='on'/></features>
  <on_reboot>{on_reboot}</on_reboot>
  <on_crash>{on_crash}</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <panic model='isa'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='socket,id=panicd,path={monitor},server=on,wait=off'/>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='chardev:panicd'/>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='socket,id=witness,path={witness},server=on,wait=off'/>
    <qemu:arg value='-mon'/>
    <qemu:arg value='chardev=witness,mode=control'/>
    {arguments}
  </qemu:commandline>
</domain>
"""


_AS_VIRT_INSTALL_MAKES_IT: Final = """
<domain type="qemu">
  <name>{name}</name>
  <memory>{memory}</memory>
  <currentMemory>{memory}</currentMemory>
  <vcpu>1</vcpu>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    {boots}
  </os>
  <features><acpi/><apic/>{features}</features>
  <clock offset="utc">
    <timer name="rtc" tickpolicy="catchup"/>
    <timer name="pit" tickpolicy="delay"/>
    <timer name="hpet" present="no"/>
  </clock>
  <on_crash>{on_crash}</on_crash>
  <pm><suspend-to-mem enabled="no"/><suspend-to-disk enabled="no"/></pm>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type="usb" model="qemu-xhci" ports="15"/>
    <controller type="pci" model="pcie-root"/>
    {ports}
    <console type="pty"/>
    <input type="tablet" bus="usb"/>
    <graphics type="vnc" port="-1" socket="{vnc}"/>
    <video><model type="vga"/></video>
    <memballoon model="virtio"/>
    <rng model="virtio"><backend model="random">/dev/urandom</backend></rng>
    {panic}
  </devices>
</domain>
"""
"""As ``virt-install 4.1 --import --disk none --panic default --events on_crash=…`` makes one, but
for what it boots, a display that is no port of the host's, and vmcoreinfo where it is wanted."""

PANIC: Final = '<panic model="isa"/>'


def emulator(directory: Path) -> Path:
    """The QEMU of a libvirtd: the only one that is on its PATH.

    Args:
        directory: the libvirtd's.
    """
    return directory / "path" / "qemu-system-x86_64"


class LibvirtMissingError(Exception):
    """No libvirtd can be run here; the message says why."""


class OfLibvirt:
    """A domain as libvirt tells of it.

    Attributes:
        name: the domain's.
    """

    _libvirtd: Libvirtd
    name: str

    async def state(self) -> str:
        """How libvirt says that it stands, and why."""
        return await self._libvirtd.virsh("domstate", "--reason", self.name)

    async def wait_state(self, state: str) -> None:
        """Wait until it stands so: libvirt takes in what happens after it has told others."""
        while await self.state() != state:
            pass  # each look is a process

    async def resume(self) -> None:
        """Let it run."""
        await self._libvirtd.virsh("resume", self.name)

    async def live(self, element: str) -> str:
        """An element of its live XML."""
        return await self._libvirtd.virsh("dumpxml", self.name, "--xpath", f"//{element}/text()")


class LibvirtVm(Watched, OfLibvirt):
    """A domain that libvirt runs, seen from a monitor that libvirt does not know of."""

    def __init__(self, libvirtd: Libvirtd, name: str, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # what Watched takes
        self._libvirtd = libvirtd
        self.name = name

    async def own(self, element: str) -> str:
        """An element of the XML that the domain is started from next time."""
        command = ("dumpxml", self.name, "--inactive", "--xpath", f"//{element}/text()")
        return await self._libvirtd.virsh(*command)


class PlainDomain(OfLibvirt):
    """A domain that nobody but libvirt can reach."""

    def __init__(self, libvirtd: Libvirtd, name: str) -> None:
        self._libvirtd = libvirtd
        self.name = name

    async def press_key(self) -> None:
        """Have ``Guest.PANIC_ON_KEY`` panic."""
        await self._libvirtd.virsh("send-key", self.name, "KEY_A")

    async def inject_nmi(self) -> None:
        """Send it an NMI."""
        await self._libvirtd.virsh("inject-nmi", self.name)

    async def xml(self, *options: str) -> str:
        """Its XML."""
        return await self._libvirtd.virsh("dumpxml", self.name, *options)

    async def start(self) -> None:
        """Start it again."""
        await self._libvirtd.virsh("start", self.name)

    async def counter(self) -> int:
        """What the guest has counted up to."""
        async with connected(self._libvirtd.uri) as client:
            listed = await client.call(requests.list_domains(), timeout=ANSWERS_WITHIN)
            (domain,) = [domain for domain in listed if domain.name == self.name]
            request = requests.peek(domain, COUNTER_ADDRESS, 4)
            return int.from_bytes(await client.call(request, timeout=ANSWERS_WITHIN), "little")

    async def wait_counting(self) -> None:
        """Wait until the guest is seen to run."""
        first = await self.counter()
        while await self.counter() == first:
            pass  # each look lets the guest run meanwhile


class Libvirtd:
    """A running libvirtd.

    Attributes:
        uri: where it is reached.
    """

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self._directory = directory
        self._process = process
        self.uri = f"qemu:///system?socket={directory}/libvirt-sock"

    @classmethod
    @contextmanager
    def start(cls, directory: Path) -> Iterator[Libvirtd]:
        """Run a libvirtd until this ends.

        Args:
            directory: for its sockets and its log; a short path.

        Raises:
            LibvirtMissingError: it can't be run here.
        """
        root = os.environ.get(ROOT, "").rstrip("/")
        for program in (*(() if root else ("libvirtd",)), "virsh", "unshare"):
            if shutil.which(program) is None:
                raise LibvirtMissingError(f"{program} is not installed")
        if os.geteuid() != 0:
            raise LibvirtMissingError("a mount namespace takes root")
        own = _LIBVIRTD.format(directory=directory, uuid=uuid4())
        (directory / "libvirtd.conf").write_text(own)
        (directory / "qemu.conf").write_text(_QEMU)
        emulator(directory).parent.mkdir()
        emulator(directory).symlink_to(qemu_binary())
        script = ["sh", "-ec", _START + _RUN, "sh", str(directory), root]
        libvirtd: Libvirtd | None = None
        try:
            libvirtd = cls(directory, _start(directory, ["unshare", "--mount", "--uts", *script]))
            yield libvirtd
        except TimeoutError:
            raise LibvirtMissingError((directory / "stderr").read_text()) from None
        finally:
            if libvirtd is not None:
                libvirtd._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        self._process.wait()

    @contextmanager
    def away(self, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
        """End it, and start it again afterwards, with all that it had; its QEMUs run on."""
        root = os.environ.get(ROOT, "").rstrip("/")
        with Path(f"/proc/{self.pid}/ns/mnt").open() as namespace:
            self._end(number)
            try:
                yield
            finally:
                place = f"--mount=/proc/{os.getpid()}/fd/{namespace.fileno()}"
                script = ["sh", "-ec", _RUN, "sh", str(self._directory), root]
                self._process = _start(self._directory, ["nsenter", place, *script])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it in its tracks (SIGSTOP) while this lasts: it takes connections, and is silent."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def virsh(self, *arguments: str) -> str:
        """Run a virsh that must succeed, and return what it prints."""
        with fail_after(ANSWERS_WITHIN):
            finished = await trio.run_process(
                ["virsh", "--quiet", "--connect", self.uri, *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        assert finished.returncode == 0, finished.stderr.decode()
        return finished.stdout.decode().strip()

    async def version(self) -> tuple[int, ...]:
        """libvirtd's version."""
        found = re.search(r"daemon: ([\d.]+)", await self.virsh("version", "--daemon"))
        assert found is not None
        return tuple(map(int, found[1].split(".")))

    @asynccontextmanager
    async def domain(
        self,
        directory: Path,
        on_crash: str,
        *,
        name: str = "vm",
        on_reboot: str = "restart",
        guest: Guest | tuple[Kernel, Trouble] | WindowsMemory = Guest.PANIC_ON_KEY,
        paused: bool = False,
    ) -> AsyncIterator[LibvirtVm]:
        """Define a domain and start it; in the end it is gone.

        Args:
            directory: for its monitors, where panicd looks for them; a short path.
            on_crash: libvirt's own policy.
            name: the domain's.
            on_reboot: what libvirt does when it is reset.
            guest: what runs in it: a small one, a Linux, and of what it panics, or what stands for
                a Windows, which panics at once.
            paused: leave the guest waiting (:meth:`OfLibvirt.resume`).
        """
        witness = directory / f"{name}.witness"
        rom, xml = directory / f"{name}.rom", directory / f"{name}.xml"
        arguments: list[str] = []
        if isinstance(guest, WindowsMemory):
            rom, arguments = write_windows(directory, guest)
            memory, boots = 32, f"<loader type='rom' readonly='yes'>{rom}</loader>"
        elif isinstance(guest, Guest):
            write_rom(guest, rom)
            memory, boots = 32, f"<loader type='rom' readonly='yes'>{rom}</loader>"
        else:
            rom.write_bytes(make_initramfs(*guest))
            memory, boots = 128, f"<kernel>{guest[0].image}</kernel><initrd>{rom}</initrd>"
        xml.write_text(
            _DOMAIN.format(
                name=name,
                memory=memory,
                boots=boots,
                on_crash=on_crash,
                on_reboot=on_reboot,
                emulator=emulator(self._directory),
                monitor=directory / f"{name}.qmp",
                witness=witness,
                arguments="".join(f"<qemu:arg value='{argument}'/>" for argument in arguments),
            )
        )
        await self.virsh("define", str(xml))
        try:
            await self.virsh("start", name, *(("--paused",) if paused else ()))
            async with connect_qmp(witness) as client:
                yield LibvirtVm(self, name, client)
        finally:
            # QEMU is no child of anybody's here, and must not outlive its libvirtd.
            run = Path(f"/proc/{self.pid}/root/run/libvirt/qemu")
            await kill_by_pid_file(run / f"{name}.pid", f"guest={name}")
            with trio.CancelScope(shield=True):
                await self.forget(name)

    @asynccontextmanager
    async def plain_domain(
        self,
        directory: Path,
        on_crash: str,
        *,
        name: str = "vm",
        guest: Guest | tuple[Kernel, Trouble] = Guest.PANIC_ON_KEY,
        panic: str = PANIC,
        ports: int = 1,
        vmcoreinfo: bool = False,
        paused: bool = False,
    ) -> AsyncIterator[PlainDomain]:
        """Define a domain as virt-install does, and start it; in the end it is gone.

        Args:
            directory: for what it boots; a short path.
            on_crash: libvirt's own policy.
            name: the domain's.
            guest: what runs in it: a small one, or a Linux, and of what it panics.
            panic: its panic device.
            ports: PCIe root ports that it has; virt-install gives it 14 where it knows its system.
            vmcoreinfo: its kernel can leave a note on itself.
            paused: leave the guest waiting (:meth:`OfLibvirt.resume`).
        """
        rom, xml = directory / f"{name}.rom", directory / f"{name}.xml"
        if isinstance(guest, Guest):
            write_rom(guest, rom)
            memory, boots = 32768, f"<loader type='rom' readonly='yes'>{rom}</loader>"
        else:
            rom.write_bytes(make_initramfs(*guest))
            memory, boots = 262144, f"<kernel>{guest[0].image}</kernel><initrd>{rom}</initrd>"
            boots += f"<cmdline>{guest[1].append}</cmdline>" if guest[1].append else ""
        xml.write_text(
            _AS_VIRT_INSTALL_MAKES_IT.format(
                name=name,
                memory=memory,
                boots=boots,
                features="<vmcoreinfo state='on'/>" if vmcoreinfo else "",
                on_crash=on_crash,
                emulator=emulator(self._directory),
                vnc=directory / f"{name}.vnc",
                panic=panic,
                ports='<controller type="pci" model="pcie-root-port"/>' * ports,
            )
        )
        await self.virsh("define", str(xml))
        try:
            await self.virsh("start", name, *(("--paused",) if paused else ()))
            yield PlainDomain(self, name)
        finally:
            run = Path(f"/proc/{self.pid}/root/run/libvirt/qemu")
            await kill_by_pid_file(run / f"{name}.pid", f"guest={name}")
            with trio.CancelScope(shield=True):
                await self.forget(name)

    async def forget(self, name: str) -> None:
        """Have a domain gone, as far as libvirtd can see to that."""
        self._process.send_signal(signal.SIGCONT)
        await trio.run_process(
            [
                "virsh",
                "--quiet",
                "--connect",
                self.uri,
                f"destroy {name}; undefine --managed-save {name}",
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


def _start(directory: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a libvirtd, and wait until it says that it is ready.

    Raises:
        TimeoutError: it does not.
    """
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(ready))
        manager.settimeout(patience(STARTS_WITHIN))
        with (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, "NOTIFY_SOCKET": str(ready)},
            )
        try:
            _await_ready(manager, process)
        except TimeoutError:
            process.kill()
            process.wait()
            raise
    return process


def _await_ready(manager: socket.socket, process: subprocess.Popen[bytes]) -> None:
    while b"READY=1" not in manager.recv(4096).splitlines():
        assert process.poll() is None
