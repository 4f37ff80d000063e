"The explorer of the chapter on selection as a reader meets it: JupyterLab and Voilà in a browser, sliders moved, a training started, stopped and finished."
import importlib.util, json, os, shutil, socket, sys, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path
import psutil, pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
CHROMIUM = os.environ.get("PIXELREG_CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium found: install one (Debian: apt-get install chromium) or set PIXELREG_CHROMIUM")
needs_voila = pytest.mark.skipif(not importlib.util.find_spec("voila"), reason="voila is not installed: pip install -e .[voila]")

ROOT, TOKEN, LONG = Path(__file__).resolve().parents[2], "for-this-test-only", 900 # seconds that a busy machine may take for what is waited for
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

def notebook(path, **given):
    "The chapter's experiment without its figures, with parameters as papermill writes them"
    nb = json.loads((ROOT/"nbs"/"06_selection.ipynb").read_text())
    source = lambda c: "".join(c["source"])
    nb["cells"] = [c for c in nb["cells"] if c["cell_type"] == "code" and source(c).startswith("#| experiment") and not any(s in source(c) for s in ("save_figure(", "print(", "plt.subplots("))]
    at = next(i for i, c in enumerate(nb["cells"]) if "parameters" in c["metadata"].get("tags", []))
    nb["cells"].insert(at+1, dict(cell_type="code", execution_count=None, id="given", metadata={}, outputs=[], source="# Parameters\n"+"\n".join(f"{k} = {v!r}" for k, v in given.items())))
    path.write_text(json.dumps(nb))

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "The notebook, and a throw-away store that both servers use"
    tmp = tmp_path_factory.mktemp("explorer")
    (tmp/"books").mkdir()
    notebook(tmp/"books"/"explore.ipynb", preset="smoke", epochs=8)
    return tmp

@contextmanager
def served(tmp, name, *command): # -> Iterator[str], the address
    "A server of its own on a free port, ended with every process it started"
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("PIXELREG_DATA", "PIXELREG_PRESET", "PIXELREG_EVENTS")} | dict(PIXELREG_STORE=str(tmp/"store"), no_proxy="*",
           JUPYTER_CONFIG_DIR=str(tmp/"config"), JUPYTERLAB_SETTINGS_DIR=str(tmp/"settings"), JUPYTERLAB_WORKSPACES_DIR=str(tmp/"workspaces"))
    opener, url = urllib.request.build_opener(urllib.request.ProxyHandler({})), f"http://127.0.0.1:{port}"
    with open(tmp/f"{name}.log", "w") as log: server = psutil.Popen([sys.executable, "-m", *command, *(a.format(port=port) for a in PORT[name])], cwd=tmp, env=env, stdout=log, stderr=log)
    try:
        end = time.time()+LONG
        while True:
            assert server.poll() is None and time.time() < end, (tmp/f"{name}.log").read_text()[-3000:]
            try: opener.open(f"{url}/static/", timeout=LONG)
            except urllib.error.HTTPError: break # it answers
            except OSError: time.sleep(.1)
        yield url
    finally:
        mine = [server, *server.children(recursive=True)] if server.is_running() else [server]
        server.terminate() # it ends its kernels
        for left in psutil.wait_procs(mine, 60)[1]: left.kill()

PORT = dict(lab=["--ServerApp.port={port}", "--ServerApp.port_retries=0"], voila=["--port={port}"])

class Reader:
    "What someone at the panel can read and do"
    def __init__(self, page, tmp):
        self.page, self.tmp, self.errors, self.asked = page, tmp, [], []
        page.set_default_timeout(1000*LONG)
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.route(lambda url: not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")), self.stand_in)
    def stand_in(self, route): # Voilà's page asks for an icon font from elsewhere: the test needs no network
        self.asked.append(route.request.url)
        route.fulfill(status=200, content_type="text/css", body="")
    def text(self, name): return self.page.locator(f".pixelreg-{name}").inner_text()
    def image(self, name): return self.page.locator(f"img.pixelreg-{name}").get_attribute("src")
    def wait(self, f, every=100): # ms: a page that is asked all the time takes the kernel's core
        end = time.time()+LONG
        while not (found := f()):
            assert time.time() < end, f"after {LONG} s: {self.page.locator('.pixelreg-status, .pixelreg-expected').all_inner_texts()}"
            self.page.wait_for_timeout(every)
        return found
    def open(self):
        "Wait for the panel, or for the error that stands in its place"
        panel, error = self.page.locator(".pixelreg-explorer"), self.page.locator("[data-mime-type='application/vnd.jupyter.error']")
        self.wait(lambda: panel.count() or error.count(), 500)
        assert not error.count(), error.first.inner_text()
        self.page.locator(".pixelreg-explorer").scroll_into_view_if_needed()
        self.wait(lambda: "saved" in self.text("status"))
    def move(self, name, key="ArrowRight"):
        self.page.locator(f".pixelreg-set-{name} .noUi-handle").press(key)
    def press(self, button): self.page.get_by_role("button", name=button, exact=True).last.click()
    def full(self, name): # the places of full marks, and of the handle's middle, in pixels
        marks = self.page.locator(f".pixelreg-marks-{name} i").evaluate_all("all => all.filter(i => !i.style.background.includes('transparent')).map(i => i.getBoundingClientRect()).map(b => b.x+b.width/2)")
        return marks, self.page.locator(f".pixelreg-set-{name} .noUi-handle").evaluate("i => { const b = i.getBoundingClientRect(); return b.x+b.width/2 }")
    def shot(self, name):
        if folder := os.environ.get("PIXELREG_SHOTS"): self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)
    def unfinished(self): return [p.parent for p in (self.tmp/"store"/"runs").glob("*/.checkpoint") if not (p.parent/"done.json").exists()]

@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()

@contextmanager
def opened(browser, tmp, url): # -> Iterator[Reader]
    reader = Reader(browser.new_page(viewport=dict(width=1280, height=1100), reduced_motion="reduce"), tmp)
    reader.page.goto(url)
    try: yield reader
    finally: reader.page.close()

@pytest.fixture(scope="module")
def reader(place, browser):
    "The notebook in JupyterLab, opened and run from the menu"
    lab = ("jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={place/'books'}", f"--IdentityProvider.token={TOKEN}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate")
    with served(place, "lab", *lab) as url, opened(browser, place, f"{url}/doc/tree/explore.ipynb?token={TOKEN}") as reader:
        reader.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for() # what is run before is lost
        reader.page.get_by_role("menuitem", name="Run", exact=True).click()
        reader.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        reader.open()
        yield reader

def marked(r): # the handles stand on full marks, to the pixel
    for name in ("alpha", "th"):
        marks, handle = r.full(name)
        assert min(abs(m-handle) for m in marks) < 1.5, (name, marks, handle)

def test_sliders_move_numbers_and_pictures(reader):
    r = reader
    r.shot("explorer")
    marked(r)
    shares, before, took = r.text("shares"), {n: r.image(n) for n in ("pixel", "th", "above", "below", "curve", "plane")}, []
    for _ in range(3):
        now, start = r.text("shares"), time.time()
        r.move("th")
        r.wait(lambda: r.text("shares") != now, 20)
        took.append(time.time()-start)
    print(f"\na move of Th reaches the page in {1000*min(took):.0f} to {1000*max(took):.0f} ms")
    r.wait(lambda: "not trained" in r.text("status") and "No saved results" in r.text("numbers"))
    assert "pairs of 40 images" in r.text("shares") and r.text("shares") != shares
    r.wait(lambda: {n for n in before if r.image(n) != before[n]} == {"th", "above", "below", "curve", "plane"})
    r.move("alpha")
    r.wait(lambda: "alpha 2, Th 0.43: not trained" in r.text("status"))
    assert not r.full("alpha")[0] and not r.full("th")[0] and "2 trained pairs" in r.text("trained")
    assert not r.unfinished()

def test_nearest_trained_pair(reader):
    r = reader
    r.press("Nearest trained")
    r.wait(lambda: "saved" in r.text("status") and r.full("alpha")[0] and r.full("th")[0])
    marked(r)
    assert r.text("expected").strip() == ""
    for name, key in ("alpha", "ArrowRight"), *[("th", "ArrowRight")]*3:
        now = r.text("status")+r.text("shares")
        r.move(name, key)
        r.wait(lambda: r.text("status")+r.text("shares") != now)
    r.wait(lambda: "alpha 2, Th 0.43: not trained" in r.text("status"))

def test_training_is_stopped_and_finished(reader):
    r = reader
    said = r.wait(lambda: r.text("expected") if "about" in r.text("expected") else "")
    assert "8 epochs of" in said
    r.shot("untrained")
    r.press("Train")
    r.wait(lambda: "epoch" in r.text("status") and "validation accuracy" in r.text("status"))
    r.shot("training")
    r.press("Stop")
    stopped = r.wait(lambda: r.text("status") if "stopped after" in r.text("status") else "")
    assert " of 8 epochs, which are kept" in stopped
    r.shot("stopped")
    assert len(r.unfinished()) == 1
    r.press("Train")
    done = r.wait(lambda: r.text("status") if "trained and measured" in r.text("status") else "")
    r.wait(lambda: "accepted" in r.text("numbers"))
    print(f"\n{said}; {stopped}; {done}")
    r.shot("trained")
    marked(r)
    assert not r.unfinished() and "3 trained pairs" in r.text("trained")

@needs_voila
def test_voila_shows_the_same(place, browser):
    voila = ("voila", str(place/"books"/"explore.ipynb"), "--no-browser", "--Voila.ip=127.0.0.1")
    with served(place, "voila", *voila) as url, opened(browser, place, url) as r:
        r.open()
        r.shot("voila")
        marked(r)
        before = {n: r.image(n) for n in ("pixel", "th", "above", "below", "curve", "plane")}
        shares = r.text("shares")
        r.move("th")
        r.wait(lambda: r.text("shares") != shares and "not trained" in r.text("status"))
        r.wait(lambda: {n for n in before if r.image(n) != before[n]} == {"th", "above", "below", "curve", "plane"})
        r.wait(lambda: "about" in r.text("expected"))
        r.press("Nearest trained")
        r.wait(lambda: "saved" in r.text("status") and r.text("shares") == shares)
        marked(r)
        r.page.set_viewport_size(dict(width=900, height=1100))
        wide = r.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        r.shot("voila_900")
        assert wide <= 1, f"at 900 pixels the page is {wide} pixels wider than the window"
        assert not r.errors, r.errors
        assert all("fontawesome" in url for url in r.asked), r.asked
