import fnmatch

from hypothesis import given
from hypothesis import strategies as st

from panicd.config.domain_rules import RuleIndex

UUID = "6f2c9a34-8d0e-4d5c-9b52-0a6f1f0d7a11"
PATTERNS = st.one_of(
    st.sampled_from([UUID, UUID.upper()]),
    st.text("ab*?[]!-", min_size=1, max_size=4),
    st.text(min_size=1, max_size=4),
)


def matches(pattern: str, name: str, uuid: str | None) -> bool:
    """The rule as it is documented, one pattern at a time."""
    if pattern.lower() == UUID:
        return pattern.lower() in (name.lower(), (uuid or "").lower())
    return fnmatch.fnmatchcase(name, pattern)


@given(
    patterns=st.lists(PATTERNS, max_size=8),
    name=st.one_of(st.text("ab[]-", max_size=4), st.text(max_size=4), st.just(UUID)),
    uuid=st.sampled_from([None, UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000"]),
)
def test_it_finds_what_trying_each_pattern_finds(
    patterns: list[str], name: str, uuid: str | None
) -> None:
    expected = next((i for i, p in enumerate(patterns) if matches(p, name, uuid)), None)
    assert RuleIndex(patterns).first(name, uuid) == expected


def test_names_are_case_sensitive_and_uuids_not() -> None:
    index = RuleIndex(["db", UUID.upper()])
    assert index.first("DB", None) is None
    assert index.first("DB", UUID) == 1
    assert index.first(UUID, None) == 1  # a domain that is named by its UUID


def test_a_bracket_takes_the_wildcard_from_a_character() -> None:
    index = RuleIndex(["a[*]", "a*"])
    assert index.first("a*", None) == 0
    assert index.first("ab", None) == 1


def test_what_an_earlier_pattern_covers() -> None:
    index = RuleIndex(["db-*", "web", UUID])
    assert index.covering("db-1") == 0
    assert index.covering("db-*") == 0
    assert index.covering("web") == 1
    assert index.covering(UUID.upper()) == 2
    assert index.covering("w*") is None
    assert index.covering("mail") is None
    index.append("*")
    assert [index.covering(pattern) for pattern in ("mail", "w*", "*")] == [3, 3, 3]
