"""Reads the text of a configuration file, or says why it can't be read."""

from pathlib import Path
from typing import Final

from panicd.config.mistakes import ConfigError, Mistake, MistakeList
from panicd.config.yaml_document import position_in

FILE_SIZE_MAX: Final = 4 * 2**20
"""Bytes: some 40,000 domains, each with settings of its own."""


def read_text(path: Path) -> str:
    """Return a file's text; it is read blocking, as it is small.

    Raises:
        ConfigError: it can't be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        raise _unusable(path, f"expected a readable file (got {error.strerror})") from error
    if len(data) > FILE_SIZE_MAX:
        raise _unusable(path, f"expected a file of at most {FILE_SIZE_MAX // 2**20} MiB (got more)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mistakes = MistakeList(str(path))
        before = data[: error.start].decode("utf-8-sig")
        position = position_in(before, len(before))
        mistakes.add(position, "", f"expected UTF-8 (got byte 0x{data[error.start]:02x})")
        raise mistakes.error() from error


def _unusable(path: Path, message: str) -> ConfigError:
    return ConfigError([Mistake(0, 0, "", message, str(path))])
