"""docs/configuration.md says what the reader of the configuration does."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from panicd.config.config import Config, ConfigError, Places, parse
from panicd.config.section import Section
from panicd.config.yaml_document import key_path

TEXT = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
ROW = re.compile(r"^\| `(\S+)` \| (.+) \| (?:`(.+)` )?\| .+ \| (.+) \|$", re.MULTILINE)
# Only with these are there defaults of their sections.
NEEDED = {
    "defaults.relaunch.command": "[/bin/x]",
    "libvirt.uri": "qemu:///system",
    "notify.webhook.url": "https://x",
    "notify.hook.command": "[/bin/x]",
}


HOST = {
    *["monitors[]", "domains[]", "state_directory", "control_socket", "metrics", "journal"],
    *["storm", "coredumps_at_once", "libvirt", "notify"],
}


class Row(NamedTuple):
    key: str
    values: str
    default: str | None
    on_reload: str

    @property
    def path(self) -> str:
        """The key's place in a file; that of a policy's key is the one in the defaults."""
        return self.key if self.key.split(".")[0] in HOST else f"defaults.{self.key}"


ROWS = [Row(*cells) for cells in (match.groups() for match in ROW.finditer(TEXT))]
DEFAULTS = {row: row.default for row in ROWS if row.default is not None}


def read(settings: dict[str, str]) -> Config:
    content = written({"monitors": "[{glob: /run/qemu/*.qmp}]", **settings})
    return parse(content, "panicd.yaml", Places.of(0, {}))


def written(settings: dict[str, str]) -> str:
    """Write settings, by their paths, as a mapping."""
    sections: dict[str, dict[str, str]] = {}
    values: dict[str, str] = {}
    for path, value in settings.items():
        key, _, below = path.partition(".")
        if below:
            sections.setdefault(key, {})[below] = value
        else:
            values[key] = value
    values |= {key: written(section) for key, section in sections.items()}
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths of all keys that the reader knows."""
    paths: set[str] = set()
    ask = Section.__getitem__

    def asked(section: Section, key: str) -> object:
        paths.add(key_path(section._path, key).replace("[0]", "[]"))
        return ask(section, key)

    with monkeypatch.context() as patch:
        patch.setattr(Section, "__getitem__", asked)
        read({"domains": "[{match: a}]"})
    return paths


def test_every_key_is_described_and_no_other(asked_for: set[str]) -> None:
    described = [row.path for row in ROWS]
    described += [row.path.replace("defaults", "domains[]") for row in ROWS if row.path != row.key]
    sections = {
        path for path in asked_for if any(p.startswith((f"{path}.", f"{path}[")) for p in asked_for)
    }
    assert set(described) - {"storm"} == asked_for - sections
    assert "storm" in described  # a section, which may also be "off"
    assert len(described) == len(set(described))


def test_the_defaults_are_those_of_the_reader() -> None:
    given = {row.path: default for row, default in DEFAULTS.items()}
    assert read(given | NEEDED) == read(NEEDED)


def test_keys_described_without_a_default_have_none() -> None:
    without = {row.key for row in ROWS if row not in DEFAULTS}
    items = {f"monitors[].{way}" for way in ("glob", "listen", "libvirt")} | {"domains[].match"}
    ways = {"relaunch.command", "relaunch.unit", "relaunch.libvirt"}
    files = {"metrics.web_config", "notify.webhook.ca_file", "notify.webhook.credentials_file"}
    receivers = {"notify.webhook.url", "notify.hook.command"}
    assert without == items | ways | files | receivers | {"storm", "libvirt.uri"}
    assert read({}).defaults.relaunch is None


@pytest.mark.parametrize("row", DEFAULTS, ids=[row.key for row in DEFAULTS])
def test_the_values_described_are_those_that_a_mistake_names(row: Row) -> None:
    with pytest.raises(ConfigError) as caught:
        read({row.path: "~"})
    (said,) = [m.message for m in caught.value.mistakes if m.path == row.path]
    words = re.findall("`([^`]+)`", row.values)
    if row.values.startswith("`"):
        assert said == f"expected one of {', '.join(words)} (got ~)"
    else:
        assert said.startswith(f"expected {row.values.split(', or `')[0]}")


def test_when_each_takes_effect_is_explained() -> None:
    explained = re.findall(r"^- \*\*(.+?)\*\*:", TEXT, re.MULTILINE)
    assert {row.on_reload for row in ROWS} == set(explained)
