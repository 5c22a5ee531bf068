"""The shape of the tree: who imports whom, and what is found in one place only."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import panicd

PACKAGE = Path(panicd.__file__).parent
ROOT = PACKAGE.parent

# Modules above rules, qemu and host. Each imports from those before it only.
ORDER = [
    "problems",
    "damaged_journal",
    "libvirt",
    "libvirts_own",
    "right_of_way",
    "dump_queue",
    "relaunch",
    "storm_breaker",
    "tally",
    "bundle_keeper",
    "timers",
    "incident.chronicle",
    "fleet",
    "dumping",
    "incident.waiting",
    "records",
    "services",
    "evidence",
    "incident.liveness",
    "incident.request",
    "incident.outcome",
    "incident.errands",
    "incident.policy_in_force",
    "incident.driver",
    "incident.adoption",
    "incident",
    "strangers",
    "connector",
    "answers.operators",
    "answers.holding",
    "answers.snapshot",
    "answers.audit",
    "answers.api",
    "answers.counter",
    "answers",
    "notifier",
    "page.script",
    "page.style",
    "page.parts",
    "page.filtering",
    "page.overview",
    "page.evidence",
    "page.tokens",
    "page.forms",
    "page.download",
    "page.domain",
    "page.incident",
    "page.operating",
    "page.panics",
    "page.pages",
    "page",
    "daemon",
    "demo",
    "cli.moment",
    "cli.terminal",
    "cli.render_dumps",
    "cli.incident_log",
    "cli.render",
    "cli.watching",
    "cli.render_changes",
    "cli.render_incident",
    "cli.filtering",
    "cli.export",
    "cli.base",
    "cli.configured",
    "cli.probing",
    "cli.advising",
    "cli.checking",
    "cli.running",
    "cli.arguments",
    "cli.demonstrating",
    "cli.deferred",
    "cli.incident_commands",
    "cli.commands",
    "cli.program",
    "cli",
    "__main__",
]

# Packages that are one layer each, whatever is in them.
WHOLE = {"rules", "dumps", "qemu", "host", "demo"}

# What a layer may import of panicd.
LAYERS = {
    "rules": {"rules"},
    "dumps": {"rules", "dumps"},
    "qemu": {"rules", "qemu"},
    "host": {"rules", "host"},
    # It looks on from outside, as whoever runs panicd does.
    "demo": {"rules", "host", "demo", "__init__"},
    "__init__": set(),
}
for place, name in enumerate(ORDER):
    LAYERS.setdefault(name, {"rules", "dumps", "qemu", "host", "__init__", *ORDER[:place]})

# A clock, chance, files, processes, logs: values in and values out do without.
IMPURE_MODULES = {
    "asyncio",
    "io",
    "logging",
    "random",
    "secrets",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}
IMPURE_NAMES = {"open", "print", "input", "exec", "eval"}
IMPURE_ATTRIBUTES = {
    "now", "utcnow", "today",
    "exists", "glob", "is_file", "iterdir", "mkdir", "open", "read_bytes", "read_text", "stat",
    "unlink", "write_bytes", "write_text",
}  # fmt: skip

FOREIGN_ASYNC = ("asyncio", "qemu", "trio_asyncio")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"{name_of(path)}: a relative import")


def layer(module: str) -> str:
    """Return the layer of ``panicd.x.y.z``: as many of its parts as name a package or module."""
    there: list[str] = []
    for part in module.split(".")[1:]:
        path = PACKAGE.joinpath(*there, part)
        if not (path.is_dir() or path.with_suffix(".py").exists()):
            break
        there.append(part)
        if part in WHOLE:
            break
    return ".".join(there) or "__init__"


def own_layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] in WHOLE:
        return parts[0]
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    own = own_layer(path)
    assert own in LAYERS, f"give {own} its place in ORDER"
    used = {layer(name) for name in imports(path) if name.split(".")[0] == "panicd"}
    assert used <= LAYERS[own]


def test_every_place_in_the_order_is_a_module_s() -> None:
    there = {own_layer(path) for path in modules()}
    assert set(ORDER) | {"rules", "dumps", "qemu", "host", "__init__"} == there


def rules() -> list[Path]:
    return [path for path in modules() if own_layer(path) == "rules"]


@pytest.mark.parametrize("path", rules(), ids=name_of)
def test_rules_are_pure(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert top == "panicd" or top in sys.stdlib_module_names, f"{top} is neither"
        assert top not in IMPURE_MODULES
    for node in ast.walk(tree(path)):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncWith() | ast.AsyncFor():
                raise AssertionError(f"line {node.lineno} is async")
            case ast.Call(func=ast.Name(id=called)):
                assert called not in IMPURE_NAMES, f"line {node.lineno}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=called)):
                assert called.startswith("W"), f"line {node.lineno}: more than a status is read"
            case ast.Call(func=ast.Attribute(attr=called)):
                assert called not in IMPURE_ATTRIBUTES, f"line {node.lineno}"
            case _:
                pass


def test_foreign_async_stays_in_one_file() -> None:
    users = [
        name_of(path)
        for path in modules()
        if any(name.split(".")[0] in FOREIGN_ASYNC for name in imports(path))
    ]
    assert users == ["panicd/qemu/monitor.py"]


def test_cont_is_born_in_plans_only() -> None:
    """Whoever lets a guest run does it by a plan: see ``tests/rules/test_safety.py``."""
    makers = [
        name_of(path)
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Cont"
    ]
    assert set(makers) == {"panicd/rules/plan.py"}


def test_cont_is_sent_by_its_step_and_to_ignored_guests_only() -> None:
    senders = [
        name_of(path)
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value == "cont"
    ]
    # The demonstration starts VMs of its own, which panicd has not yet seen.
    assert senders == [
        "panicd/demo/qemu.py",
        "panicd/rules/machine/commands.py",
        "panicd/rules/machine/ignoring.py",
    ]


def test_libvirt_is_told_to_act_in_one_place_only() -> None:
    """It could let a guest run as well ('resume')."""
    tellers = [
        name_of(path)
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("libvirt.act")
    ]
    assert tellers == ["panicd/incident/errands.py"]


def test_the_package_s_drawing_names_every_module() -> None:
    drawing = panicd.__doc__
    assert drawing is not None
    words = set(re.findall(r"\w+", drawing))
    assert {name.split(".")[-1] for name in ORDER} - {"__main__"} <= words


@pytest.mark.parametrize("package", ["qemu", "host", "answers", "page", "cli"])
def test_the_package_s_drawing_names_no_module_that_is_not_there(package: str) -> None:
    assert panicd.__doc__ is not None
    row = re.search(rf"^ +{package}/ .*: (.*(?:\n {{9,}}.*)*)$", panicd.__doc__, re.MULTILINE)
    assert row is not None
    for module in re.split(r",\s+", row[1]):
        assert (PACKAGE / package / f"{module}.py").exists()
