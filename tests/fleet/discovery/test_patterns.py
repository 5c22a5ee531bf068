import pytest

from panicd.fleet.discovery import Discovery
from panicd.rules.socket_path import pattern_problem


@pytest.mark.parametrize(
    "pattern", ["/run/qemu/*.qmp", "/run/qemu/*/monitor.sock", "/*", "/a", "/a/[xy]?/.b"]
)
def test_accepts(pattern: str) -> None:
    assert pattern_problem(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "absolute"),
        ("run/*.qmp", "absolute"),
        ("~/qemu/*.qmp", "absolute"),
        ("/", "not of directories"),
        ("/run/qemu/", "not of directories"),
        ("/run/**/x.qmp", "not supported"),
        ("/run/a**b", "not supported"),
        ("/run//x.qmp", "without '//'"),
        ("/run/../x.qmp", "without '..'"),
        ("/run/./x.qmp", "without '.'"),
        ("/run/x\0.qmp", "NUL"),
    ],
)
def test_refuses(pattern: str, message: str) -> None:
    assert message in pattern_problem(pattern)
    with pytest.raises(ValueError, match="expected"):
        Discovery(pattern)
