"""Units' names of domains, as systemd-escape makes them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from panicd.rules.unit_name import UnitNameError, escape_instance, is_pattern, unit_name

UUID = "6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11"
NAMES = ["web-1", "a b", ".hidden", "a.b_c:d", "ä", "a/b", "x@y", "back\\slash", "100%"]


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("web", "web"),
        ("web-1", r"web\x2d1"),
        (".hidden.vm", r"\x2ehidden.vm"),
        ("a/b", "a-b"),
        ("x@y", r"x\x40y"),
        ("ä", r"\xc3\xa4"),
    ],
)
def test_names_are_escaped(name: str, escaped: str) -> None:
    assert escape_instance(name) == escaped


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="no systemd-escape here")
def test_systemd_escapes_the_same() -> None:
    said = subprocess.run(["systemd-escape", *NAMES], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [escape_instance(name) for name in NAMES]


def test_patterns() -> None:
    assert unit_name("qemu@{domain}.service", "web-1", "") == r"qemu@web\x2d1.service"
    assert unit_name("qemu@{domain_as_is}.service", "web-1", "") == "qemu@web-1.service"
    assert unit_name("vm-{uuid}.service", "web-1", UUID).count(r"\x2d") == 4
    assert unit_name("one.service", "web-1", "") == "one.service"


@pytest.mark.parametrize(
    ("pattern", "domain"),
    [
        ("qemu@{domain_as_is}.service", "a b"),
        ("qemu@{domain_as_is}.service", "../x"),
        ("qemu@{domain_as_is}.service", "x.service other"),
        ("qemu@{domain}.service", "x" * 250),
        ("qemu@{uuid}.service", "without one"),
    ],
)
def test_no_other_unit_is_ever_meant(pattern: str, domain: str) -> None:
    with pytest.raises(UnitNameError):
        unit_name(pattern, domain, "")


def test_a_name_that_looks_like_a_placeholder_is_none() -> None:
    assert unit_name("a{domain}.service", "{uuid}", "") == r"a\x7buuid\x7d.service"


@pytest.mark.parametrize("text", ["", "qemu@{name}.service", "/x.service", "x.mount", "--help"])
def test_what_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)
