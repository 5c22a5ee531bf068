import contextlib
import shutil
import stat
import tempfile
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from panicd.fleet.discovery import Appeared, Change, Discovery, Unreadable, Vanished
from tests.fleet.discovery.sockets import bind, take

# Whatever is done to a tree, what was told adds up to what is there. Paths are relative to a base
# that has two levels of directories, a and b in each, and sockets x and y in them.
DIRECTORIES = ["a", "b", "a/a", "a/b", "b/a", "b/b"]
SOCKETS = [f"{directory}/{name}" for directory in DIRECTORIES[2:] for name in "xy"]
STEPS = st.one_of(
    st.tuples(st.just("mkdir"), st.sampled_from(DIRECTORIES)),
    st.tuples(st.just("remove"), st.sampled_from(DIRECTORIES + SOCKETS)),
    st.tuples(st.just("bind"), st.sampled_from(SOCKETS)),
    st.tuples(
        st.just("rename"),
        st.one_of(
            st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(DIRECTORIES)),
            st.tuples(st.sampled_from(SOCKETS), st.sampled_from(SOCKETS)),
        ),
    ),
    st.tuples(st.just("look"), st.none()),
)


def do(base: Path, kind: str, what: object) -> None:
    """Take one step, or none where it can't be taken."""
    with contextlib.suppress(OSError):
        match kind, what:
            case "mkdir", str(path):
                (base / path).mkdir(parents=True)
            case "bind", str(path):
                bind(base / path)
            case "remove", str(path) if (base / path).is_dir():
                shutil.rmtree(base / path)
            case "remove", str(path):
                (base / path).unlink()
            case "rename", (str(path), str(target)):
                (base / path).rename(base / target)
            case _:
                pass


def sockets(tree: Path, pattern: str) -> set[Path]:
    return {path for path in tree.glob(pattern) if stat.S_ISSOCK(path.lstat().st_mode)}


@given(
    pattern=st.sampled_from(["*/*/*", "*/b/*", "a/*/x", "a/b/x"]),
    before=st.lists(STEPS, max_size=10),
    after=st.lists(STEPS, max_size=20),
)
def test_what_is_told_adds_up_to_what_is_there(
    pattern: str, before: list[tuple[str, object]], after: list[tuple[str, object]]
) -> None:
    async def scenario(base: Path, tree: Path) -> None:
        told: set[Path] = set()

        def keep(change: Change) -> None:
            match change:
                case Appeared(path):
                    assert path not in told
                    told.add(path)
                case Vanished(path):
                    told.remove(path)
                case Unreadable():
                    raise AssertionError(change)

        for kind, what in before:
            do(tree, kind, what)
        with Discovery(f"{base}/[tm]*/{pattern}") as discovery:
            for kind, what in after:
                do(tree, kind, what)
                if kind == "look":
                    discovery._read()
            # Events come in their order: when the mark is told, everything before it was.
            mark = base / "mark" / "/".join("a" if c == "*" else c for c in pattern.split("/"))
            mark.parent.mkdir(parents=True)
            bind(mark)
            while mark not in told:
                keep(*await take(discovery, 1))
            while discovery._changes:
                keep(*await take(discovery, 1))
        assert told - {mark} == sockets(tree, pattern)

    with tempfile.TemporaryDirectory(prefix="panicd-") as name:
        base = Path(name)
        (base / "tree").mkdir()
        trio.run(scenario, base, base / "tree")
