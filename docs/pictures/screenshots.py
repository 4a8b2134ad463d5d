"""Screenshots of the report and the review of a made-up run with drawn faces: report.png, review.png, and -dark.png.

    python docs/pictures/screenshots.py

Needs Chromium (`apt-get install chromium`) and `pip install playwright`; where they are missing, the pictures stay.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))

SIZE = {"width": 1120, "height": 640}
FACES, SEED = 1500, 3


def main() -> None:
    """Make the run and take all screenshots."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("screenshots stay as they are: chromium or playwright is not installed", file=sys.stderr)
        return
    from made_runs import draw_faces, made_labels, make_run

    import fcdeploy

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place = Path(folder)
        labels = made_labels(FACES, SEED)
        run = make_run(place / "run", labels, seed=SEED, name="album.bin")
        images = draw_faces(place / "faces", labels, seed=SEED)
        page = fcdeploy.report(run, place / "report", images=images)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shoot(browser, page.as_uri(), "suspicious", "report")
        with review_of(run, images, place / "decisions.csv") as address:
            shoot(browser, address, "suspects", "review", answer="Different")
        browser.close()


def shoot(browser: "Browser", address: str, section: str, name: str, answer: str = "") -> None:
    """Take a screenshot of one section of a page in both colour schemes; answer: a button to press there before."""
    from PIL import Image

    for scheme, suffix in (("light", ""), ("dark", "-dark")):
        context = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
        page = context.new_page()
        page.goto(address)
        heading = page.locator(f"#{section}")
        heading.wait_for()
        heading.scroll_into_view_if_needed()
        page.mouse.wheel(0, 10_000)  # beyond it, so that it is reached from below and stands at the top
        heading.evaluate("one => one.scrollIntoView()")
        page.wait_for_timeout(500)
        if answer and not suffix:  # it is kept for the second one
            heading.get_by_role("button", name=answer).first.click()
            page.wait_for_timeout(500)
        path = HERE / f"{name}{suffix}.png"
        page.screenshot(path=path)
        context.close()
        with Image.open(path) as image:  # of few colours: a third of the bytes
            few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


@contextmanager
def review_of(run: Path, images: Path, decisions: Path) -> Iterator[str]:
    """Serve the review of a run, and give its address."""
    command = [sys.executable, "-m", "fcdeploy", "review", run, "--images", images, "--decisions", decisions]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("review at ").strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
