from pathlib import Path

import pytest

from panicd.config.places import Places


def test_root_has_the_systems_places_whatever_xdg_says() -> None:
    env = {"HOME": "/root", "XDG_STATE_HOME": "/root/state", "XDG_RUNTIME_DIR": "/run/user/0"}
    assert Places.of(0, env) == Places(
        Path("/etc/panicd/panicd.yaml"), Path("/run/panicd"), Path("/var/lib/panicd")
    )


def test_others_have_those_of_xdg() -> None:
    env = {
        "HOME": "/home/ann",
        "XDG_CONFIG_HOME": "/c",
        "XDG_RUNTIME_DIR": "/r",
        "XDG_STATE_HOME": "/s",
    }
    assert Places.of(1000, env) == Places(
        Path("/c/panicd/panicd.yaml"), Path("/r/panicd"), Path("/s/panicd")
    )


@pytest.mark.parametrize("value", [None, "", "relative/path"])
def test_xdg_variables_that_do_not_count_have_their_defaults(value: str | None) -> None:
    env = {"HOME": "/home/ann"}
    if value is not None:
        env |= {"XDG_CONFIG_HOME": value, "XDG_RUNTIME_DIR": value, "XDG_STATE_HOME": value}
    assert Places.of(1000, env) == Places(
        Path("/home/ann/.config/panicd/panicd.yaml"),
        Path("/run/user/1000/panicd"),
        Path("/home/ann/.local/state/panicd"),
    )


def test_without_a_home_there_are_places_still() -> None:
    assert Places.of(1000, {}).config_file == Path("/.config/panicd/panicd.yaml")


@pytest.mark.parametrize("euid", [0, 1000])
def test_what_systemd_sets_comes_first(euid: int) -> None:
    places = Places.of(
        euid,
        {
            "CONFIGURATION_DIRECTORY": "/etc/a",
            "RUNTIME_DIRECTORY": "/run/a:/run/b",
            "STATE_DIRECTORY": "/var/lib/a",
        },
    )
    assert places.config_file == Path("/etc/a/panicd.yaml")
    assert places.runtime_directory == Path("/run/a")
    assert places.state_directory == Path("/var/lib/a")


def test_here_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/here")
    assert Places.here().state_directory == Path("/var/lib/here")
