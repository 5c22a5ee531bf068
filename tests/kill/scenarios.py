"""What is done to a domain, policy by policy, and what is to come of it though panicd dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.parts.profile import QEMU_1_6, QEMU_2_5, QEMU_2_6

GONE = "gone"
"""Stands for the run state of a QEMU that has ended."""


class Kind(StrEnum):
    """Which VM a scenario is tried on."""

    FAKE = "fake"
    REAL = "real"
    FAKE_LIBVIRT = "fake libvirtd"
    REAL_LIBVIRT = "real libvirtd"


@dataclass(frozen=True)
class Result:
    """What has come of a panic when all is over.

    Attributes:
        became: The incident's ending; where it stays open, its state.
        guest: QEMU's run state, or ``GONE``.
        commands: What QEMU carried out that does more than ask or prepare, in this order; None:
            whether it came to that is up to chance.
        actions: What ``panicd_actions_total`` counts.
        restarts: What ``panicd_domain_restarts_total`` counts.
        failures: What ``panicd_domain_action_failures_total`` counts.
        dumps: How many complete dumps there are.
    """

    became: str
    guest: str
    commands: tuple[str, ...] | None
    actions: Mapping[str, int] = field(default_factory=dict)
    restarts: int = 0
    failures: int = 0
    dumps: int = 0


@dataclass(frozen=True)
class Scenario:
    """One panic, and what panicd is to do about it.

    Attributes:
        name: For the report.
        policy: The configuration's ``defaults``.
        result: What is to come of it.
        request: What an operator asks once the guest is preserved: a command and its arguments.
        unasked: What comes of it where the request was not durable when panicd died: the operator
            has got no answer and knows it.
        machine: How the fake differs.
        fake: It is tried on the fake.
        arguments: How the real QEMU's command line differs; None: it is not tried on that.
        libvirt: It is tried on a fake libvirtd.
        real_libvirt: It is tried on a real libvirtd.
        refused: Commands that QEMU refuses, always.
        runs_on: The guest is not stopped by its panic: nobody can know of it who did not hear it.
        reset_leaves_no_trace: A QEMU whose run state does not tell that it was reset.
        hangs: QEMU stands still from its guest's panic on.
        relaunch: The domain has a relaunch command, which starts a QEMU of the same UUID.
    """

    name: str
    policy: Mapping[str, Any]
    result: Result
    request: tuple[str, Mapping[str, str]] | None = None
    unasked: Result | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    fake: bool = True
    arguments: tuple[str, ...] | None = ()
    libvirt: bool = False
    real_libvirt: bool = False
    refused: tuple[str, ...] = ()
    runs_on: bool = False
    reset_leaves_no_trace: bool = False
    hangs: bool = False
    relaunch: bool = False

    @property
    def kinds(self) -> set[Kind]:
        """What it is tried on."""
        tried = {
            Kind.FAKE: self.fake,
            Kind.REAL: self.arguments is not None,
            Kind.FAKE_LIBVIRT: self.libvirt,
            Kind.REAL_LIBVIRT: self.real_libvirt,
        }
        return {kind for kind, is_tried in tried.items() if is_tried}


DUMP = "dump-guest-memory"
COREDUMP = {"min_free": "1MiB", "format": "elf"}
RESTARTED = Result("restarted", "running", ("system_reset", "cont"), {"restart": 1}, restarts=1)
DESTROYED = Result("destroyed", GONE, ("quit",), {"destroy": 1})
PRESERVED = Result("preserved", "guest-panicked", (), {"preserve": 1})
RELEASED = {"domain": "vm", "why": "the kill matrix"}


def _dumped(result: Result) -> Result:
    return Result(
        result.became,
        result.guest,
        (DUMP, *(result.commands or ())),
        result.actions,
        result.restarts,
        result.failures,
        dumps=1,
    )


def _asked(result: Result) -> Result:
    """Return a result after the guest was preserved, which was counted."""
    return Result(
        result.became,
        result.guest,
        result.commands,
        {"preserve": 1, **result.actions},
        result.restarts,
        result.failures,
        result.dumps,
    )


UNKNOWN_WHETHER_RELAUNCHED = Result("failed", GONE, ("quit",), failures=1)
"""panicd died before its command began, and can't know that it didn't: it is not run twice."""

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("destroy", {"on_crash": "destroy"}, DESTROYED, libvirt=True, real_libvirt=True),
    Scenario("restart", {"on_crash": "restart"}, RESTARTED, libvirt=True, real_libvirt=True),
    Scenario("preserve", {"on_crash": "preserve"}, PRESERVED, libvirt=True),
    Scenario(
        "ignore",
        {"on_crash": "ignore"},
        Result("running-on", "running", (), {"ignore": 1}),
        runs_on=True,
    ),
    Scenario(
        "coredump-destroy",
        {"on_crash": "coredump-destroy", "coredump": COREDUMP},
        _dumped(DESTROYED),
        libvirt=True,
    ),
    Scenario(
        "coredump-restart",
        {"on_crash": "coredump-restart", "coredump": COREDUMP},
        _dumped(RESTARTED),
        libvirt=True,
        real_libvirt=True,
    ),
    Scenario(
        "coredump-preserve",
        {"on_crash": "coredump-preserve", "coredump": COREDUMP},
        _dumped(PRESERVED),
        libvirt=True,
    ),
    Scenario(
        "coredump-ignore",
        {"on_crash": "coredump-ignore", "coredump": COREDUMP},
        _dumped(Result("running-on", "running", ("cont",), {"ignore": 1})),
        libvirt=True,
    ),
    Scenario(
        "ignore-by-libvirt",
        {"on_crash": "ignore"},
        Result("running-on", "running", ("cont",), {"ignore": 1}),
        fake=False,
        arguments=None,
        libvirt=True,
        real_libvirt=True,
    ),
    Scenario(
        "ignore-that-was-stopped",
        {"on_crash": "ignore"},
        Result("running-on", "running", ("cont",), {"ignore": 1}),
        machine={"profile": QEMU_2_6},
        arguments=None,
    ),
    Scenario(
        "restart-by-2.5",
        {"on_crash": "restart"},
        RESTARTED,
        machine={"profile": QEMU_2_5},
        reset_leaves_no_trace=True,
        arguments=None,
    ),
    Scenario(
        "restart-by-1.6",
        {"on_crash": "restart"},
        RESTARTED,
        machine={"profile": QEMU_1_6},
        reset_leaves_no_trace=True,
        arguments=None,
    ),
    Scenario(
        "irreversible-ignore-falls-back",
        {"on_crash": "ignore", "fallback": "restart"},
        RESTARTED,
        machine={"profile": QEMU_1_6},
        reset_leaves_no_trace=True,
        arguments=None,
    ),
    Scenario(
        "refused-restart-falls-back",
        {"on_crash": "restart", "fallback": "destroy"},
        Result("destroyed", GONE, ("quit",), {"destroy": 1}, failures=1),
        refused=("system_reset",),
        arguments=None,
        libvirt=True,
    ),
    Scenario(
        "refused-destroy-is-preserved",
        {"on_crash": "destroy", "timeouts": {"quit": "200ms", "terminate": "1ms", "kill": "1ms"}},
        Result("preserved", "guest-panicked", (), {"preserve": 1}, failures=1),
        refused=("quit",),
        arguments=None,
        libvirt=True,
    ),
    Scenario(
        "destroy-of-a-hung-qemu",
        {"on_crash": "destroy", "timeouts": {"quit": "200ms", "terminate": "200ms"}},
        Result("destroyed", GONE, None, {"destroy": 1}),
        hangs=True,
        fake=False,
    ),
    Scenario(
        "relaunch",
        {"on_crash": "restart"},
        Result("relaunched", "running", ("quit",), {"restart": 1}, restarts=1),
        arguments=("-action", "reboot=shutdown"),
        relaunch=True,
        fake=False,
    ),
    Scenario(
        "restart-with-evidence",
        {"on_crash": "restart", "evidence": {"budget": "3s"}},
        RESTARTED,
        arguments=None,
        libvirt=True,
    ),
    Scenario(
        "destroy-with-evidence",
        {"on_crash": "destroy", "evidence": {"budget": "3s"}},
        DESTROYED,
        arguments=None,
        libvirt=True,
    ),
    Scenario(
        "grace",
        {"on_crash": "destroy", "grace": "1h"},
        Result("watched", "running", ("cont",)),
        libvirt=True,
    ),
    Scenario(
        "grace-by-2.5",
        {"on_crash": "destroy", "grace": "1h"},
        Result("watched", "running", ("cont",)),
        machine={"profile": QEMU_2_5},
        arguments=None,
    ),
    Scenario(
        "spent-budget", {"on_crash": "restart", "restart": {"max": 0}}, PRESERVED, libvirt=True
    ),
    Scenario(
        "release",
        {"on_crash": "preserve"},
        _asked(Result("released", "running", ("cont",), {"release": 1})),
        request=("release", RELEASED),
        unasked=PRESERVED,
        libvirt=True,
    ),
    Scenario(
        "act-restart",
        {"on_crash": "preserve"},
        _asked(RESTARTED),
        request=("act", {**RELEASED, "action": "restart"}),
        unasked=PRESERVED,
        libvirt=True,
    ),
    Scenario(
        "act-coredump-destroy",
        {"on_crash": "preserve", "coredump": COREDUMP},
        _asked(_dumped(DESTROYED)),
        request=("act", {**RELEASED, "action": "coredump-destroy"}),
        unasked=PRESERVED,
        libvirt=True,
    ),
)
