from html.parser import HTMLParser

import pytest

from panicd.host.html import block, document, element, joined

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


class Reader(HTMLParser):
    """Reads a page as a browser would: its elements, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


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
