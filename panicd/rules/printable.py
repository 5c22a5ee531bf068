"""Makes text of foreign origin printable: for the log, for a terminal, for a page."""

from typing import Final

VALUE_LIMIT: Final = 2048
"""Bytes of UTF-8 that one value may take, its own 'cut' mark not counted."""


def escape(text: str, limit: int = VALUE_LIMIT) -> str:
    r"""Return `text` printable on one line, and bounded.

    Characters that Unicode counts as not printable (categories C and Z but for the space: controls,
    separators, direction marks, zero-width characters, surrogates) become Python's escapes: `\n`,
    `\x1b`, `\u202e`. Longer text is cut, and a mark says so.

    Args:
        text: Any text.
        limit: Bytes of UTF-8 at most, the mark not counted.
    """
    if len(text) * 4 <= limit and text.isprintable():
        return text
    kept = text[:limit]
    if not kept.isprintable():
        kept = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)
    encoded = kept.encode()
    if len(text) <= limit and len(encoded) <= limit:
        return kept
    return f"{encoded[:limit].decode(errors='ignore')}… (cut from {len(text)} characters)"
