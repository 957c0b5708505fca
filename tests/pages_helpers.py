"""Reading the HTML pages as a browser would: well-formed, self-contained, and with text that stays text."""

from html.parser import HTMLParser
from pathlib import Path

STYLE = (Path(__file__).parent.parent / "pipeline" / "pages" / "parts" / "style.css").read_text(encoding="utf-8")
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>|]("\'`&amp;</style></title>\u2028line'


class Page(HTMLParser):
    """A parsed page: ``tags`` in order, ``attributes`` of all of them, ``words`` of the text outside tags."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.tags, self.attributes, self.words = text, [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def is_whole_and_alone(self):
        """Every tag is closed, the one style sheet is in it, nothing is fetched, and nothing runs."""
        assert not self.open
        assert STYLE in self.text and "prefers-color-scheme: dark" in self.text and self.tags.count("style") == 1
        assert not {"script", "img", "link", "iframe", "object"} & set(self.tags)
        assert not [name for name, _ in self.attributes if name == "src" or name.startswith("on")]
