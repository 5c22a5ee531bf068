from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.config import values
from panicd.config.mistakes import Position
from panicd.config.values import WrongValueError
from panicd.config.yaml_document import Scalar
from panicd.rules.settings import FreeSpaceFloor


def plain(text: str) -> Scalar:
    return Scalar(Position(1, 1), text, plain=True)


def quoted(text: str) -> Scalar:
    return Scalar(Position(1, 1), text, plain=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("500ms", 0.5),
        ("90s", 90.0),
        ("2m", 120.0),
        ("1h30m", 5400.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("1d2h3m4s5ms", 93784.005),
        ("3650d", values.DURATION_MAX),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(plain(text)) == seconds
    assert values.duration(quoted(text)) == seconds


@given(st.integers(0, int(values.DURATION_MAX * 1000)))
def test_a_duration_survives_being_written(milliseconds: int) -> None:
    text = values.written_duration(milliseconds / 1000)
    assert values.duration(plain(text)) == milliseconds / 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.25, "250ms"), (90.0, "1m30s"), (86400.0, "1d"), (93784.005, "1d2h3m4s5ms")],
)
def test_a_duration_is_written_with_as_few_units_as_it_takes(seconds: float, text: str) -> None:
    assert values.written_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("500MB", 500 * 10**6),
        ("50GiB", 50 * 2**30),
        ("50 GiB", 50 * 2**30),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1048576TiB", values.SIZE_MAX),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert values.size(plain(text)) == size


@given(st.integers(0, values.SIZE_MAX // 2**40), st.sampled_from(["TiB", "GiB", "MiB", "KiB"]))
def test_a_size_is_the_same_in_bytes(number: int, unit: str) -> None:
    size = values.size(plain(f"{number}{unit}"))
    if size < 10**18:  # more digits are not read
        assert values.size(plain(f"{size}B")) == size
    assert values.free_space(plain(f"{number}{unit}")) == FreeSpaceFloor(size=size)


@given(st.integers(0, 99))
def test_a_share_of_the_file_system(percent: int) -> None:
    floor = values.free_space(plain(f"{percent}%"))
    assert floor.size == 0
    assert round(floor.fraction * 100) == percent


@pytest.mark.parametrize(("text", "share"), [("0%", 0.0), ("25%", 0.25), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert values.share(plain(text)) == share


@given(st.text(), st.booleans())
def test_every_reader_takes_any_text_or_says_what_it_expects(text: str, bare: bool) -> None:
    scalar = Scalar(Position(1, 1), text, plain=bare)
    readers = [
        *[values.duration, values.size, values.free_space, values.whole_number(0), values.boolean],
        *[values.text, values.domain_pattern, values.absolute_path, values.program],
        *[values.socket_glob, values.metrics_endpoint, values.share, values.off],
    ]
    for reader in readers:
        with suppress(WrongValueError):
            reader(scalar)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:10077", ("127.0.0.1", 10077)),
        ("192.0.2.1:0", ("192.0.2.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[::]:10077", ("::", 10077)),
    ],
)
def test_metrics_endpoints(text: str, endpoint: tuple[str, int]) -> None:
    assert values.metrics_endpoint(quoted(text)) == endpoint


def test_a_socket_path_of_107_bytes_is_not_too_long() -> None:
    path = "/" + "x" * 106
    assert str(values.socket_path(plain(path))) == path
    with pytest.raises(WrongValueError, match="at most 107 bytes, not 108"):
        values.socket_path(plain(path + "x"))


@pytest.mark.parametrize("text", ["no", "on", "0123", "12:30:45", "1_000", ".inf", "~"])
def test_text_that_yaml_takes_for_something_else_needs_quotes(text: str) -> None:
    assert values.text(quoted(text)) == text
    with pytest.raises(WrongValueError, match="quotes around it"):
        values.text(plain(text))


@pytest.mark.parametrize("text", ["db", "db-*", "web 1", "a.b", "1a", "yes-man", "--now"])
def test_other_text_needs_none(text: str) -> None:
    assert values.text(plain(text)) == text


def test_an_argument_may_have_several_lines_and_a_pattern_not() -> None:
    assert values.text(quoted("one\ntwo\n")) == "one\ntwo\n"
    with pytest.raises(WrongValueError, match="one line"):
        values.domain_pattern(quoted("one\ntwo"))
