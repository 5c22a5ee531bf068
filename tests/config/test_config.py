import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from panicd.config import config, yaml_document
from panicd.config import file as config_file
from panicd.config.config import (
    Config,
    ConfigError,
    Dial,
    DomainRule,
    Listen,
    Places,
    parse,
)
from panicd.config.control_place import control_socket
from panicd.config.section import Section
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.settings import (
    Budget,
    CoredumpSettings,
    DumpFormat,
    Evidence,
    FreeSpaceFloor,
    JournalFailure,
    LibvirtSettings,
    PanicNotifier,
    Policy,
    Relaunch,
    Storm,
    StormAction,
    Timeouts,
)

SHIPPED = Path(__file__).parents[2] / "config/panicd.yaml"
BAD = sorted((Path(__file__).parent / "config").glob("*.yaml"))
ROOT = Places.of(0, {})
MONITORS = "monitors: [{glob: /run/qemu/*.qmp}]\n"
DEFAULTS = Policy(
    CoredumpSettings(directory=Path("/var/lib/panicd/coredumps")), evidence=Evidence(budget=3.0)
)


def read(content: str) -> Config:
    return parse(content, "panicd.yaml", ROOT)


def read_with_monitor(content: str) -> Config:
    return read(MONITORS + content)


def attempt(content: str) -> Config | ConfigError:
    try:
        return read(content)
    except ConfigError as error:
        return error


def mistakes_in(content: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(content)
    return str(caught.value)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "here", lambda: ROOT)


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_a_bad_file_gives_all_its_messages(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(path.read_text(), path.name, ROOT)
    assert str(caught.value) + "\n" == path.with_suffix(".txt").read_text()


def test_mistakes_can_be_read_one_by_one() -> None:
    with pytest.raises(ConfigError) as caught:
        read(MONITORS + "defaults: {on_crash: off, fallback: off}")
    second = caught.value.mistakes[1]
    assert (second.file, second.line, second.column) == ("panicd.yaml", 2, 37)
    assert second.path == "defaults.fallback"
    assert second.message == "expected one of destroy, restart, preserve (got off)"


def test_the_smallest_file_has_the_defaults() -> None:
    assert read(MONITORS) == Config(
        monitors=(Dial("/run/qemu/*.qmp"),),
        metrics_listen=("127.0.0.1", 10077),
        state_directory=Path("/var/lib/panicd"),
        control_socket=Path("/run/panicd/control.sock"),
        defaults=DEFAULTS,
        domains=(),
        journal_failure=JournalFailure.PRESERVE,
        journal_keep=90 * 86400.0,
        storm=Storm(share=0.25, minimum=5, window=60.0, then=StormAction.PRESERVE, at_once=2),
        coredumps_at_once=2,
    )


@pytest.mark.usefixtures("as_root")
def test_the_shipped_file_has_the_defaults() -> None:
    assert config.load(SHIPPED) == read(MONITORS)


def test_the_shipped_file_shows_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = SHIPPED.read_text()
    missing: list[str] = []
    ask = Section.__getitem__

    def asked(section: Section, key: str) -> object:
        if not re.search(rf"^[ #-]*{key}:", shown, re.MULTILINE):
            missing.append(key)
        return ask(section, key)

    monkeypatch.setattr(Section, "__getitem__", asked)
    read(MONITORS + "domains: [{match: a}]")
    assert missing == []


def test_what_the_shipped_file_holds_back_is_valid_too() -> None:
    everything = re.sub(r"^( *)#(?=[^ \n])", r"\1", SHIPPED.read_text(), flags=re.MULTILINE)
    configured = read(everything)
    assert configured.monitors[1] == Listen(Path("/run/panicd/qmp.sock"))
    assert configured.defaults.relaunch == Relaunch(unit="qemu@{domain}.service")
    assert configured.libvirt == LibvirtSettings("qemu:///system")
    assert [rule.policy.on_crash for rule in configured.domains] == [
        OnCrash.COREDUMP_RESTART,
        OnCrash.DESTROY,
    ]


@pytest.mark.parametrize(
    ("policy", "section"),
    [
        (Policy, "defaults: {%s: }"),
        (Budget, "defaults: {restart: {%s: }}"),
        (CoredumpSettings, "defaults: {coredump: {%s: }}"),
        (Timeouts, "defaults: {timeouts: {%s: }}"),
        (Storm, "storm: {%s: }"),
        (LibvirtSettings, "libvirt: {%s: }"),
    ],
)
def test_every_setting_of_the_rules_has_its_key(policy: type[Policy], section: str) -> None:
    names = {f.name for f in fields(policy)} - {"inherits_on_crash"}  # what libvirt.on_crash makes
    unknown = [name for name in names if "one of" in mistakes_in(section % name)]
    words = {"on_crash", "fallback", "panic_notifier", "unrequested", "then", "format"}
    words |= {"relaunch", "on_stop"}
    assert set(unknown) <= words  # these say which words they take; an unknown key would as well
    for name in unknown:
        assert f".{name}: expected one of " in mistakes_in(section % name)
        assert f'(got "{name}"' not in mistakes_in(section % name)


def test_everything_set() -> None:
    configured = read("""
monitors:
  - glob: /srv/vms/*/monitor
  - listen: /srv/panicd/qmp.sock
metrics: {listen: "[::1]:0"}
state_directory: /srv/panicd
control_socket: /srv/panicd/control.sock
journal: {on_failure: act, keep: 30d}
storm: {share: 100%, minimum: 1, window: 10s, then: limit, at_once: 7}
coredumps_at_once: 1
defaults:
  on_crash: coredump-restart
  fallback: destroy
  panic_notifier: any
  unrequested: ignore
  restart: {max: 0, window: 1d12h, min_uptime: 0s, then: destroy}
  coredump: {directory: /dumps, format: elf, timeout: 1h30m, keep: 1, max_total: 2TB,
             min_free: 20GiB, required: true}
  relaunch: {command: [/usr/bin/start-vm, "--now", "0123"], timeout: 1m30s}
  evidence: {budget: 1s, consoles: [/var/log/qemu/vm.log]}
  enforce: true
  timeouts: {stop: 500ms, quiet: 6s, reset: 1s, resume: 2s, quit: 3s, terminate: 4s, kill: 5s}
""")
    assert configured == Config(
        monitors=(Dial("/srv/vms/*/monitor"), Listen(Path("/srv/panicd/qmp.sock"))),
        metrics_listen=("::1", 0),
        state_directory=Path("/srv/panicd"),
        control_socket=Path("/srv/panicd/control.sock"),
        defaults=Policy(
            on_crash=OnCrash.COREDUMP_RESTART,
            fallback=Action.DESTROY,
            panic_notifier=PanicNotifier.ANY,
            unrequested=OnCrash.IGNORE,
            restart=Budget(max=0, window=129600.0, min_uptime=0.0, then=Action.DESTROY),
            coredump=CoredumpSettings(
                directory=Path("/dumps"),
                format=DumpFormat.ELF,
                timeout=5400.0,
                keep=1,
                max_total=2 * 10**12,
                min_free=FreeSpaceFloor(size=20 * 2**30),
                required=True,
            ),
            relaunch=Relaunch(("/usr/bin/start-vm", "--now", "0123"), timeout=90.0),
            evidence=Evidence(budget=1.0, consoles=(Path("/var/log/qemu/vm.log"),)),
            enforce=True,
            timeouts=Timeouts(
                stop=0.5, quiet=6.0, reset=1.0, resume=2.0, quit=3.0, terminate=4.0, kill=5.0
            ),
        ),
        journal_failure=JournalFailure.ACT,
        journal_keep=30 * 86400.0,
        storm=Storm(share=1.0, minimum=1, window=10.0, then=StormAction.LIMIT, at_once=7),
        coredumps_at_once=1,
    )


def test_dumps_lie_in_the_state_directory_that_is_set() -> None:
    configured = read_with_monitor("state_directory: /srv/panicd")
    assert configured.defaults.coredump.directory == Path("/srv/panicd/coredumps")


def test_metrics_can_be_off() -> None:
    assert read_with_monitor('metrics: {listen: "off"}').metrics_listen is None


def test_the_storm_breaker_can_be_off() -> None:
    assert read_with_monitor('storm: "off"').storm is None


def test_a_journal_may_be_kept_exactly_as_long_as_a_restart_window() -> None:
    configured = read_with_monitor("""
journal: {keep: 1d}
domains: [{match: a, restart: {window: 24h}}]
""")
    assert configured.journal_keep == configured.defaults.restart.window


def test_a_rule_changes_the_defaults_key_by_key() -> None:
    configured = read_with_monitor("""
defaults:
  fallback: destroy
  restart: {max: 7, window: 12h}
  coredump: {keep: 5}
  relaunch: {command: [/usr/bin/start-vm], timeout: 5m}
  enforce: true
  timeouts: {quiet: 1m, quit: 1s}
domains:
  - match: a
    restart: {max: 1}
    coredump: {required: true}
    enforce: false
    relaunch: {timeout: 2m}
    timeouts: {kill: 3s}
  - match: b
    relaunch: {command: [/usr/bin/start-b]}
  - match: c
""")
    a, b, c = (configured.policy_for(name, None) for name in "abc")
    assert a.fallback is Action.DESTROY
    assert a.restart == Budget(max=1, window=43200.0)
    assert (a.coredump.keep, a.coredump.required) == (5, True)
    assert a.relaunch == Relaunch(("/usr/bin/start-vm",), timeout=120.0)
    assert a.timeouts == Timeouts(quiet=60.0, quit=1.0, kill=3.0)
    assert (a.enforce, b.enforce) == (False, True)
    assert b.relaunch == Relaunch(("/usr/bin/start-b",), timeout=300.0)
    assert c == configured.defaults


def test_a_rule_may_be_the_first_to_name_a_relaunch() -> None:
    configured = read_with_monitor("domains: [{match: a, relaunch: {command: [/bin/x]}}]")
    assert configured.policy_for("a", None).relaunch == Relaunch(("/bin/x",))
    assert configured.policy_for("b", None).relaunch is None


def test_the_first_rule_that_matches_wins() -> None:
    configured = read_with_monitor("""
domains:
  - {match: db-1, on_crash: destroy}
  - {match: "db-*", on_crash: restart}
  - {match: 6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11, on_crash: ignore}
""")
    uuid = "6F2C9A34-8D0E-4D5C-9B52-0A6F1F0D7A11"
    assert configured.policy_for("db-1", uuid).on_crash is OnCrash.DESTROY
    assert configured.policy_for("db-2", uuid).on_crash is OnCrash.RESTART
    assert configured.policy_for("web", uuid).on_crash is OnCrash.IGNORE
    assert configured.policy_for("web", None) == configured.defaults
    assert configured.domains[0] == DomainRule("db-1", configured.policy_for("db-1", None))


def test_an_alias_stands_for_its_anchor() -> None:
    configured = read_with_monitor("""
defaults: {restart: &often {max: 9}}
domains: [{match: a, restart: *often}]
""")
    assert configured.policy_for("a", None).restart == Budget(max=9)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "panicd.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MONITORS.encode())
    assert config.load(path).monitors == (Dial("/run/qemu/*.qmp"),)


def make_nothing(_path: Path) -> None:
    pass


def make_latin_1(path: Path) -> None:
    path.write_bytes(b"# one\n# gr\xfc\xdfe\n")


def make_a_control_character(path: Path) -> None:
    path.write_bytes(b"# one\n#\x1b[2J\n")


def make_a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(config_file.FILE_SIZE_MAX + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_nothing, ": expected a readable file (got No such file or directory)"),
        (Path.mkdir, ": expected a readable file (got Is a directory)"),
        (make_a_huge_file, ": expected a file of at most 4 MiB (got more)"),
        (make_latin_1, ":2:5: expected UTF-8 (got byte 0xfc)"),
        (make_a_control_character, r":2:2: expected printable characters (got \x1b)"),
    ],
)
def test_a_file_that_can_not_be_read(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "panicd.yaml"
    make(path)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value) == f"{path}{message}"


FRAGMENTS = st.sampled_from(
    [
        *["monitors", "glob", "listen", "metrics", "defaults", "domains", "match", "on_crash"],
        *[
            "restart",
            "window",
            "min_uptime",
            "storm",
            "journal",
            "keep",
            "relaunch",
            "command",
            "coredump",
            "min_free",
        ],
        *[": ", "- ", ", ", "\n", "\n  ", "[", "]", "{", "}", "&a ", "*a", "<<", "!!str ", "? "],
        *["/run/*.qmp", "/a", "no", "0123", "90s", "1h", "10%", "50GiB", "'", '"', "|\n", "---\n"],
        *["off", "db-*", "127.0.0.1:1", "[::1]:1", "\t", "\x00", "é", "\\0", "\\ud800", "#", "%"],
        *["\\UFFFFFFFF", "%YAML 1.", "9" * 5000, "%TAG ", "!"],
    ]
)
LOADERS = st.sampled_from([yaml.CSafeLoader, yaml.SafeLoader])


@given(content=st.one_of(st.text(), st.lists(FRAGMENTS).map("".join)), loader=LOADERS)
@example(content='a: "\\UFFFFFFFF"', loader=yaml.SafeLoader)
@example(content=f"%YAML 1.{'9' * 5000}\n--- a", loader=yaml.SafeLoader)
@example(content='monitors: [{listen: "/\\ud800"}]', loader=yaml.SafeLoader)
@example(content="[" * 5000, loader=yaml.SafeLoader)
@example(content="[" * 100_000, loader=yaml.CSafeLoader)
def test_any_text_is_a_configuration_or_has_mistakes(
    content: str, loader: type[yaml.SafeLoader]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_document, "_LOADER", loader)
        outcome = attempt(content)
    if isinstance(outcome, Config):
        assert outcome.monitors
    else:
        assert len(outcome.mistakes) == len(str(outcome).splitlines()) > 0


@given(st.binary())
def test_any_file_is_a_configuration_or_has_mistakes(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        config.load(path)


SPOILT = {
    "not YAML": "control_socket: /run/x.sock\nmonitors: [\n",
    "not YAML from the start": "a: b: c\ncontrol_socket: /run/x.sock # here\n",
    "a tab": "defaults:\n\ton_crash: restart\ncontrol_socket: '/run/x.sock'\n",
    "not UTF-8": "control_socket: /run/x.sock\ndefaults: \udcff\n",
    "twice": "control_socket: /run/x.sock\ncontrol_socket: /run/y.sock\n",
    "a merge conflict": "<<<<<<< HEAD\ncontrol_socket: /run/x.sock\n=======\n>>>>>>> b\n",
    "a comment above": "# control_socket: /run/y.sock\ncontrol_socket: /run/x.sock\n",
    "escaped": '"control\\x5fsocket": /run/x.sock\n',
    "a mapping of one line": "{monitors: no, control_socket: /run/x.sock}\n",
    "quoted": "control_socket: '/run/x.sock'\n",
    "a wrong value": "control_socket: /run/x.sock\nmonitors: no\n",
}
"""How a file that names the control socket may have been written, or spoilt."""


@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT)
def test_control_socket_is_found_in_a_spoilt_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "panicd.yaml"
    file.write_text(content, errors="surrogateescape")
    assert control_socket(file) == Path("/run/x.sock")


@pytest.mark.parametrize(
    "content",
    ["a: b: c\n", "control_socket: [\n", "control_socket: /run/x/\n", " control_socket: /x\n: :"],
)
def test_control_socket_is_where_it_is_by_default_if_the_file_does_not_tell(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "panicd.yaml"
    assert control_socket(file) == Places.here().runtime_directory / "control.sock"
    file.write_text(content)
    assert control_socket(file) == Places.here().runtime_directory / "control.sock"
