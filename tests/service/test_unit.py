"""The systemd unit: correct, narrow enough, and still wide enough for the daemon's work."""

import re
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd/panicd.service"
EXPOSURE_LIMIT = 21  # tenths, as --threshold takes them: at most 2.1 of 10


def settings(key: str) -> list[str]:
    """All values of a key, in order: a key may stand more than once (systemd.syntax(7))."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    # The program must exist for this, and is not installed here.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/panicd", "/bin/true"))

    verified = analyze("verify", "--man=no", unit)

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_exposure_is_below_the_limit() -> None:
    rated = analyze("security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", UNIT)

    assert rated.returncode == 0, rated.stdout + rated.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("ExecStart", "/usr/bin/panicd run"),
        ("ExecReload", "/usr/bin/panicd reload"),
        ("WatchdogSec", "30s"),
        ("Restart", "always"),
        # A crash loop must not end with the domains unwatched (a bad configuration may: it exits
        # with status 2).
        ("StartLimitIntervalSec", "0"),
        ("RestartPreventExitStatus", "2"),
        # A VM that a relaunch command left as its child survives a restart of the daemon.
        ("KillMode", "process"),
        ("UMask", "0077"),
        ("ProtectSystem", "strict"),
        ("RuntimeDirectory", "panicd"),
        ("StateDirectory", "panicd"),
        # Three descriptors for each of 2,000 domains, and room.
        ("LimitNOFILE", "65536"),
        # The journal's thread begins at nice 0, and goes back to that of the unit.
        ("LimitNICE", "-5"),
        ("Documentation", "man:panicd(1) man:panicd.yaml(5)"),
        # Not more, and not less: other users' monitors, and other users' processes.
        ("CapabilityBoundingSet", "CAP_DAC_OVERRIDE CAP_KILL"),
        # /proc/PID of any user, and the boot ID in /proc/sys.
        ("ProtectProc", "default"),
        ("ProcSubset", "all"),
        # The monitors of VMs that users run are seen.
        ("ProtectHome", "read-only"),
    ],
)
def test_what_the_daemon_relies_on(key: str, value: str) -> None:
    assert settings(key) == [value]


def test_the_priority_that_the_unit_allows_can_be_set() -> None:
    assert settings("SystemCallFilter")[-1] == "setpriority"
