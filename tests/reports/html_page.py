"""A page as its tests read it, and a text that would break one."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = "<script>alert('x')</script> \"><img src=http://evil.example/x onerror=alert(1)> $answer & ${css} $\\frac"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags with attributes and checks that they are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_loads_nothing(text: str) -> None:
    """Fails where a page loads or runs anything, or has a picture without words for those who cannot see it."""
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", re.sub(r"base64,[^\"]+", "", text))
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form"} == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if "src" in attributes:
            assert tag == "img"
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
            assert len(attributes["alt"] or "") > 20
    policy = [a.get("content") or "" for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in policy[0]
