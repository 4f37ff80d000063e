"The site as a reader meets it: every link leads somewhere, nothing is fetched, pages fit a telephone and a desk, equations are drawn."
import html.parser, os, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import unquote, urlparse
import pytest

pytest.importorskip("myst_nb", reason="the site's tools are not installed: make site")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("PIXELREG_CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PAGES = ["index", "claims", "shown/quick", "nbs/03_training", "nbs/05_boundary", "nbs/17_claims", "nbs/workshop/learning/regularizer", "api/learning"]

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The pages, and what was said when they were made; PIXELREG_SITE names pages that are there already"
    if made := os.environ.get("PIXELREG_SITE"): return Path(made), ""
    tmp = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "pixelreg", "site", "--out", str(tmp/"site")], cwd=ROOT, capture_output=True, text=True, env=os.environ | dict(no_proxy="", http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")) # nothing can be fetched
    assert (tmp/"site"/"index.html").exists(), done.stderr[-3000:]
    return tmp/"site", done.stdout

class Links(html.parser.HTMLParser):
    def __init__(self): super().__init__(); self.found, self.ids = [], set()
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag in ("a", "link", "img", "script"): self.found += [(tag, attrs[k]) for k in ("href", "src") if attrs.get(k)]

def test_every_link_leads_somewhere(site):
    folder, said = site
    assert "not found" not in said and "not readable" not in said, said
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path] = Links(); pages[path].feed(path.read_text())
    assert len(pages) > 60
    broken, fetched, n = [], [], 0
    for path, page in pages.items():
        for tag, link in page.found:
            url = urlparse(link)
            if url.scheme or url.netloc:
                if tag != "a" and url.scheme != "data": fetched.append((path.name, link))
                continue
            n += 1
            to = (path.parent/unquote(url.path)).resolve() if url.path else path
            if to.is_dir(): to = to/"index.html"
            if not to.exists() or (url.fragment and to in pages and unquote(url.fragment) not in pages[to].ids): broken.append((path.relative_to(folder).as_posix(), link))
    print(f"\n{len(pages)} pages, {n} links inside")
    assert not broken, broken[:20]
    assert not fetched, fetched[:20]

def test_every_figure_has_its_numbers_and_its_recipe(site):
    for path in sorted(site[0].glob("shown/*.html")):
        page = Links(); page.feed(path.read_text())
        files = {Path(urlparse(link).path).name for tag, link in page.found if tag == "a"}
        for json in (ROOT/"figures"/path.stem).glob("[plrktx]_*.json"): assert {json.name, f"{json.stem}.csv"} <= files, json

@pytest.mark.skipif(not CHROMIUM, reason="no chromium found: install one (Debian: apt-get install chromium) or set PIXELREG_CHROMIUM")
@pytest.mark.parametrize("width", (390, 1280))
def test_pages_can_be_read(site, width):
    "No error in the console, no request, nothing wider than the window but what scrolls by itself, equations with a size"
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=width, height=900))
        said, asked = [], []
        page.on("console", lambda m: said.append((page.url, m.text)) if m.type == "error" else None)
        page.on("pageerror", lambda e: said.append((page.url, str(e))))
        page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        for name in PAGES:
            page.goto((site[0]/f"{name}.html").as_uri())
            page.wait_for_load_state()
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)")
            assert wide <= 1, f"{name} is {wide} pixels wider than the window"
            assert size >= 14, f"{name}: letters of {size} pixels"
            empty = page.evaluate("[...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height < 4).length")
            assert not empty, f"{name}: {empty} equations without a size"
            assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length") == 0, f"{name}: images that do not show"
            if shots := os.environ.get("PIXELREG_SHOTS"): page.screenshot(path=f"{shots}/{name.replace('/', '_')}_{width}.png")
        page.goto((site[0]/"nbs/03_training.html").as_uri())
        assert page.locator("math").count() > 10
        browser.close()
    assert not said, said
    assert not asked, asked
