"""A page in a browser, and what it said and asked for meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DESKTOP, PHONE = (1280, 900), (390, 844)


@contextmanager
def opened(browser: Any, path: Path, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Any]:
    """A page that is ready; at the end it must have said nothing wrong and asked for nothing beside itself."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked(request.url))

    def asked(address: str) -> None:
        if address != path.as_uri() and not address.startswith(("data:", "blob:")):
            wrong.append(f"asked for {address}")

    try:
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        yield page
    finally:
        page.close()
    assert wrong == []


def overflow(page: Any) -> int:
    """By how many pixels the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def saved(page: Any, click: Any) -> bytes:
    """The bytes of the file that a click brings."""
    with page.expect_download() as waiting:
        click()
    return Path(waiting.value.path()).read_bytes()


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Wait until something holds; what a browser's own waiting evaluates, the page's policy forbids."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not come about in ten seconds")
