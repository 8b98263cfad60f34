"""Whether a built site is whole: links lead somewhere, anchors included, and nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself; `a href` leads away only when somebody follows it.
_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
_HARMLESS = {"canonical", "prev", "next", "alternate", "license"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in _FETCHED and _FETCHED[tag] in given and not set(given.get("rel", "").split()) & _HARMLESS:
            self.fetched.append(given[_FETCHED[tag]])


def faults(site: Path, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """What is wrong with the pages under a folder; those whose path starts with one of `skip` are only linked to."""
    pages: dict[Path, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        if not path.relative_to(site).as_posix().startswith(skip or ("\0",)):
            page.feed(path.read_text(encoding="utf-8"))
        pages[path.resolve()] = page
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        for url in page.fetched:
            if urlsplit(url).scheme in ("http", "https") or url.startswith("//"):
                yield f"{name} fetches {url}"
        for url in [*page.links, *page.fetched]:
            parts = urlsplit(url)
            if parts.scheme or url.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name} links to {url}, which is not there"
            elif parts.fragment and target in pages and not _has(pages[target], unquote(parts.fragment)):
                yield f"{name} links to {url}, an anchor that is not there"
    for path in sorted(site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        if "@import" in text or "url(http" in text or "url(//" in text:
            yield f"{path.relative_to(site).as_posix()} fetches from elsewhere"


def _has(page: _Page, fragment: str) -> bool:
    # A page that was not read is taken on trust; "__tabbed" and the like are made by scripts.
    return not page.anchors or fragment in page.anchors or fragment.startswith("__")
