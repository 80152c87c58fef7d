"""What a browser would complain about: a small reader of HTML for the tests."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "source"}
LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}


class PageReader(HTMLParser):
    """Collects text, elements, and attributes that load something; checks that tags balance."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.loads: list[str] = []
        self._texts: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self.open]
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.loads += [f"{name}={value}" for name, value in attrs if name in LOADING]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self._texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)
