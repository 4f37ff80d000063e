"The site as a reader meets it: `make site` ends well, every link leads somewhere, nothing is fetched, pages fit a telephone and a desk, day and night."

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from PIL import Image, ImageStat

from pixelreg.plots.registry import find_drawing

pytest.importorskip("myst_nb", reason="the site's tools are not installed: make site")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("PIXELREG_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = [
    "index",
    "gallery",
    "claims",
    "shown/quick",
    "shown/h200",
    "nbs/explorer",
    "nbs/library/ten_minutes_lecture",
    "nbs/03_training",
    "nbs/05_boundary",
    "nbs/17_claims",
    "nbs/library/regularizer/loss",
    "api/training",
]

PROGRESS = "  boundary attack: 1 of 5, 5 s"


def executed_chapter(folder):
    "Chapter 05 as `make paper` leaves it, its outputs made up: progress, a fact, and the figure that the chapter links to"
    nb = json.loads((ROOT / "nbs" / "05_boundary.ipynb").read_text())
    drawing = next(
        c for c in nb["cells"] if c["cell_type"] == "code" and '"x_forest"' in "".join(c["source"])
    )
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "png")
    said = f"{PROGRESS}\nx_zero not drawn: no start\nx_forest: figures/quick/x_forest.png\n"
    drawing["outputs"] = [
        dict(output_type="stream", name="stdout", text=said),
        dict(output_type="stream", name="stderr", text="a warning"),
        dict(
            output_type="display_data",
            metadata={},
            data={"image/png": base64.b64encode(picture.getvalue()).decode()},
        ),
    ]
    (folder / "quick").mkdir(parents=True)
    (folder / "quick" / "05_boundary.ipynb").write_text(json.dumps(nb))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The pages, and how making them ended"
    tmp = tmp_path_factory.mktemp("site")
    executed_chapter(tmp / "executed")
    env = os.environ | dict(
        no_proxy="", http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"
    )  # nothing can be fetched
    command = [
        sys.executable,
        "-m",
        "pixelreg",
        "site",
        "--out",
        str(tmp / "site"),
        "--executed",
        str(tmp / "executed"),
    ]
    return tmp / "site", subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def site(made):
    return made[0]


def test_make_site_ends_well(made):
    "As `make site` would: the same command, without installing"
    recipe = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.site", "site", "VENV=.venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert recipe.strip().endswith(" python -m pixelreg site"), recipe
    folder, done = made
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (folder / "index.html").exists()


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag in ("a", "link", "img", "script"):
            self.found += [(tag, attrs[k]) for k in ("href", "src") if attrs.get(k)]


def test_every_link_leads_somewhere(site):
    folder, pages = site, {}
    for path in folder.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text())
    assert len(pages) > 60
    broken, fetched, n = [], [], 0
    for path, page in pages.items():
        for tag, link in page.found:
            url = urlparse(link)
            if url.scheme or url.netloc:
                if tag != "a" and url.scheme != "data":
                    fetched.append((path.name, link))
                continue
            n += 1
            to = (path.parent / unquote(url.path)).resolve() if url.path else path
            if to.is_dir():
                to = to / "index.html"
            if not to.exists() or (
                url.fragment and to in pages and unquote(url.fragment) not in pages[to].ids
            ):
                broken.append((path.relative_to(folder).as_posix(), link))
    print(f"\n{len(pages)} pages, {n} links inside")
    assert not broken, broken[:20]
    assert not fetched, fetched[:20]


def test_every_figure_has_its_numbers_and_its_recipe(site):
    for path in sorted(site.glob("shown/*.html")):
        page, html_text = Links(), path.read_text()
        page.feed(html_text)
        files = {Path(urlparse(link).path).name for tag, link in page.found if tag == "a"}
        for facts in (ROOT / "figures" / path.stem).glob("[plrktx]_*.json"):
            assert {facts.name, f"{facts.stem}.csv"} <= files, facts
            command = f"redraw {path.stem} --only {facts.stem}"
            text = re.sub("<[^>]*>", "", html_text)
            assert command in text or not find_drawing(facts.stem), facts


def test_executed_chapter_shows_facts_and_each_figure_once(site):
    page = (site / "nbs" / "05_boundary.html").read_text()
    assert "x_zero not drawn: no start" in page
    for left_out in PROGRESS.strip(), "figures/quick/x_forest.png\n", "a warning":
        assert left_out not in page, left_out
    text = "".join(
        "".join(c["source"])
        for c in json.loads((ROOT / "nbs" / "05_boundary.ipynb").read_text())["cells"]
        if c["cell_type"] == "markdown"
    )
    images = re.findall(
        r"<img[^>]*src=\"([^\"]*)", page[page.index("<article") : page.index("</article")]
    )
    assert len(images) == len(set(images)) == text.count("![")


def test_pictures_wait_until_they_are_seen(site):
    "Every picture is loaded late, those that are pixels at a size known before"
    n = 0
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<img[^>]*>", path.read_text()):
            assert 'loading="lazy"' in tag, (path, tag)
            assert ".svg" in tag or re.search("width|height", tag), (path, tag)
            n += 1
    assert n > 200


def test_gallery_has_every_figure(site):
    page = Links()
    page.feed((site / "gallery.html").read_text())
    figures = {
        f"shown/{p.parent.name}.html#{p.stem}".lower()
        for p in (ROOT / "figures").glob("*/[plrktx]_*.json")
        if p.parent.name != "smoke"
    }
    linked = {unquote(link).lower().replace("-", "_") for tag, link in page.found if tag == "a"}
    assert figures <= linked, sorted(figures - linked)[:9]
    pictures = [link for tag, link in page.found if tag == "img"]
    drawn = [p for p in (ROOT / "figures").glob("*/[plrktx]_*.png") if p.parent.name != "smoke"]
    assert len(pictures) == len(drawn)  # tables are linked without one
    size = sum((site / link).stat().st_size for link in pictures)
    print(f"\n{len(pictures)} thumbnails, {size / 1e6:.1f} MB")
    assert size < 4e6
    chapters = {link for tag, link in page.found if re.match(r"nbs/\d\d_", link)}
    assert {"nbs/05_boundary.html", "nbs/17_claims.html"} <= chapters


def test_pages_have_an_icon(site):
    for name in PAGES:
        page = Links()
        page.feed((site / f"{name}.html").read_text())
        assert any(
            link.split("?")[0].endswith("pixelreg.svg") for tag, link in page.found if tag == "link"
        ), name


@pytest.fixture
def browser():
    "A chromium, where there is one"
    if not CHROMIUM:
        pytest.skip(
            "no chromium found: install one (Debian: apt-get install chromium) or set PIXELREG_CHROMIUM"
        )
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]"
    )
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", (390, 1280))
def test_pages_can_be_read(site, width, browser):
    "No error in the console, no request, nothing wider than the window but what scrolls by itself, equations with a size"
    page = browser.new_page(viewport=dict(width=width, height=900))
    said, asked = [], []
    page.on("console", lambda m: said.append((page.url, m.text)) if m.type == "error" else None)
    page.on("pageerror", lambda e: said.append((page.url, str(e))))
    page.on(
        "request",
        lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None,
    )
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state()
        wide = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        size = page.evaluate(
            "parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)"
        )
        assert wide <= 1, f"{name} is {wide} pixels wider than the window"
        assert size >= 14, f"{name}: letters of {size} pixels"
        empty = page.evaluate(
            "[...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height < 4).length"
        )
        assert not empty, f"{name}: {empty} equations without a size"
        assert (
            page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length")
            == 0
        ), f"{name}: images that do not show"
        if shots := os.environ.get("PIXELREG_SHOTS"):
            page.screenshot(path=f"{shots}/{name.replace('/', '_')}_{width}.png")
    page.goto((site / "nbs/03_training.html").as_uri())
    assert page.locator("math").count() > 10
    assert not said, said
    assert not asked, asked


def test_pages_say_where_they_can_be_run(site):
    "Links to a launch in the browser name notebooks that are there"
    for name in ("nbs/01_similarity", "nbs/explorer", "nbs/library/ten_minutes_plug_in"):
        page = Links()
        page.feed((site / f"{name}.html").read_text())
        [link] = [link for _, link in page.found if "mybinder.org" in link]
        opened = unquote(urlparse(link).query).partition("=")[2]
        assert opened.removeprefix("voila/render/") == f"{name}.ipynb"
        assert (ROOT / f"{name}.ipynb").exists()


def test_filters_and_search_answer_without_a_server(site, browser):
    "Claims and gallery show what is asked for; the search finds a page and fetches none"
    page, said = browser.new_page(), []
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: said.append(str(e)))

    page.goto((site / "claims.html").as_uri() + "?verdict=contradicted")
    seen = page.locator("table.claims tbody tr:visible")
    contradicted = page.locator("tr.verdict-contradicted").count()
    assert 0 < seen.count() == contradicted < page.locator("table.claims tbody tr").count()
    page.select_option("select[name=figures]", label="recordings")
    kinds = [row.get_attribute("class") for row in seen.all()]
    assert kinds and all("folder-recordings" in k and "contradicted" in k for k in kinds)
    page.select_option("select[name=verdict]", "")
    page.select_option("select[name=figures]", "")
    page.fill("input[name=words]", "boundary attack")
    texts = [row.inner_text().lower() for row in seen.all()]
    assert texts and all("boundary" in text and "attack" in text for text in texts)

    page.goto((site / "gallery.html").as_uri())
    page.select_option("select[name=source]", label="Li et al. 2019")
    cards = page.locator(".gallery .card:visible")
    assert {card.inner_text().split()[0][:2] for card in cards.all()} == {"l_"}
    assert page.locator("h2:visible").count() == 1  # chapters without such a figure are away

    page.goto((site / "search.html").as_uri() + "?q=boundary")
    page.wait_for_selector("#search-results li a")
    assert not said, said


def test_figures_do_not_glare_in_the_dark(site, browser):
    "At night a white figure is at most a light grey, by day it is as it was drawn"
    brightest = {}
    for scheme in "light", "dark":
        page = browser.new_page(viewport=dict(width=1280, height=900), color_scheme=scheme)
        for name in "nbs/05_boundary", "gallery", "nbs/17_claims", "index":
            page.goto((site / f"{name}.html").as_uri())
            picture = page.locator("article img").first
            if name == "nbs/05_boundary":
                picture.scroll_into_view_if_needed()
                page.wait_for_function(
                    "i => i.complete && i.naturalWidth > 0", arg=picture.element_handle()
                )
                seen = Image.open(io.BytesIO(picture.screenshot())).convert("L")
                brightest[scheme] = ImageStat.Stat(seen).median[0]
            if shots := os.environ.get("PIXELREG_SHOTS"):
                page.screenshot(path=f"{shots}/{scheme}_{name.replace('/', '_')}.png")
    assert brightest["light"] > 250 and 130 < brightest["dark"] < 200, brightest
