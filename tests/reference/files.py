"""Which files there are, and how each is written."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from click.shell_completion import get_completion_class

from panicd import __version__
from panicd.cli import completing, main
from tests.reference import schemas
from tests.reference.commands import commands_page
from tests.reference.machine import machine_document
from tests.reference.roff import man_body, plain

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = "panicd"

_EXIT_STATUS: Final = """\
## Exit status

| | |
|---|---|
| `0` | done |
| `1` | failed: the daemon refused, or can't be reached |
| `2` | bad usage, or a mistake in the configuration |
"""

_AROUND: Final = """\
## Environment

| | |
|---|---|
| `PANICD_CONFIG` | The configuration, as `--config` names it. |
| `PANICD_SOCKET` | The daemon's control socket, as `--socket` names it. |

## Files

| | |
|---|---|
| `/etc/panicd/panicd.yaml` | the configuration |
| `/run/panicd/control.sock` | where the commands reach the daemon |
| `/var/lib/panicd/` | the journal, the evidence of each panic, and by default the memory dumps |

Not as root: `~/.config/panicd/panicd.yaml`, and the directories that XDG_RUNTIME_DIR and
XDG_STATE_HOME name.

## See also

`panicd.yaml`(5), `qemu-system-x86_64`(1), `systemctl`(1)
"""


def commands_document() -> str:
    """Return docs/commands.md."""
    return f"{_commands()}\n{_EXIT_STATUS}"


def manual_of_program() -> str:
    """Return panicd(1)."""
    title, _, commands = _commands().partition("\n\n")
    assert title == "# The commands"
    return _page(
        1,
        PROGRAM,
        "decides what happens when a QEMU guest panics",
        "User Commands",
        f"## Synopsis\n\n```\n{PROGRAM} [OPTIONS] COMMAND [ARGS]...\n```\n\n"
        f"## Description\n\n{commands}\n{_EXIT_STATUS}\n{_AROUND}",
    )


def manual_of_configuration() -> str:
    """Return panicd.yaml(5): docs/configuration.md."""
    document = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    _, _, text = document.partition("\n\n")
    return _page(
        5,
        f"{PROGRAM}.yaml",
        "the configuration of panicd",
        "File Formats",
        f"## Description\n\n{text}\n## See also\n\n`panicd`(1)\n",
    )


def completion(shell: str) -> str:
    """Return a shell's completion script; it asks the program at each use."""
    assert completing.DescribingBash.name == "bash"  # it is known once it is loaded
    found = get_completion_class(shell)
    assert found is not None
    variables = found(main, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    # Not source(), which for bash looks first at the version of the bash that is installed here.
    return found.source_template % variables.source_vars()


def _released() -> str:
    """When this version was released, as the changelog's first heading has it, or 'unreleased'."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\S+) \((.+)\)$", changelog, re.MULTILINE)
    assert found is not None, "CHANGELOG.md: no heading like '## 1.2.3 (2026-01-31)'"
    assert found[1] == __version__, (
        f"CHANGELOG.md begins with {found[1]}, and this is {__version__}"
    )
    return found[2]


def _commands() -> str:
    return commands_page(main, PROGRAM)


def _page(section: int, name: str, purpose: str, manual: str, markdown: str) -> str:
    heading = (
        f'.TH "{plain(name.upper())}" {section} "{plain(_released())}" '
        f'"panicd {__version__}" "{manual}"'
    )
    return "\n".join(
        [
            r".\" Written by `make reference`.",
            heading,
            # Long words of code would tear gaps into justified lines. groff from 1.23 on asks a
            # string with each paragraph; older ones and mandoc take the request.
            ".ds AD l",
            ".ad l",
            ".SH NAME",
            f"{plain(name)} \\- {purpose}",
            man_body(markdown),
        ]
    )


FILES: Final[dict[str, Callable[[], str]]] = {
    **{f"docs/schemas/{name}.json": partial(schemas.written, name) for name in schemas.DOCUMENTS},
    "docs/json.md": schemas.json_document,
    "docs/commands.md": commands_document,
    "docs/machine.md": machine_document,
    "share/man/man1/panicd.1": manual_of_program,
    "share/man/man5/panicd.yaml.5": manual_of_configuration,
    "share/bash-completion/completions/panicd": lambda: completion("bash"),
    "share/zsh/site-functions/_panicd": lambda: completion("zsh"),
    "share/fish/vendor_completions.d/panicd.fish": lambda: completion("fish"),
}
