import pytest

from panicd.fleet.discovery import Discovery, validate_pattern


@pytest.mark.parametrize(
    "pattern", ["/run/qemu/*.qmp", "/run/qemu/*/monitor.sock", "/*", "/a", "/a/[xy]?/.b"]
)
def test_accepts(pattern: str) -> None:
    validate_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "absolute"),
        ("run/*.qmp", "absolute"),
        ("~/qemu/*.qmp", "absolute"),
        ("/", "name is needed"),
        ("/run/qemu/", "name is needed"),
        ("/run/**/x.qmp", "not supported"),
        ("/run/a**b", "not supported"),
        ("/run//x.qmp", "'' can't be"),
        ("/run/../x.qmp", "'..' can't be"),
        ("/run/./x.qmp", "'.' can't be"),
        ("/run/x\0.qmp", "NUL"),
    ],
)
def test_refuses(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_pattern(pattern)
    with pytest.raises(ValueError, match=message):
        Discovery(pattern)
