"""What a clone is set up and checked with: Makefile, .ci/, the pinned requirements."""

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.parts.nobody import needs_root
from tests.service.on_image import WRITTEN, documented

ROOT = Path(__file__).parents[2]
RUNTIME_PINS = ROOT / "config/requirements.txt"
BUILD_PINS = ROOT / "config/build-requirements.txt"
TEST_PINS = ROOT / "tests/requirements.txt"
NOBODY = 65534
REST = (
    "makedumpfile zstd prometheus-alertmanager busybox-static"
    " qemu-system-arm gcc-aarch64-linux-gnu make"
    " libvirt-daemon dbus-daemon libvirt-clients groff-base libosinfo-bin"
)


def pins(path: Path) -> dict[str, str]:
    """Return name -> version; a line that is not an exact pin, with hashes, fails here."""
    versions: dict[str, str] = {}
    for line in path.read_text().replace("\\\n", "").splitlines():
        text, *hashes = line.partition("#")[0].split("--hash=")
        if text.strip():
            requirement = Requirement(text.strip())
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            assert hashes, line
            assert all(re.fullmatch("sha256:[0-9a-f]{64}", each.strip()) for each in hashes), line
            versions[canonicalize_name(requirement.name)] = specifier.version
    return versions


def project() -> dict[str, list[str]]:
    """Return the requirements that each pin file has to satisfy."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = document["project"]["dependencies"]
    test = document["project"]["optional-dependencies"]["test"]
    build = document["build-system"]["requires"]
    return {
        "config/requirements.txt": runtime,
        "config/build-requirements.txt": build,
        "tests/requirements.txt": runtime + test + build,
    }


@pytest.mark.parametrize(
    ("path", "requirement"),
    [(path, requirement) for path, listed in project().items() for requirement in listed],
)
def test_each_dependency_is_pinned_within_its_bounds(path: str, requirement: str) -> None:
    wanted = Requirement(requirement)

    pinned = pins(ROOT / path).get(canonicalize_name(wanted.name))

    assert pinned is not None, f"{wanted.name} is not in {path}: run `make requirements`"
    assert wanted.specifier.contains(pinned, prereleases=True), "run `make requirements`"


def test_the_tests_run_with_what_is_shipped() -> None:
    assert pins(RUNTIME_PINS).items() <= pins(TEST_PINS).items()
    assert pins(BUILD_PINS).items() <= pins(TEST_PINS).items()


@pytest.mark.parametrize(
    ("file", "count"),
    [
        (".ci/setup", 2),
        ("Containerfile", 4),
        ("share/package/stage", 1),
        ("share/package/version.sh", 1),
    ],
)
def test_nothing_is_installed_that_has_no_hash(file: str, count: int) -> None:
    """A pip that fetches wants hashes; one that has them all by then is kept from fetching."""
    text = (ROOT / file).read_text().replace("\\\n", "").replace('"${pip[@]}"', "pip install")
    commands = re.findall(r"^(?:RUN)?[^#(\n]*pip (?:install|wheel|download) .*", text, re.MULTILINE)
    commands = [each for line in commands for each in line.split("&&") if "pip" in each]
    commands = [each for each in commands if "uninstall" not in each and "-m venv" not in each]
    assert len(commands) == count
    for command in commands:
        fetches_nothing = "--no-build-isolation" in command or "--no-index" in command
        assert "--require-hashes" in command or ("--no-deps" in command and fetches_nothing)


@pytest.mark.parametrize("path", [RUNTIME_PINS, BUILD_PINS, TEST_PINS], ids=lambda path: path.stem)
@pytest.mark.parametrize("forbidden", ["://", "file:", "--index-url", "--find-links", " @ "])
def test_pins_name_no_place_to_fetch_from(path: Path, forbidden: str) -> None:
    assert forbidden not in path.read_text()


@pytest.mark.parametrize(
    "target",
    [
        *("help", "test", "release-test", "service-test", "package-test", "image-test", "demo"),
        *("deb", "rpm", "release", "lint", "reference", "requirements", "clean"),
    ],
)
def test_make_target_exists(target: str) -> None:
    dry_run = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert dry_run.returncode == 0, dry_run.stderr


def test_make_test_sets_up_and_passes_arguments_to_pytest() -> None:
    dry_run = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "test", "ARGS=-k policy"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},  # these tests may themselves run under make
        capture_output=True,
        text=True,
        check=True,
    )

    assert dry_run.stdout.splitlines() == [
        ".ci/setup test",
        ".venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -k policy",
    ]


@pytest.mark.parametrize(
    "script",
    [
        *(".ci/run", ".ci/setup", ".ci/install", ".ci/on"),
        *("share/package/deb", "share/package/rpm", "share/package/stage", "share/package/slim"),
        "share/package/release",
        *("tests/service/container", "tests/service/image", "tests/service/package"),
    ],
)
def test_script_can_be_run(script: str) -> None:
    path = ROOT / script

    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def test_ci_runs_make_test_last() -> None:
    # Last and without a pipe, so that its exit status and pytest's summary line are the run's.
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make --no-print-directory test"


@pytest.fixture
def foreign_clone() -> Iterator[Path]:
    """A copy of what set-up reads that a user other than root can read and not write."""
    with tempfile.TemporaryDirectory(prefix="panicd-clone-") as name:
        clone = Path(name)
        clone.chmod(0o755)
        for path in (".ci/setup", ".ci/install", "pyproject.toml"):
            (clone / path).parent.mkdir(exist_ok=True, mode=0o755)
            shutil.copy(ROOT / path, clone / path)
            (clone / path).chmod(0o755)
        yield clone


def set_up_as_another_user(
    clone: Path, purpose: str, *, present: frozenset[str]
) -> subprocess.CompletedProcess[str]:
    """Run .ci/setup without root's rights, on a PATH with the shell's needs and `present`."""
    programs = clone / "bin"
    programs.mkdir(mode=0o755)
    for name in ("bash", "dirname", "env"):
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name in present:
        (programs / name).write_text("#!/bin/bash\nexit 0\n")
        (programs / name).chmod(0o755)
    return subprocess.run(
        [clone / ".ci/setup", purpose],
        env={"PATH": str(programs)},
        user=NOBODY if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("purpose", "present", "missing"),
    [
        ("demo", frozenset({"python3"}), "qemu-system-x86"),
        ("demo", frozenset({"qemu-system-x86_64"}), "python3 python3-venv"),
        ("demo", frozenset[str](), "python3 python3-venv qemu-system-x86"),
        (
            "test",
            frozenset({"python3", "systemd-analyze"}),
            f"qemu-system-x86 prometheus {REST}",
        ),
    ],
)
def test_another_user_is_told_exactly_what_is_missing(
    foreign_clone: Path, purpose: str, present: frozenset[str], missing: str
) -> None:
    told = set_up_as_another_user(foreign_clone, purpose, present=present)

    assert told.returncode == 1
    assert told.stderr.splitlines() == [
        f"panicd's set-up: these Debian packages are missing: {missing}",
        "Install them, as root, with:",
        f"  apt-get install --no-install-recommends {missing}",
    ]


INSTALLED_APART = """
mount -t tmpfs none /etc/systemd/system
mount -t tmpfs none /usr/sbin
mkdir /etc/systemd/system/multi-user.target.wants
ln -s /lib/systemd/system/here.service /etc/systemd/system/multi-user.target.wants/
exec "$1" virtual-machines
"""
APT_GET = """#!/bin/sh
case "$*" in *virtual-machines)
  mkdir -p /etc/systemd/system/sockets.target.wants
  ln -s /lib/systemd/system/virtlogd.socket /etc/systemd/system/sockets.target.wants/
  ln -s /lib/systemd/system/libvirt-guests.service /etc/systemd/system/multi-user.target.wants/
esac
"""
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*"
"""


@needs_root
def test_what_is_installed_does_not_start_at_the_next_boot(tmp_path: Path) -> None:
    for name, text in (("apt-get", APT_GET), ("systemctl", SYSTEMCTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    done = subprocess.run(
        ["unshare", "--mount", "bash", "-euc", INSTALLED_APART, "bash", ROOT / ".ci/install"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert done.stdout.splitlines() == [
        "panicd's set-up: installing virtual-machines",
        "systemctl disable --quiet libvirt-guests.service virtlogd.socket",
    ]


def test_setup_refuses_an_unknown_purpose() -> None:
    refused = subprocess.run(
        [ROOT / ".ci/setup", "everything"], capture_output=True, text=True, check=False
    )

    assert (refused.returncode, refused.stderr) == (2, "usage: .ci/setup test | demo\n")


def test_the_container_s_documented_command_grants_little() -> None:
    command = documented()
    assert {word for word in command if word.startswith(("--cap", "--privileged"))} == {
        *("--cap-drop=all", "--cap-add=dac_override", "--cap-add=kill"),
    }
    assert "--read-only" in command
    mounts = {word.split(":")[0] for word in command if word.startswith("/") and word[-3:] != ":ro"}
    assert mounts == WRITTEN
