"""The values that the rules are tested on: a plain one of each, and every one there can be."""

from pathlib import Path
from typing import Final

from hypothesis import strategies as st

from panicd.rules.capability import Capability, PanicSetting, Version
from panicd.rules.libvirt import LibvirtDomain
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.policy import Reason, Situation
from panicd.rules.qapi import PanicInformation, RunState
from panicd.rules.settings import (
    Budget,
    CoredumpSettings,
    DumpFormat,
    PanicNotifier,
    Policy,
    Relaunch,
    Timeouts,
)

NOW: Final = 1_800_000_000.0
COREDUMP: Final = CoredumpSettings(directory=Path("/dumps"))
RELAUNCH: Final = Relaunch(("/bin/relaunch", "vm"))
MODERN: Final = Capability(
    (7, 2, 0), PanicDevice.REQUESTED, ("pvpanic",), panic_setting=PanicSetting.PAUSE
)
IRREVERSIBLE: Final = Capability((1, 6, 2), PanicDevice.REQUESTED, ("pvpanic",))
PANICKED: Final = Situation(RunState.GUEST_PANICKED)

VERSIONS: Final[tuple[Version, ...]] = (
    (1, 5, 3),
    (1, 6, 2),
    (1, 7, 0),
    (2, 5, 1),
    (2, 6, 0),
    (2, 8, 0),
    (5, 2, 0),
    (7, 2, 0),
    (11, 1, 0),
)

seconds = st.floats(0.001, 1e6)
histories = st.lists(st.floats(NOW - 1e6, NOW + 10), max_size=5).map(tuple)

timeouts = st.builds(Timeouts, *[seconds] * 7)

policies = st.builds(
    Policy,
    coredump=st.builds(
        CoredumpSettings,
        directory=st.just(Path("/dumps")),
        format=st.sampled_from(DumpFormat),
        timeout=seconds,
        required=st.booleans(),
    ),
    on_crash=st.sampled_from(OnCrash),
    # What panicd.config.config lets through.
    fallback=st.sampled_from([Action.DESTROY, Action.RESTART, Action.PRESERVE]),
    panic_notifier=st.sampled_from(PanicNotifier),
    unrequested=st.sampled_from(OnCrash),
    restart=st.builds(
        Budget,
        max=st.integers(0, 4),
        window=seconds,
        min_uptime=seconds,
        then=st.sampled_from([Action.PRESERVE, Action.DESTROY]),
    ),
    relaunch=st.none() | st.builds(Relaunch, st.just(("/bin/relaunch",)), seconds),
    timeouts=timeouts,
    grace=st.sampled_from([0.0, 900.0]),
    kdump_timeout=seconds,
)

capabilities = st.builds(
    Capability,
    version=st.sampled_from(VERSIONS),
    panic_device=st.sampled_from(PanicDevice),
    panic_setting=st.none() | st.sampled_from(PanicSetting),
    no_shutdown=st.none() | st.booleans(),
    reboot_is_shutdown=st.none() | st.booleans(),
    dump_formats=st.lists(st.sampled_from(DumpFormat), unique=True).map(tuple),
    libvirt=st.none()
    | st.builds(
        LibvirtDomain,
        st.just(3),
        st.just("vm"),
        st.just(""),
        st.sampled_from(["destroy", "preserve"]),
    ),
)

situations = st.builds(
    Situation,
    run_state=st.none() | st.sampled_from(RunState),
    information=st.none() | st.just(PanicInformation("hyper-v")),
    restarts=histories,
    held=st.booleans(),
    storm=st.booleans(),
    kdump=st.booleans(),
    own_time=st.sampled_from([None, Reason.NO_GRACE, Reason.GRACE_OVER, Reason.KDUMP_STUCK]),
)
