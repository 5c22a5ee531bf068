"""Commands and configurations in the documents are ones that panicd takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from panicd.cli import main
from panicd.config import config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[|&(]\s*|\$ )panicd (?!\[)(.*)")


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    for match in FENCE.finditer(document.read_text(encoding="utf-8")):
        yield match[1], match[2].replace("\\\n", " ")


def commands() -> Iterator[str]:
    """The command lines in the documents' code; docs/commands.md has patterns, not commands."""
    for document in DOCUMENTS:
        if document.name != "commands.md":
            for _, text in blocks(document):
                for line in text.splitlines():
                    if match := COMMAND.search(line):
                        yield re.split(r" (?:[|]|\d?>) |  #|\)| &$", match[1])[0]


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_is_one_that_panicd_takes(line: str) -> None:
    words = shlex.split(line, comments=True)
    context = main.make_context("panicd", list(words))
    name, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])

    assert command is not None
    command.make_context(name, rest, parent=context).close()  # a wrong use raises


CONFIGURATIONS = [
    text
    for document in DOCUMENTS
    for language, text in blocks(document)
    if language == "yaml" and text.startswith("monitors:")
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_a_configuration_is_good(text: str, tmp_path: Path) -> None:
    file = tmp_path / "panicd.yaml"
    file.write_text(text)

    assert config.load(file).monitors


def test_there_is_something_to_try() -> None:
    assert len(set(commands())) > 20
    assert len(CONFIGURATIONS) >= 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!\w+:)([^)#]*)(?:#[^)]*)?\)", text)

    assert [name for name in targets if name and not (document.parent / name).exists()] == []
