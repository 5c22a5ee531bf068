"""Where the running daemon answers, even if its configuration is damaged.

Loading YAML takes a command longer than everything else. So it is done only for a file that does
not name the socket in the usual way, on one line and without quotes.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from panicd.config.places import Places

_MAY_NAME: Final = re.compile(r"^(?![ \t]*#).*(?:control_socket|\\).*", re.MULTILINE)
"""A line that may name the socket: with the key as it is, or with escapes."""

_PLAIN: Final = re.compile(r"control_socket: +(/[\w./@+-]{0,90}\w)(?: +#.*)?", re.ASCII)
"""Such a line in its usual form, with a path that every socket can have."""

_LINE: Final = r"(?m)^control_socket[ \t]*:.*"


def control_socket(path: Path) -> Path:
    """Return the control socket, as far as a file tells, whatever is wrong with the file.

    A command must reach the daemon even if somebody has just damaged the file, or if this user may
    not read it. If the file is not valid YAML, the one line counts that names the socket.
    """
    default = Places.here().control_socket
    try:
        content = path.read_text("utf-8-sig", errors="replace")
    except OSError:
        return default
    naming = _MAY_NAME.findall(content)
    if not naming:
        return default
    if len(naming) == 1 and (plain := _PLAIN.fullmatch(naming[0])):
        return Path(plain[1])
    return _from_yaml(content, default)


def _from_yaml(content: str, default: Path) -> Path:
    from panicd.config.mistakes import ConfigError, MistakeList, Position  # noqa: PLC0415 - slow to load
    from panicd.config.section import Value  # noqa: PLC0415 - as above
    from panicd.config.values import socket_path  # noqa: PLC0415 - as above
    from panicd.config.yaml_document import Mapping, read_document  # noqa: PLC0415 - as above

    for text in (content, *re.findall(_LINE, content)):
        mistakes = MistakeList("")
        start = Position(1, 1)
        with suppress(ConfigError):
            root = read_document(text, mistakes) or Mapping(start, {})
            with Value(root, "", start, mistakes).section() as keys:
                return keys["control_socket"].read(socket_path, default)
    return default
