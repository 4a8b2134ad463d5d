"""The report and the review as a person meets them: in a real browser, from disk and from this machine's own server.

Run with ``make test-browser``: Debian's Chromium through Playwright. axe-core is in ``build/axe`` (from npm).
"""

import csv
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fcdeploy

pytestmark = pytest.mark.browser
AXE = Path(__file__).parents[2] / "build/axe/package/axe.min.js"
HOSTILE = ("<img src=x onerror=alert(1)>", "../../etc/passwd", "'\"><script>alert(2)</script>")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    where = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert where, "install chromium: apt-get install chromium"
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A page, and everything that it said, asked for and showed in dialogs."""

    def __init__(self, browser, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))


@pytest.fixture
def watch(browser) -> Iterator:
    made = []

    def start(**how) -> Watched:
        made.append(Watched(browser, **how))
        return made[-1]

    yield start
    for one in made:
        one.context.close()


@pytest.fixture(scope="module")
def report_page(made_run, coloured_faces, tmp_path_factory) -> Path:
    return fcdeploy.report(made_run, tmp_path_factory.mktemp("page") / "report", images=coloured_faces)


class Server:
    """``fcdeploy review`` in a process of its own."""

    def __init__(self, run: Path, images: Path, decisions: Path) -> None:
        code = "from fcdeploy.cli import main; import sys; sys.argv[0] = 'fcdeploy'; main()"
        command = [sys.executable, "-c", code, "review", run, "--images", images, "--decisions", decisions]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"review at (http://127\.0\.0\.1:(\d+)/\?token=(\S+))\n", line)
        assert found, line
        self.address, self.port, self.token = found[1], int(found[2]), found[3]
        self.decisions = decisions

    def ask(
        self, method: str, path: str, body: str = "", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in given)
        for name, value in {**given, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body.encode())
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, data, dict(answer.getheaders())

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def untouched(made_run, coloured_faces, tmp_path_factory) -> Iterator[Server]:
    """A review in which no test decides anything."""
    server = Server(made_run, coloured_faces, tmp_path_factory.mktemp("untouched") / "decisions.csv")
    yield server
    server.end()


@pytest.fixture
def review(made_run, coloured_faces, tmp_path) -> Iterator[Server]:
    server = Server(made_run, coloured_faces, tmp_path / "decisions.csv")
    yield server
    if server.process.poll() is None:
        server.end()


def decided(server: Server) -> list[tuple[str, str, str, str]]:
    with server.decisions.open(newline="") as file:
        return [(row["a"], row["b"], row["answer"], row["kind"]) for row in csv.DictReader(file)]


def wait_for(page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for()


def opened(seen: Watched, server: Server) -> None:
    """Go to a review on which nothing is decided, and wait until it says so."""
    seen.page.goto(server.address)
    seen.page.locator("#undo[disabled]").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_report_opens_from_disk_without_a_word_or_a_request(watch, report_page, width, scheme):
    seen = watch(width=width, scheme=scheme)
    seen.page.goto(report_page.as_uri())
    seen.page.wait_for_load_state("networkidle")
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith((report_page.parent.as_uri(), "data:"))] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.locator("#largest .card").count() >= 20


def test_contact_sheets_show_the_faces_that_they_name(watch, report_page, colour):
    """The pixel in the middle of each tile has the colour that was drawn for its face."""
    import io

    from PIL import Image

    seen = watch()
    seen.page.goto(report_page.as_uri())
    tiles = seen.page.locator("#largest .card:nth-child(-n+3) .tile")
    assert tiles.count() > 8
    for at in range(tiles.count()):
        face = int(tiles.nth(at).get_attribute("data-face"))
        shot = Image.open(io.BytesIO(tiles.nth(at).locator("i").screenshot())).convert("RGB")
        found = np.asarray(shot)[shot.height // 2, shot.width // 2].astype(int)
        assert np.abs(found - colour(face)).max() <= 8, face


def test_the_search_finds_any_cluster_and_any_face(watch, report_page, labels_of_run):
    seen = watch()
    seen.page.goto(report_page.as_uri())
    smallest = int(labels_of_run[-1])
    seen.page.fill("#number", str(smallest))
    seen.page.click("#find button[type=submit]")
    faces = seen.page.locator("#found .tile").evaluate_all(
        "tiles => tiles.map(tile => Number(tile.dataset.face))"
    )
    assert faces == np.flatnonzero(labels_of_run == smallest).tolist()
    seen.page.select_option("#kind", "face")
    seen.page.fill("#number", "123")
    seen.page.press("#number", "Enter")
    assert seen.page.locator("#found h3").inner_text() == f"Cluster {labels_of_run[123]}"
    seen.page.fill("#number", "999999")
    seen.page.press("#number", "Enter")
    assert "No such face" in seen.page.locator("#found").inner_text()
    assert seen.said == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["report", "review"])
def test_axe_finds_nothing_serious(watch, report_page, untouched, which, width, scheme):
    assert AXE.exists(), "run `make test-browser`, which fetches axe-core"
    seen = watch(width=width, scheme=scheme)
    seen.page.goto(report_page.as_uri() if which == "report" else untouched.address)
    seen.page.fill("#number", "3")
    seen.page.press("#number", "Enter")
    seen.page.evaluate(AXE.read_text() + "; 1")
    found = seen.page.evaluate("axe.run().then(found => found.violations)")
    serious = [
        (one["id"], one["nodes"][0]["html"][:200])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_hostile_names_are_text(watch, made_run, coloured_faces, labels_of_run, tmp_path):
    """As names of images, and as names of persons."""
    names = [HOSTILE[at % 3] for at in range(len(labels_of_run))]
    listed = tmp_path / "faces.txt"
    listed.write_text("".join(f"{name}\n" for name in names))
    page = fcdeploy.report(made_run, tmp_path / "report", images=listed)
    seen = watch()
    seen.page.goto(page.as_uri())
    seen.page.wait_for_load_state("networkidle")
    assert seen.said == []
    assert seen.page.locator("script").count() == 2
    assert seen.page.locator("#largest .tile").first.get_attribute("title") in HOSTILE
    server = Server(made_run, coloured_faces, tmp_path / "decisions.csv")
    try:
        review = watch()
        review.page.goto(server.address)
        for name in HOSTILE:
            review.page.locator("#largest .card").first.locator("[data-do=name]").click()
            review.page.fill("#ask-input", name)
            review.page.press("#ask-input", "Enter")
            wait_for(review.page, name)
            review.page.reload()
            review.page.locator("#log li").first.wait_for(state="attached")
        assert review.said == []
        assert HOSTILE[-1] in review.page.locator("#log").text_content()
        assert not [url for url in review.asked if not url.startswith(f"http://127.0.0.1:{server.port}/")]
    finally:
        server.end()


def test_a_decision_by_mouse_and_one_by_keyboard_are_on_disk_and_one_is_undone(watch, review):
    seen = watch()
    seen.page.goto(review.address)
    wait = lambda text: wait_for(seen.page, text)  # noqa: E731
    seen.page.locator("#undo:disabled").wait_for(state="attached")
    pair = seen.page.locator("#singles .pair").first
    a, b = pair.get_attribute("data-a"), pair.get_attribute("data-b")
    pair.locator("[data-answer=same]").click()
    wait("Saved: same person")
    assert decided(review) == [(a, b, "same", "same")]
    assert pair.get_attribute("data-said") == "same"
    second = seen.page.locator("#singles .pair").nth(1)
    c, d = second.get_attribute("data-a"), second.get_attribute("data-b")
    seen.page.locator("#singles .pair").first.focus()
    seen.page.keyboard.press("j")
    seen.page.keyboard.press("d")
    wait("Saved: different persons")
    assert decided(review)[1:] == [(c, d, "different", "different")]
    seen.page.keyboard.press("u")
    wait("Taken back")
    assert decided(review)[2:] == [("", "", "", "undo")]
    assert second.get_attribute("data-said") is None
    assert seen.said == []


def test_faces_are_chosen_and_split_off_moved_and_merged_by_keyboard(watch, review, labels_of_run):
    seen = watch()
    opened(seen, review)
    card = seen.page.locator("#largest .card").first
    card.focus()
    for key in ("ArrowRight", " ", "ArrowRight", " ", "p"):
        seen.page.keyboard.press(key)
    wait_for(seen.page, "Saved: split off")
    faces = [int(card.locator(".tile").nth(at).get_attribute("data-face")) for at in (0, 1)]
    kinds = {kind for *_, kind in decided(review)}
    assert kinds == {"split"}
    said = [(int(a), int(b)) for a, b, answer, _ in decided(review) if answer == "same"]
    assert tuple(sorted(faces)) in {tuple(sorted(pair)) for pair in said}
    assert card.locator(".tile[data-said]").count() >= 2
    other = seen.page.locator("#largest .card").nth(1)
    other.focus()
    seen.page.keyboard.press("g")
    target = seen.page.locator("#largest .card").nth(2).get_attribute("data-cluster")
    seen.page.keyboard.type(target)
    seen.page.keyboard.press("Enter")
    wait_for(seen.page, "Saved: merged")
    a, b, answer, kind = decided(review)[-1]
    assert (answer, kind) == ("same", "merge")
    assert {labels_of_run[int(a)], labels_of_run[int(b)]} == {
        int(target),
        int(other.get_attribute("data-cluster")),
    }
    seen.page.select_option("#undecided", "open")
    assert not other.is_visible()
    assert seen.said == []


def test_sections_are_reached_from_a_menu_where_it_is_narrow(watch, report_page):
    seen = watch(width=390)
    seen.page.goto(report_page.as_uri())
    link = seen.page.locator(".menu a", has_text="Single faces")
    assert not link.is_visible()
    seen.page.locator(".menu summary").click()
    link.click()
    assert not link.is_visible()
    header, heading = (seen.page.locator(one).bounding_box() for one in (".top", "#singles-h"))
    assert header["y"] + header["height"] <= heading["y"] < 450
    assert seen.said == []


def test_regroup_shows_the_clusters_of_the_next_run(watch, review):
    seen = watch()
    opened(seen, review)
    cards = seen.page.locator("#largest .card")
    sizes = [int(cards.nth(at).get_attribute("data-size")) for at in (0, 1)]
    other = cards.nth(1).get_attribute("data-cluster")
    cards.first.focus()
    seen.page.keyboard.press("g")
    seen.page.keyboard.type(other)
    seen.page.keyboard.press("Enter")
    wait_for(seen.page, "Saved: merged")
    for expected, decisions in ((sum(sizes), 1), (sizes[0], 0)):
        with seen.page.expect_navigation():
            seen.page.keyboard.press("r")
        wait_for(seen.page, f"{decisions} decision")
        assert int(cards.first.get_attribute("data-size")) == expected
        assert cards.first.locator(".said").text_content() == ""
        if decisions:
            seen.page.keyboard.press("u")
            wait_for(seen.page, "Taken back")
    assert seen.said == []


def test_two_tabs_do_not_write_over_each_other(watch, review):
    first, second = watch(), watch()
    for seen in (first, second):
        opened(seen, review)
    first.page.locator("#singles .pair").nth(0).locator("[data-answer=same]").click()
    wait_for(first.page, "Saved")
    second.page.locator("#singles .pair").nth(1).locator("[data-answer=different]").click()
    wait_for(second.page, "Not done")
    assert len(decided(review)) == 1
    assert second.page.locator("#singles .pair").nth(0).get_attribute("data-said") == "same"
    second.page.locator("#singles .pair").nth(1).locator("[data-answer=different]").click()
    wait_for(second.page, "Saved")
    assert len(decided(review)) == 2


def test_answers_given_while_one_is_being_saved_wait_for_it(watch, review):
    seen = watch()
    opened(seen, review)
    pairs = seen.page.locator("#singles .pair")
    expected = [
        (pairs.nth(at).get_attribute("data-a"), pairs.nth(at).get_attribute("data-b"), answer, answer)
        for at, answer in enumerate(("same", "different", "same"))
    ]
    seen.page.evaluate(
        "answers => answers.forEach((answer, at) => document.querySelectorAll('#singles .pair')[at]"
        ".querySelector(`[data-answer=${answer}]`).click())",
        [answer for *_, answer in expected],
    )
    wait_for(seen.page, "3 decisions")
    assert decided(review) == expected
    seen.page.evaluate("for (const _ of [1, 2]) document.getElementById('undo').click()")
    wait_for(seen.page, "1 decision.")
    assert seen.page.locator("#status").text_content().startswith("Taken back: different persons")
    assert seen.said == []


def test_a_page_that_is_loaded_while_clusters_are_regrouped_shows_the_new_ones(watch, review):
    """Regrouped between the page and its data, whose numbers of clusters are not those of the page."""
    headers = {
        "Cookie": f"fcdeploy-review-{review.port}={review.token}",
        "Content_Type": "application/json",
        "Origin": f"http://127.0.0.1:{review.port}",
    }
    seen = watch()
    opened(seen, review)
    cards = seen.page.locator("#largest .card")
    one, other = (int(cards.nth(at).get_attribute("data-cluster")) for at in (0, 1))
    size = sum(int(cards.nth(at).get_attribute("data-size")) for at in (0, 1))
    merge = f'{{"revision": 0, "grouped": 0, "kind": "merge", "cluster": {one}, "other": {other}}}'
    assert review.ask("POST", "/decide", merge, **headers)[0] == 200

    def late(route):
        assert review.ask("POST", "/regroup", '{"revision": 1}', **headers)[0] == 200
        route.continue_()

    seen.page.route("**/data.js", late, times=1)
    seen.page.goto(review.address)
    seen.page.locator("body[data-grouped='1']").wait_for()
    assert int(cards.first.get_attribute("data-size")) == size
    wait_for(seen.page, "1 decision.")


def test_long_ids_leave_the_faces_side_by_side(watch, made_run, coloured_faces, labels_of_run, tmp_path):
    """As those from paths of photos are: the end of each stands below its face, and the search finds it whole."""
    import made_runs

    run = shutil.copytree(made_run, tmp_path / "run")
    ids = [
        f"2019/summer holidays in Brittany/IMG_20190712_{at:06}.jpg#{at % 3}"
        for at in range(len(labels_of_run))
    ]
    made_runs.add_ids(run, np.array(ids, object))
    page = fcdeploy.report(run, tmp_path / "report", images=coloured_faces)
    for width in (1280, 390):
        seen = watch(width=width)
        seen.page.goto(page.as_uri())
        tile = seen.page.locator("#largest .tile").first
        face = int(tile.get_attribute("data-face"))
        assert tile.get_attribute("title") == ids[face]
        assert tile.locator("span").text_content() == ids[face].rpartition("/")[2]
        boxes = seen.page.locator(".tile").evaluate_all(
            "tiles => tiles.map(tile => [tile.scrollWidth, tile.getBoundingClientRect().width])"
        )
        assert max(max(box) for box in boxes) <= 84
        seen.page.select_option("#kind", "face")
        seen.page.fill("#number", ids[face])
        seen.page.press("#number", "Enter")
        found = seen.page.locator("#found .tile.odd")
        assert found.locator("span").text_content() == ids[face].rpartition("/")[2]
        assert found.get_attribute("title") == ids[face]
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_was_decided_survives_a_kill_of_the_server(watch, review, made_run, coloured_faces):
    seen = watch()
    opened(seen, review)
    seen.page.locator("#singles .pair").nth(0).locator("[data-answer=same]").click()
    wait_for(seen.page, "Saved")
    review.end(signal.SIGKILL)
    seen.page.locator("#singles .pair").nth(1).locator("[data-answer=same]").click()
    wait_for(seen.page, "Not done")
    again = Server(made_run, coloured_faces, review.decisions)
    try:
        seen.page.goto(again.address)
        seen.page.locator("#log li:only-child").wait_for(state="attached")
        assert seen.page.locator("#singles .pair").nth(0).get_attribute("data-said") == "same"
    finally:
        assert again.end() == 0


def test_nothing_but_the_page_and_faces_of_the_run_is_served_and_only_with_the_token(review, colour):
    cookie = f"fcdeploy-review-{review.port}={review.token}"
    origin, json_type = f"http://127.0.0.1:{review.port}", "application/json"
    for path in ("/", "/index.html", "/data.js", "/state", "/face/1", "/thumbs-000.jpg"):
        assert review.ask("GET", path)[0] == 403, path
        assert review.ask("GET", path, Cookie=cookie)[0] == 200, path
        assert review.ask("GET", path, Cookie=cookie, Host=f"evil.example:{review.port}")[0] == 421, path
    assert review.ask("GET", "/?token=wrong")[0] == 403
    status, _, headers = review.ask("GET", f"/?token={review.token}")
    assert status == 303
    assert "HttpOnly" in headers["set-cookie"]
    assert "samesite=strict" in headers["set-cookie"].lower()
    for path in (
        *(
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%2f..%2fetc%2fpasswd",
            "/face/../../etc/passwd",
        ),
        *("/face/%2Fetc%2Fpasswd", "/face/400", "/face/-1", "/report.json", "/faces.txt", "/0.png"),
    ):
        status, body, _ = review.ask("GET", path, Cookie=cookie)
        assert status == 404, path
        assert b"root:" not in body
    body = '{"revision": 0, "kind": "same", "faces": [1, 2]}'
    for headers in (
        {"Content_Type": json_type, "Origin": origin},
        {"Cookie": cookie, "Content_Type": "text/plain", "Origin": origin},
        {"Cookie": cookie, "Content_Type": json_type, "Origin": "http://evil.example"},
        {"Cookie": cookie, "Content_Type": json_type},
    ):
        assert review.ask("POST", "/decide", body, **headers)[0] == 403, headers
    good = {"Cookie": cookie, "Content_Type": json_type, "Origin": origin}
    for wrong in ("[]", "{", '{"revision": 0, "kind": "same", "faces": [1, 400]}', '{"kind": "name"}'):
        assert review.ask("POST", "/decide", wrong, **good)[0] == 422, wrong
    assert decided(review) == []
    assert review.ask("POST", "/decide", body, **good)[0] == 200
    assert review.ask("POST", "/decide", body, **good)[0] == 409
    assert decided(review) == [("1", "2", "same", "same")]


@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")  # notes, which the command prints
def test_decisions_change_the_clusters_of_the_next_run(watch, pse_bundle, golden, tmp_path):
    """A real run: two faces of one cluster are said to be different, and one face to be none."""
    from PIL import Image

    features = golden / "dev/data/features.bin"

    def cluster(*more: str) -> np.ndarray:
        from click.testing import CliRunner

        from fcdeploy.cli import cli

        args = [
            "cluster",
            str(features),
            *("--dim", "32"),
            "--engine",
            str(pse_bundle.path),
            "-o",
            str(tmp_path / "out.npy"),
            *more,
        ]
        done = CliRunner().invoke(cli, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return np.load(tmp_path / "out.npy")

    before = cluster("--run-dir", str(tmp_path / "run"))
    Image.new("RGB", (16, 16), (90, 120, 150)).save(tmp_path / "face.png")
    (tmp_path / "faces.txt").write_text("face.png\n" * len(before))
    server = Server(tmp_path / "run", tmp_path / "faces.txt", tmp_path / "decisions.csv")
    try:
        seen = watch()
        opened(seen, server)
        pair = seen.page.locator("#suspicious .links .pair, #largest .links .pair").first
        a, b = (int(pair.get_attribute(name)) for name in ("data-a", "data-b"))
        pair.locator("[data-answer=different]").click()
        wait_for(seen.page, "Saved: different persons")
        card = seen.page.locator("#largest .card").first
        card.focus()
        for key in ("ArrowRight", "n"):
            seen.page.keyboard.press(key)
        wait_for(seen.page, "Saved: not a face")
        gone = int(card.locator(".tile").first.get_attribute("data-face"))
        single = seen.page.locator("#singles .pair").first
        c, d = (int(single.get_attribute(name)) for name in ("data-a", "data-b"))
        single.locator("[data-answer=same]").click()
        wait_for(seen.page, "Saved: same person")
    finally:
        assert server.end() == 0
    after = cluster("--pairs", str(server.decisions))
    assert before[a] == before[b]
    assert after[a] != after[b]
    assert before[c] != before[d]
    assert after[c] == after[d]
    assert before[gone] >= 0
    assert after[gone] == -1
    rest = np.flatnonzero((before == before[gone]) & (np.arange(len(before)) != gone))
    if not {a, b, c, d} & set(rest.tolist()):
        assert len(set(after[rest].tolist())) == 1
    os.remove(tmp_path / "out.npy")
