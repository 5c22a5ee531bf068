"""The wheel and the sdist: what they hold, built without a network."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from fnmatch import fnmatch
from pathlib import Path

import pytest

from panicd import __version__

ROOT = Path(__file__).parents[2]
STEM = f"panicd-{__version__}"


def tree(top: Path) -> Iterator[str]:
    """The paths of all files in the repository, without what it ignores."""
    ignored = [".git", ".coverage*"]
    ignored += [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    for folder, subfolders, files in os.walk(top):
        for names in (subfolders, files):
            names[:] = [n for n in names if not any(fnmatch(n, pattern) for pattern in ignored)]
        yield from (str((Path(folder) / name).relative_to(ROOT)) for name in files)


def build(target: str, source: Path, into: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with zipfile.ZipFile(build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_sdist_is_the_whole_tree(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}

    assert names == {*tree(ROOT), "PKG-INFO"}


def test_the_sdist_alone_builds_the_same_wheel(
    sdist: Path, wheel: dict[str, bytes], tmp_path: Path
) -> None:
    subprocess.run(["tar", "--extract", "--file", sdist, "--directory", tmp_path], check=True)

    with zipfile.ZipFile(build("wheel", tmp_path / STEM, tmp_path / "built")) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == wheel


def test_the_wheel_holds_the_program_and_what_goes_with_it(wheel: dict[str, bytes]) -> None:
    data = f"{STEM}.data/data"
    shared = {
        "systemd/panicd.service": "lib/systemd/system/panicd.service",
        "systemd/unprivileged.conf": "share/doc/panicd/unprivileged.conf",
        "config/panicd.yaml": "share/doc/panicd/panicd.yaml",
        **{name: name for name in tree(ROOT / "share") if not name.startswith("share/package/")},
        **{
            name: name.replace("config", "share/doc/panicd", 1)
            for part in ("prometheus", "grafana")
            for name in tree(ROOT / "config" / part)
        },
    }

    modules = {name for name in wheel if not name.startswith(STEM)}
    assert modules == set(tree(ROOT / "panicd"))
    assert "panicd/py.typed" in modules
    assert {name for name in wheel if name.startswith(data)} == {
        f"{data}/{place}" for place in shared.values()
    }
    for source, place in shared.items():
        assert wheel[f"{data}/{place}"] == (ROOT / source).read_bytes()


def test_the_wheel_says_what_it_is(wheel: dict[str, bytes]) -> None:
    said = Parser().parsestr(wheel[f"{STEM}.dist-info/METADATA"].decode())

    assert (said["Name"], said["Version"]) == ("panicd", __version__)
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == "<3.15,>=3.11"
    assert f"{STEM}.dist-info/licenses/LICENSE" in wheel
    # The README is its long description. Its links lead to files of the repository.
    assert str(said.get_payload()).startswith("# panicd\n")
    assert "panicd = panicd.__main__:main" in wheel[f"{STEM}.dist-info/entry_points.txt"].decode()
    # Any Linux, any Python that is new enough: nothing is compiled.
    assert b"Tag: py3-none-any" in wheel[f"{STEM}.dist-info/WHEEL"]


def test_the_bill_of_materials_names_each_wheel(tmp_path: Path) -> None:
    wheel = build("wheel", ROOT, tmp_path)

    told = [
        subprocess.run(
            [ROOT / "share/package/sbom", tmp_path], capture_output=True, check=True, timeout=60
        ).stdout
        for _ in range(2)
    ]

    assert told[0] == told[1]
    bom = json.loads(told[0])
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
    assert bom["metadata"]["component"]["version"] == __version__
    (component,) = bom["components"]
    assert component["purl"] == f"pkg:pypi/panicd@{__version__}"
    assert component["licenses"] == [{"expression": "Apache-2.0"}]
    assert component["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert bom["dependencies"][0]["dependsOn"] == [component["bom-ref"]]
