"""A page as a browser reads it."""

from __future__ import annotations

import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """Reads a page as a browser does, and keeps its tags, texts, script elements and policy."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.scripts, self.policy = [], [], [], None
        self.feed(html)
        self.data = json.loads(self.scripts[0][1])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "script":
            self.scripts.append([attributes, ""])
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.cdata_elem == "script":  # inside such an element the parser looks for nothing but its end
            self.scripts[-1][1] += data
        else:
            self.texts.append(data)
