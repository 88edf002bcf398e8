"""Pages in Debian's Chromium, through Playwright, without a network."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1440, scheme: str = "light") -> Iterator[Any]:
    """The page of a file when it is drawn; afterwards nothing may have been logged, or asked of a network."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, accept_downloads=True
    )
    page = context.new_page()
    told: list[str] = []
    # Warnings are the drivers' of a machine without a graphics card.
    page.on("console", lambda message: message.type == "error" and told.append(f"error: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()
    assert told == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def downloaded(page: Any, figure: str, tool: str) -> bytes:
    """What a button below a figure saves."""
    with page.expect_download() as found:
        page.locator(f'[data-figure="{figure}"] .tools').get_by_text(tool, exact=True).first.click()
    return Path(found.value.path()).read_bytes()
