"""The configuration: a YAML file in, frozen values out, or every mistake in it.

Below, one function for each section has the keys and their defaults; the shipped
``config/panicd.yaml`` shows them all. ``config_values`` says what a key's value may be.

The file is read from its nodes by hand, not with pydantic: a model that fails to validate yields
nothing, but checks across keys (a rule that never matches, two equal globs) must be reported
together with the mistakes in single values.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from panicd.config.domain_rules import DomainRule, RuleIndex
from panicd.config.file import read_text
from panicd.config.mistakes import ConfigError, Mistake, MistakeList, Position
from panicd.config.notify import Notify, read_notify
from panicd.config.places import Places
from panicd.config.section import Section, Value
from panicd.config.starters import read_libvirt, read_relaunch
from panicd.config.values import (
    absolute_path,
    boolean,
    domain_pattern,
    duration,
    free_space,
    metrics_endpoint,
    off,
    one_of,
    positive_duration,
    share,
    share_above_zero,
    size,
    socket_glob,
    socket_path,
    whole_number,
    written_duration,
)
from panicd.config.web import WebConfig, load_web_config
from panicd.config.yaml_document import Mapping, Scalar, read_document
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.settings import (
    Budget,
    CoredumpSettings,
    DumpFormat,
    Evidence,
    Flood,
    InheritOnCrash,
    JournalFailure,
    LibvirtSettings,
    PanicNotifier,
    Policy,
    RecordFirst,
    Storm,
    StormAction,
    Timeouts,
)

__all__ = [
    "Config",
    "ConfigError",
    "Dial",
    "DomainRule",
    "Found",
    "Listen",
    "Mistake",
    "Places",
    "load",
    "parse",
    "read",
]

METRICS_LISTEN: Final = ("127.0.0.1", 10077)

JOURNAL_KEEP: Final = 90 * 86400.0
"""Seconds. A quarter of a year of incidents, for reports, in some megabytes."""

COREDUMPS_AT_ONCE: Final = 2
"""A dump reads a guest's whole memory, and several dumps share one disk."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Monitors that panicd connects to: every socket that the pattern matches."""

    glob: str


@dataclass(frozen=True, slots=True)
class Listen:
    """A socket of panicd's that QEMUs connect their monitors to."""

    path: Path


@dataclass(frozen=True, slots=True)
class Found:
    """Monitors that libvirt's domains were given by ``<qemu:commandline>``."""


@dataclass(frozen=True, slots=True)
class ByLibvirt:
    """libvirt itself, for the domains that have no monitor of their own for panicd."""


Monitor = Dial | Listen | Found | ByLibvirt


@dataclass(frozen=True)
class Config:
    """What panicd is configured to do.

    Attributes:
        monitors: how panicd reaches QEMUs, at least one way; none if libvirt names them.
        metrics_listen: the address and port of metrics, health and the page; None: not served.
        web_config: the file that says who may read them, and how they are encrypted.
        web: what that file says.
        state_directory: where the journal and the incidents are.
        control_socket: where the commands ask the daemon.
        defaults: of domains without a rule.
        domains: the rules; the first that matches applies.
        journal_failure: what to do about panics while the journal can't be written.
        record_first: where a panic's first entries are before panicd acts.
        journal_keep: seconds for which closed incidents are kept, at least a restart window.
        storm: when many domains panic at once; None: never.
        coredumps_at_once: how many memory dumps of all domains may run, at least 1.
        libvirt: the libvirt that runs some domains; None if none does.
        notify: who is told of incidents.
    """

    monitors: tuple[Monitor, ...]
    metrics_listen: tuple[str, int] | None
    state_directory: Path
    control_socket: Path
    defaults: Policy
    domains: tuple[DomainRule, ...] = ()
    journal_failure: JournalFailure = JournalFailure.PRESERVE
    record_first: RecordFirst = RecordFirst.MEMORY
    journal_keep: float = JOURNAL_KEEP
    storm: Storm | None = field(default_factory=Storm)
    coredumps_at_once: int = COREDUMPS_AT_ONCE
    libvirt: LibvirtSettings | None = None
    notify: Notify = field(default_factory=Notify)
    web_config: Path | None = None
    web: WebConfig = field(default_factory=WebConfig, compare=False)

    def policy_for(self, name: str, uuid: str | None) -> Policy:
        """Return the policy of a domain: that of the first rule that matches, or the defaults.

        Args:
            name: its name.
            uuid: its UUID, where that is known.
        """
        index = self._index.first(name, uuid)
        return self.defaults if index is None else self.domains[index].policy

    @cached_property
    def _index(self) -> RuleIndex:
        return RuleIndex(rule.match for rule in self.domains)


def load(path: Path) -> Config:
    """Read the configuration of this process.

    Args:
        path: the file; it is read blocking, as it is small. So is the web configuration file that
            it names.

    Raises:
        ConfigError: a file can't be read, or something is wrong with it.
    """
    config = read(path)
    if config.web_config is None:
        return config
    listen = config.metrics_listen
    beyond = listen is not None and not ip_address(listen[0]).is_loopback
    return replace(config, web=load_web_config(config.web_config, beyond_loopback=beyond))


def read(path: Path) -> Config:
    """Read the configuration file alone, without the files that it names.

    Raises:
        ConfigError: it can't be read, or something is wrong with it.
    """
    return parse(read_text(path), str(path), Places.here())


def parse(content: str, file_name: str, places: Places) -> Config:
    """Read a configuration.

    Args:
        content: the file's text.
        file_name: what messages call it.
        places: the default paths.

    Raises:
        ConfigError: something is wrong with it.
    """
    mistakes = MistakeList(file_name)
    start = Position(1, 1)
    root = read_document(content, mistakes) or Mapping(start, {})
    with Value(root, "", start, mistakes).section() as keys:
        config = _config(keys, places)
    if mistakes:
        raise mistakes.error()
    return config


def _config(keys: Section, places: Places) -> Config:
    monitors = keys["monitors"]
    state_directory = keys["state_directory"].read(absolute_path, places.state_directory)
    control_socket = keys["control_socket"].read(socket_path, places.control_socket)
    with keys["metrics"].section() as metrics:
        metrics_listen = metrics["listen"].read(metrics_endpoint, METRICS_LISTEN)
        web_config = metrics["web_config"].read(absolute_path, None)
    with keys["journal"].section() as journal:
        on_failure, keep = journal["on_failure"], journal["keep"]
        journal_failure = on_failure.read(one_of(*JournalFailure), JournalFailure.PRESERVE)
        record_first = journal["before_action"].read(one_of(*RecordFirst), RecordFirst.MEMORY)
        journal_keep = keep.read(positive_duration, JOURNAL_KEEP)
    storm = _storm(keys["storm"])
    coredumps_at_once = keys["coredumps_at_once"].read(whole_number(1), COREDUMPS_AT_ONCE)
    libvirt = read_libvirt(keys["libvirt"])
    notify = read_notify(keys["notify"])
    builtin = Policy(CoredumpSettings(directory=state_directory / "coredumps"), evidence=Evidence())
    with keys["defaults"].section() as policy:
        defaults = _policy(policy, builtin)
    inherits = libvirt is not None and libvirt.on_crash is InheritOnCrash.INHERIT
    defaults = replace(defaults, inherits_on_crash=inherits)
    domains = _domains(keys["domains"], defaults)
    if keys.sound:
        _check_journal_keep(keep, journal_keep, [defaults, *(rule.policy for rule in domains)])
    ways = _monitors(monitors, control_socket, none_will_do=libvirt is not None)
    if Found() in ways and libvirt is None:
        monitors.wrong("libvirt.uri, because an item of monitors is libvirt: true", "none")
    return Config(
        monitors=ways,
        metrics_listen=metrics_listen,
        state_directory=state_directory,
        control_socket=control_socket,
        defaults=defaults,
        domains=domains,
        journal_failure=journal_failure,
        record_first=record_first,
        journal_keep=journal_keep,
        storm=storm,
        coredumps_at_once=coredumps_at_once,
        libvirt=libvirt,
        notify=notify,
        web_config=web_config,
    )


def _check_journal_keep(given: Value, keep: float, policies: list[Policy]) -> None:
    """Note a journal that would forget restarts which still count against a budget."""
    longest = max(policy.restart.window for policy in policies)
    if keep < longest:
        given.wrong(
            f"at least the longest restart window, {written_duration(longest)}",
            "" if given.given else f"the default of {written_duration(keep)}",
        )


def _storm(value: Value) -> Storm | None:
    if isinstance(value.node, Scalar):
        return value.read(off, None)
    builtin = Storm()
    with value.section() as keys:
        return Storm(
            share=keys["share"].read(share, builtin.share),
            minimum=keys["minimum"].read(whole_number(1), builtin.minimum),
            window=keys["window"].read(positive_duration, builtin.window),
            then=keys["then"].read(one_of(*StormAction), builtin.then),
            at_once=keys["at_once"].read(whole_number(1), builtin.at_once),
        )


def _monitors(value: Value, control_socket: Path, *, none_will_do: bool) -> tuple[Monitor, ...]:
    monitors: dict[Monitor, Value] = {}
    for item in value.items(None if none_will_do else "at least one monitor"):
        for monitor, given in _monitor(item):
            if monitor in monitors:
                line = monitors[monitor].position.line
                given.wrong("each monitor once", f"the one of line {line} again")
            monitors.setdefault(monitor, given)
    _check_own_sockets(monitors, control_socket)
    return tuple(monitors)


def _monitor(item: Value) -> Iterator[tuple[Monitor, Value]]:
    with item.section() as keys:
        glob, listen, libvirt = keys["glob"], keys["listen"], keys["libvirt"]
        given = [way for way in (glob, listen, libvirt) if way.given]
        if libvirt.read(boolean, True) is False:
            libvirt.wrong("true, or no such item")
        pattern = glob.read(socket_glob, None)
        path = listen.read(socket_path, None)
    if len(given) > 1:
        item.wrong("glob, listen or libvirt, each in an item of its own", "several")
    elif keys.sound and not given:
        item.wrong("glob, listen or libvirt")
    elif libvirt.given:
        yield Found(), libvirt
    if pattern is not None:
        yield Dial(pattern), glob
    if path is not None:
        yield Listen(path), listen


def _check_own_sockets(monitors: dict[Monitor, Value], control_socket: Path) -> None:
    own = [control_socket, *(m.path for m in monitors if isinstance(m, Listen))]
    for monitor, given in monitors.items():
        match monitor:
            case Dial(glob):
                for path in own:
                    if path.match(glob):
                        given.wrong(f"a pattern that leaves out panicd's own socket {path}")
            case Listen(path):
                if path == control_socket:
                    given.wrong("another socket than control_socket")


def _domains(value: Value, defaults: Policy) -> tuple[DomainRule, ...]:
    rules: list[DomainRule] = []
    places: list[Value] = []
    index = RuleIndex()
    for item in value.items():
        with item.section() as keys:
            match = keys["match"]
            pattern = match.read(domain_pattern, "")
            policy = _policy(keys, defaults)
        if not match.given:
            match.wrong("the name, glob or UUID of the domains meant")
        if not pattern:
            continue
        covering = index.covering(pattern)
        if covering is not None:
            earlier = places[covering]
            match.wrong(
                "a pattern that no rule above covers",
                f"{pattern}, which {earlier.path} on line {earlier.position.line} matches first",
            )
        index.append(pattern)
        places.append(match)
        rules.append(DomainRule(pattern, policy))
    return tuple(rules)


def _policy(keys: Section, base: Policy) -> Policy:
    on_crash = one_of(*OnCrash)
    fallback = one_of(Action.DESTROY, Action.RESTART, Action.PRESERVE)
    return Policy(
        on_crash=keys["on_crash"].read(on_crash, base.on_crash),
        fallback=keys["fallback"].read(fallback, base.fallback),
        panic_notifier=keys["panic_notifier"].read(one_of(*PanicNotifier), base.panic_notifier),
        unrequested=keys["unrequested"].read(on_crash, base.unrequested),
        restart=_restart(keys["restart"], base.restart),
        coredump=_coredump(keys["coredump"], base.coredump),
        relaunch=read_relaunch(keys["relaunch"], base.relaunch),
        flood=_flood(keys["flood"], base.flood),
        evidence=_evidence(keys["evidence"], base.evidence),
        enforce=keys["enforce"].read(boolean, base.enforce),
        timeouts=_timeouts(keys["timeouts"], base.timeouts),
        inherits_on_crash=base.inherits_on_crash and not keys["on_crash"].given,
        grace=keys["grace"].read(duration, base.grace),
        kdump_timeout=keys["kdump_timeout"].read(positive_duration, base.kdump_timeout),
    )


def _restart(value: Value, base: Budget) -> Budget:
    with value.section() as keys:
        window, min_uptime = keys["window"], keys["min_uptime"]
        budget = Budget(
            max=keys["max"].read(whole_number(0), base.max),
            window=window.read(positive_duration, base.window),
            min_uptime=min_uptime.read(duration, base.min_uptime),
            then=keys["then"].read(one_of(Action.PRESERVE, Action.DESTROY), base.then),
        )
        if keys.sound and budget.min_uptime > budget.window:
            if min_uptime.given:
                min_uptime.wrong(f"at most the window, {written_duration(budget.window)}")
            elif window.given:
                window.wrong(f"at least min_uptime, {written_duration(budget.min_uptime)}")
    return budget


def _flood(value: Value, base: Flood) -> Flood:
    with value.section() as keys:
        return Flood(
            max=keys["max"].read(whole_number(1), base.max),
            window=keys["window"].read(positive_duration, base.window),
            then=keys["then"].read(one_of(Action.PRESERVE, Action.IGNORE), base.then),
            share=keys["share"].read(share_above_zero, base.share),
        )


def _coredump(value: Value, base: CoredumpSettings) -> CoredumpSettings:
    with value.section() as keys:
        return CoredumpSettings(
            directory=keys["directory"].read(absolute_path, base.directory),
            format=keys["format"].read(one_of(*DumpFormat), base.format),
            level=keys["level"].read(whole_number(0, 31), base.level),
            level_required=keys["level_required"].read(boolean, base.level_required),
            timeout=keys["timeout"].read(positive_duration, base.timeout),
            keep=keys["keep"].read(whole_number(1), base.keep),
            max_total=keys["max_total"].read(size, base.max_total),
            min_free=keys["min_free"].read(free_space, base.min_free),
            required=keys["required"].read(boolean, base.required),
        )


def _evidence(value: Value, base: Evidence | None) -> Evidence | None:
    inherited = base or Evidence(budget=0.0)
    with value.section() as keys:
        consoles = keys["consoles"]
        paths = [item.read(absolute_path, Path()) for item in consoles.items()]
        evidence = Evidence(
            budget=keys["budget"].read(duration, inherited.budget),
            consoles=tuple(paths) if consoles.given else inherited.consoles,
            keep=keys["keep"].read(whole_number(1), inherited.keep),
            max_total=keys["max_total"].read(size, inherited.max_total),
        )
    return evidence if evidence.budget else None


def _timeouts(value: Value, base: Timeouts) -> Timeouts:
    with value.section() as keys:
        return Timeouts(
            stop=keys["stop"].read(positive_duration, base.stop),
            quiet=keys["quiet"].read(positive_duration, base.quiet),
            reset=keys["reset"].read(positive_duration, base.reset),
            resume=keys["resume"].read(positive_duration, base.resume),
            quit=keys["quit"].read(positive_duration, base.quit),
            terminate=keys["terminate"].read(positive_duration, base.terminate),
            kill=keys["kill"].read(positive_duration, base.kill),
        )
