import pytest

from panicd.web.html import block, document, element, joined
from tests.parts.html import Reader

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><script>",
    '" onload="alert(1)',
    "' onload='alert(1)",
    "&lt;b&gt;",
    "<!--",
    "]]>",
    "\x00\x1b[2J\x85",
    "\u202egnp.exe",
    "\ud800",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text(text: str) -> None:
    page = element("p", text, title=text).markup
    read = Reader(page)
    assert [(tag, set(attributes)) for tag, attributes in read.elements] == [("p", {"title"})]
    assert read.text.isprintable()
    page.encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_document_stays_text(text: str) -> None:
    page = document(title=text, head=joined(), body=joined(text, block([text, text]))).decode()
    read = Reader(page)
    assert [tag for tag, _ in read.elements] == [
        *("html", "head", "meta", "meta", "title", "body", "pre")
    ]
    assert not read.text.replace("\n", "").isspace()


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", element("b", "a & b"), "c").markup == "<p><b>a &amp; b</b>c</p>"


def test_attributes_are_named_as_in_html() -> None:
    made = element("td", class_="x", data_label="y", id="")
    assert made.markup == '<td class="x" data-label="y"></td>'


def test_a_long_text_is_cut() -> None:
    assert len(element("p", "<" * 1_000_000).markup) < 20_000
