"""One headless browser for all tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, the system's own or Playwright's; the tests are skipped where there is neither."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which '.[dev]' brings")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("needs a browser: 'apt-get install chromium', or 'playwright install chromium'")
        # Root has no sandbox, and a small /dev/shm is no place for pictures.
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
        chromium = playwright.chromium.launch(executable_path=found, args=options)
        yield chromium
        chromium.close()
