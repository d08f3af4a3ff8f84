"""The page in headless Chromium: accessible by axe's rules, as wide as the screen, and its links lead somewhere."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from em_study.report import write_report
from tests.em_study.report.samples import followed_results
from tests.em_study.report.test_published import sweep
from tests.em_study.report.test_viewer import with_logs

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("EM_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium found as {', '.join(NAMES)}, nor in EM_CHROMIUM"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study followed along training, a reconstruction, and one where much is missing, with the viewer."""
    root = tmp_path_factory.mktemp("reports")
    (root / "runs").mkdir()
    reconstruction = sweep(root / "runs", {"muon": 0.05, "adam": 0.14, "adamw": 0.15, "lion": 0.36})
    return {
        "followed": write_report(followed_results(root / "f"), root / "followed"),
        "reconstruction": write_report(reconstruction, root / "reconstruction"),
        "incomplete": write_report(with_logs(root), root / "incomplete", bundle=True),
    }


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path]) -> Iterator[Any]:
    """After the pages: their logs are made in an event loop, and the browser runs in one of its own."""
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_pages_are_accessible_and_fit_the_screen(browser: Any, pages: dict[str, Path], width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    for name, index in pages.items():
        for path in (index, index.parent / "transcripts" / "adamw.html"):
            if path.is_file():
                tab.goto(path.as_uri())
                tab.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
                found = axe.Axe().run(tab)
                assert found.violations_count == 0, f"{name}, {path.name}: {found.generate_report()}"
                assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{name}, {path.name} overflows"
    context.close()


def test_pages_fit_paper(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """A4 upright with margins of a centimetre: nothing runs off the sheet."""
    context = browser.new_context(viewport={"width": 718, "height": 1047})  # CSS pixels of 19 x 27.7 cm
    tab = context.new_page()
    tab.emulate_media(media="print")
    for name, index in pages.items():
        tab.goto(index.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 718, name
        tab.pdf(path=tmp_path / "page.pdf", format="A4")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    context.close()


def test_a_link_shows_its_answer_in_the_viewer(browser: Any, pages: dict[str, Path]) -> None:
    """Served, as the page says: the viewer needs a web server."""
    folder = pages["incomplete"].parent
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{server.server_address[1]}/index.html")
        tab.locator("article a", has_text="in Inspect's viewer").first.click()
        tab.get_by_text("Sample core-money (Epoch 2)").first.wait_for(timeout=30_000, state="attached")
        tab.close()
        server.shutdown()
