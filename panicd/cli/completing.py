"""What a shell offers for a half-typed word: only what the command can be used on.

bash has no descriptions. So as long as there is more than one candidate, each has its description
behind it, as with ``cobra``: bash then takes only what the candidates have in common.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from panicd.service.control_client import Answer, DaemonUnreachableError, RefusedError, call

_IS_PLAIN: Final = re.compile(r"[\w@%+=:,./][\w@%+=:,./~#-]*")
"""A word that a shell takes as it is, and that is no option."""

MOST: Final = 100  # incidents that are offered, the newest


def every_domain(socket: Path, incomplete: str) -> list[CompletionItem]:
    """Complete a domain's name."""
    return _domains(socket, incomplete, lambda _domain: True)


def panicked_domains(socket: Path, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a domain that has panicked."""
    return _domains(socket, incomplete, lambda domain: bool(domain["incident"]))


def held_domains(socket: Path, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a domain that is held."""
    return _domains(socket, incomplete, lambda domain: bool(domain["held_why"]))


def free_domains(socket: Path, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a domain that is not held."""
    return _domains(socket, incomplete, lambda domain: not domain["held_why"])


def every_incident(socket: Path, incomplete: str) -> list[CompletionItem]:
    """Complete an incident's id, with its domain beside it."""
    return _incidents(socket, incomplete)


def unacknowledged_incidents(socket: Path, incomplete: str) -> list[CompletionItem]:
    """Complete the id of an incident that nobody has acknowledged."""
    return _incidents(socket, incomplete, unacknowledged=True)


def _domains(
    socket: Path, incomplete: str, applies: Callable[[Answer], bool]
) -> list[CompletionItem]:
    answer = _ask_quietly(socket, "status") or {"domains": [], "waiting": []}
    found = filter(applies, [*answer["domains"], *answer["waiting"]])
    return _items(((domain["domain"], domain["standing"]) for domain in found), incomplete)


def _incidents(socket: Path, incomplete: str, **wanted: object) -> list[CompletionItem]:
    answer = _ask_quietly(socket, "incidents", limit=MOST, **wanted) or []
    told = ((i["id"], f"{i['domain']}, {i['ending'] or i['state']}") for i in answer)
    return _items(told, incomplete)


def _ask_quietly(socket: Path, command: str, **arguments: object) -> Any:
    """Return the running daemon's answer for a completion; None if none runs."""
    try:
        return call(socket, command, arguments, timeout=1.0)
    except (DaemonUnreachableError, RefusedError):
        return None


def _items(found: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    # bash puts a candidate on the command line as it is: a QEMU may call itself `$(reboot)`.
    return [
        CompletionItem(name, help=about if about.isprintable() else None)
        for name, about in found
        if name.startswith(incomplete) and _IS_PLAIN.fullmatch(name)
    ]


class DescribingBash(BashComplete):
    """bash's script, with descriptions: a candidate's is behind a tab."""

    source_template = r"""
%(complete_func)s() {
    local IFS=$'\n' response candidate value
    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \
        %(complete_var)s=bash_complete $1)
    for candidate in $response; do
        value="${candidate#*,}"
        case "${candidate%%%%,*}" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                if [[ "$value" == *$'\t'* && "$response" == *$'\n'* ]]; then
                    COMPREPLY+=("${value%%%%$'\t'*}  (${value#*$'\t'})")
                else
                    COMPREPLY+=("${value%%%%$'\t'*}")
                fi
                ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def format_completion(self, item: CompletionItem) -> str:
        """Return a candidate in the form that the script above reads."""
        about = f"\t{item.help}" if item.help and item.type == "plain" else ""
        return f"{item.type},{item.value}{about}"


add_completion_class(DescribingBash)
