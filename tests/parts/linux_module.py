"""Modules for a Linux guest's kernel, each built once, with gcc and the kernel's own headers.

apt downloads the headers; nothing is installed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.parts.apt import Apt, need, run
from tests.parts.linux import cache_directory

_SOURCES = Path(__file__).parent / "trouble"


def built_module(name: str, image: Path, apt: Apt, *, cross: tuple[str, str] | None = None) -> Path:
    """A module for a kernel.

    Args:
        name: Its source's, without ``.c``.
        image: The kernel.
        apt: Where its headers come from.
        cross: The architecture and the compiler's prefix, where they are not this machine's.

    Raises:
        MissingError: It can't be had here; says why.
    """
    release = image.name.removeprefix("vmlinuz-")
    source = (_SOURCES / f"{name}.c").read_bytes()
    target = cache_directory() / f"{name}-{release}" / f"{name}.ko"
    if target.exists() and target.with_suffix(".c").read_bytes() == source:
        return target
    architecture, prefix = cross or ("", "")
    need("make", f"{prefix}gcc")
    with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
        headers = _headers(Path(scratch), release, apt)
        module = Path(scratch, "module")
        module.mkdir()
        Path(module, f"{name}.c").write_bytes(source)
        Path(module, "Kbuild").write_text(f"obj-m := {name}.o\n")
        settings = [
            f"CC={prefix}gcc",
            "CONFIG_DEBUG_INFO_BTF_MODULES=",  # they take pahole
            *([f"ARCH={architecture}", f"CROSS_COMPILE={prefix}"] if cross else []),
        ]
        run(scratch, "make", "-C", str(headers), f"M={module}", *settings, "modules")
        shutil.rmtree(target.parent, ignore_errors=True)
        module.rename(target.parent)
    return target


def _headers(scratch: Path, release: str, apt: Apt) -> Path:
    """Unpack a kernel's headers, and what builds modules with them on this machine."""
    package = f"linux-headers-{release}"
    needed = apt.depends(package)
    root = scratch / "root"
    apt.unpack(root, package, *(name for name in needed if name.startswith("linux-headers-")))
    Apt().unpack(root, *(name for name in needed if name.startswith("linux-kbuild-")))
    headers = root / "usr" / "src" / package
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("include /usr/", f"include {root}/usr/"))
    return headers
