"""The shape of the tree: who imports whom, and what is found in one place only."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import panicd

PACKAGE = Path(panicd.__file__).parent
ROOT = PACKAGE.parent

# The rooms at the top of panicd/. Each imports from those before it only.
ROOMS = (
    "rules",
    "host",
    "config",
    "journal",
    "qemu",
    "libvirt",
    "evidence",
    "dumps",
    "incident",
    "fleet",
    "notify",
    "web",
    "service",
    "demo",
    "cli",
)
AT_MOST = 15  # rooms: as many as a stranger takes in

# Rooms, and modules in them, that may import less than their place allows.
STRICTER = {
    "host": {"rules"},
    "config": {"rules"},
    "qemu": {"rules", "host.timers"},
    # It looks on from outside, as whoever runs panicd does.
    "demo": {"rules", "host.sdnotify", "host.terminal", "service.control_client"},
    # Programs, each run in a process of its own.
    "dumps.filter": {"rules", "dumps.filter"},
}

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


def module_of(path: Path) -> str:
    """Return a module's name without ``panicd.``; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").removesuffix(".")


NAMES = frozenset(module_of(path) for path in modules())


def used_by(path: Path) -> set[str]:
    """Return the modules of panicd that a module imports."""
    used = set()
    for name in imports(path):
        if name.split(".")[0] == "panicd":
            parts = name.split(".")[1:]
            while ".".join(parts) not in NAMES:
                parts.pop()
            used.add(".".join(parts))
    return used - {""}


def is_in(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    own = module_of(path)
    room = own.split(".")[0]
    allowed = set(ROOMS) if room not in ROOMS else {*ROOMS[: ROOMS.index(room) + 1]}
    for place, less in STRICTER.items():
        if is_in(own, {place}):
            allowed = {place, *less}
    assert {module for module in used_by(path) if not is_in(module, allowed)} == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module_of(path): used_by(path) for path in modules()}
    TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_the_rooms_are_those_of_the_list() -> None:
    there = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert there == set(ROOMS)
    assert len(ROOMS) <= AT_MOST
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__"}


def test_the_package_s_docstring_lists_the_rooms_in_their_order() -> None:
    assert panicd.__doc__ is not None
    assert re.findall(r"^    (\w+)/ ", panicd.__doc__, re.MULTILINE) == list(ROOMS)


@pytest.mark.parametrize(
    "room",
    [path for path in modules() if path.name == "__init__.py" and path.parent != PACKAGE],
    ids=name_of,
)
def test_a_room_s_docstring_names_its_modules(room: Path) -> None:
    text = ast.get_docstring(tree(room))
    assert text is not None
    there = {path.stem for path in room.parent.glob("*.py")} - {"__init__"}
    assert there - set(re.findall(r"\w+", text)) == set()


def rules() -> list[Path]:
    return [path for path in modules() if is_in(module_of(path), {"rules"})]


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
    # The demonstration starts VMs of its own, which panicd has not yet seen. libvirt is told what
    # the machine's command means.
    assert senders == [
        "panicd/demo/qemu.py",
        "panicd/libvirt/qmp_words.py",
        "panicd/rules/machine/commands.py",
        "panicd/rules/machine/ignoring.py",
    ]


def test_libvirt_is_told_to_act_by_what_carries_the_machine_s_commands_out_only() -> None:
    """It could let a guest run as well ('resume')."""

    def users(*names: str) -> set[str]:
        return {
            name_of(path)
            for path in modules()
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in names
        }

    tellers = {"panicd/libvirt/beside.py", "panicd/libvirt/qmp_words.py"}
    acts = {f"requests.{name}" for name in ("reset", "resume", "suspend", "destroy")}
    assert users(*acts) == tellers
    translators = {"panicd/libvirt/qmp_words.py", "panicd/libvirt/domain_monitor.py"}
    assert users("ACTS", "qmp_words.ACTS") == translators
    assert users("beside.act") == {"panicd/incident/errands.py"}
