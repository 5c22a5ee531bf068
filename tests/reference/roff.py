"""Markdown, as far as the docs use it, as a man page: see man(7) and groff_man(7).

Of tables the first column becomes the term, and the other columns its description.
"""

import re
from collections.abc import Iterator
from typing import Final

# Columns whose text says by itself what it is.
UNLABELLED: Final = frozenset({"", "what it does", "notes"})

_CELL_END = re.compile(r"(?<!\\)\|")
_INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^]]+)\]\(([^)]+)\)")


def man_body(markdown: str) -> str:
    """Return the body of a page; the document's title is left out, for NAME says it."""
    return "\n".join(line for block in _blocks(markdown) for line in _block(block)) + "\n"


def plain(text: str) -> str:
    """Return text that roff prints as it is, with characters beyond ASCII by their number."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)


def _blocks(markdown: str) -> Iterator[list[str]]:
    """Split a document into its blocks: at empty lines outside code, and before code."""
    block: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        begins_code = line.startswith("```") and not in_code
        if block and not in_code and (not line or begins_code):
            yield block
            block = []
        if line.startswith("```"):
            in_code = begins_code
        if line or in_code:
            block.append(line)
    if block:
        yield block


def _block(lines: list[str]) -> Iterator[str]:
    first = lines[0]
    if first.startswith("```"):
        yield from (".PP", ".RS 4", ".nf", *map(_line_of_code, lines[1:-1]), ".fi", ".RE")
    elif first.startswith("#"):
        level, _, title = first.partition(" ")
        if level == "##":
            yield f".SH {_quoted(title.upper())}"
        elif level == "###":
            yield f".SS {_quoted(title)}"
        yield from _block(lines[1:]) if lines[1:] else ()
    elif first.startswith("|"):
        yield from _table(lines)
    elif first.startswith("- "):
        for item in re.split(r"\n(?=- )", "\n".join(lines)):
            yield r".IP \(bu 2"
            yield _inline(item.removeprefix("- "))
    else:
        yield ".PP"
        yield _inline("\n".join(lines))


def _table(lines: list[str]) -> Iterator[str]:
    rows = [
        [cell.strip().replace(r"\|", "|") for cell in _CELL_END.split(line)[1:-1]] for line in lines
    ]
    header, _, *body = rows
    for term, *cells in body:
        yield ".TP"
        yield _inline(term)
        told = [
            (label, cell) for label, cell in zip(header[1:], cells, strict=True) if cell.strip()
        ]
        for place, (label, cell) in enumerate(sorted(told, key=lambda x: x[0] not in UNLABELLED)):
            if place:
                yield ".br"
            yield _inline(cell if label in UNLABELLED else f"{label}: {cell}")


def _line_of_code(line: str) -> str:
    return _guarded(plain(line))


def _inline(text: str) -> str:
    text = " ".join(line.strip() for line in text.splitlines())
    pieces: list[str] = []
    end = 0
    for match in _INLINE.finditer(text):
        code, strong, label, target = match.groups()
        pieces.append(plain(text[end : match.start()]))
        if label is not None:
            link = f" <{target}>" if "://" in target else ""
            pieces.append(plain(label.replace("`", "") + link))
        else:
            pieces.append(rf"\fB{plain(code or strong)}\fR")
        end = match.end()
    return _guarded("".join([*pieces, plain(text[end:])]))


def _guarded(line: str) -> str:
    """Keep a line from being taken for a request, which begin with a dot or an apostrophe."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _quoted(title: str) -> str:
    return '"' + plain(title.replace("`", "")).replace('"', r"\(dq") + '"'
