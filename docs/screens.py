"""Looks at every page of the built documentation in a browser, wide and narrow.

``python docs/screens.py docs/_build/html`` fails if a page is wider than its window,
if a picture is missing, if Sphinx left an error in it, or if the browser complains. The
pictures go to ``--output``. It needs ``playwright`` and Chromium, and no network: what
a page asks of one is refused, and counts as a complaint.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

WIDTHS = 1400, 390
TALLEST = 8000  # pixels of a page that are drawn: a browser has a limit
NAMES = "chromium", "chromium-browser", "google-chrome"

# What is wrong with a page as it stands: the widest elements that stick out, pictures
# without pixels, and boxes of errors.
FAULTS = """() => {
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  const faults = wide > 1 ? [`${wide} pixels wider than the window`] : [];
  for (const image of document.images)
    if (!image.naturalWidth) faults.push(`no picture: ${image.getAttribute("src")}`);
  for (const box of document.querySelectorAll(".system-message, .problematic"))
    faults.push(`an error of Sphinx: ${box.textContent.trim().slice(0, 80)}`);
  return faults;
}"""


def pages(folder: Path) -> list[Path]:
    """The pages of a reader, not those of source code and indices."""
    left_out = {"_modules", "_static", "_sources"}
    found = [page.relative_to(folder) for page in folder.rglob("*.html")]
    return sorted(page for page in found if page.parts[0] not in left_out)


def faults(browser: Any, page: Path, width: int, picture: Path) -> Iterator[str]:
    """What is wrong with one page at one width."""
    view = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on(
        "console",
        lambda entry: entry.type == "error" and complaints.append(entry.text),
    )
    view.route("http*://**", lambda route: route.abort())
    view.goto(page.resolve().as_uri(), wait_until="load")
    view.evaluate("for (const i of document.images) i.loading = 'eager'")
    view.wait_for_load_state("networkidle")
    yield from view.evaluate(FAULTS)
    yield from complaints
    height = min(view.evaluate("document.documentElement.scrollHeight"), TALLEST)
    part = {"x": 0, "y": 0, "width": width, "height": height}
    view.screenshot(path=str(picture), full_page=True, clip=part)
    view.close()


def main() -> int:
    """Look at all pages, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the built pages")
    parser.add_argument("--output", type=Path, default=Path("docs/_build/screens"))
    asked = parser.parse_args()
    path = next(filter(None, map(shutil.which, NAMES)), None)
    found, count = 0, 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        for page in pages(asked.folder):
            for width in WIDTHS:
                name = "-".join(page.with_suffix("").parts)
                picture = asked.output / str(width) / f"{name}.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                count += 1
                for fault in faults(browser, asked.folder / page, width, picture):
                    found += 1
                    print(f"{page} at {width}: {fault}", flush=True)
        browser.close()
    print(f"{count} views, {found} faults; pictures in {asked.output}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
