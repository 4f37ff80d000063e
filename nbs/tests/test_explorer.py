"The explorer of the chapter on selection as a reader meets it: JupyterLab in a browser, sliders moved, a training started, stopped and finished."
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
CHROMIUM = os.environ.get("PIXELREG_CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium found: install one (Debian: apt-get install chromium) or set PIXELREG_CHROMIUM")

ROOT, TOKEN = Path(__file__).resolve().parents[2], "for-this-test-only"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

def notebook(path, **given):
    "The chapter's experiment without its figures, with parameters as papermill writes them"
    nb = json.loads((ROOT/"nbs"/"06_selection.ipynb").read_text())
    source = lambda c: "".join(c["source"])
    nb["cells"] = [c for c in nb["cells"] if c["cell_type"] == "code" and source(c).startswith("#| experiment") and "save_figure(" not in source(c) and "print(" not in source(c)]
    at = next(i for i, c in enumerate(nb["cells"]) if "parameters" in c["metadata"].get("tags", []))
    nb["cells"].insert(at+1, dict(cell_type="code", execution_count=None, id="given", metadata={}, outputs=[], source="# Parameters\n"+"\n".join(f"{k} = {v!r}" for k, v in given.items())))
    path.write_text(json.dumps(nb))

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of its own, with a throw-away store"
    tmp = tmp_path_factory.mktemp("lab")
    notebook(tmp/"explore.ipynb", preset="smoke", epochs=8)
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("PIXELREG_DATA", "PIXELREG_PRESET", "PIXELREG_EVENTS")} | dict(PIXELREG_STORE=str(tmp/"store"), no_proxy="*",
           JUPYTER_CONFIG_DIR=str(tmp/"config"), JUPYTERLAB_SETTINGS_DIR=str(tmp/"settings"), JUPYTERLAB_WORKSPACES_DIR=str(tmp/"workspaces"))
    log = open(tmp/"lab.log", "w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={tmp}",
                               f"--IdentityProvider.token={TOKEN}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"], cwd=tmp, env=env, stdout=log, stderr=log)
    url, opener = f"http://127.0.0.1:{port}", urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(120):
        try: opener.open(f"{url}/api?token={TOKEN}", timeout=2); break
        except OSError: time.sleep(.5); assert server.poll() is None, (tmp/"lab.log").read_text()[-3000:]
    yield tmp, f"{url}/doc/tree/explore.ipynb?token={TOKEN}"
    server.terminate() # it ends its kernels
    try: server.wait(20)
    except subprocess.TimeoutExpired: server.kill()
    log.close()

class Reader:
    "What someone at the panel can read and do"
    def __init__(self, page, tmp): self.page, self.tmp = page, tmp
    def text(self, name): return self.page.locator(f".pixelreg-{name}").inner_text()
    def image(self, name): return self.page.locator(f"img.pixelreg-{name}").get_attribute("src")
    def wait(self, f, seconds=20):
        end = time.time()+seconds
        while not (found := f()):
            assert time.time() < end, f"after {seconds} s: {self.text('status')!r}"
            self.page.wait_for_timeout(20)
        return found
    def move(self, name, key="ArrowRight"):
        self.page.locator(f".pixelreg-set-{name} .noUi-handle").press(key)
    def press(self, button): self.page.get_by_role("button", name=button, exact=True).last.click()
    def shot(self, name):
        if folder := os.environ.get("PIXELREG_SHOTS"): self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)
    def unfinished(self): return [p.parent for p in (self.tmp/"store"/"runs").glob("*/.checkpoint") if not (p.parent/"done.json").exists()]

@pytest.fixture(scope="module")
def reader(lab):
    "The notebook, opened and run from the menu"
    tmp, url = lab
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=1100))
        page.goto(url)
        page.get_by_text("Python 3", exact=False).first.wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.locator(".pixelreg-explorer").wait_for(timeout=120_000)
        page.locator(".pixelreg-explorer").scroll_into_view_if_needed()
        yield Reader(page, tmp)
        browser.close()

def test_sliders_move_numbers_and_pictures(reader):
    r = reader
    reader.wait(lambda: "saved" in r.text("status"))
    r.shot("explorer")
    shares, before, took = r.text("shares"), {n: r.image(n) for n in ("pixel", "th", "above", "below", "curve", "plane")}, []
    for _ in range(3):
        now, start = r.text("shares"), time.time()
        r.move("th")
        r.wait(lambda: r.text("shares") != now)
        took.append(time.time()-start)
    print(f"\na move of Th reaches the page in {1000*min(took):.0f} to {1000*max(took):.0f} ms")
    r.wait(lambda: "not trained" in r.text("status") and "No saved results" in r.text("numbers"))
    assert "pairs of 40 images" in r.text("shares") and r.text("shares") != shares
    r.wait(lambda: {n for n in before if r.image(n) != before[n]} == {"th", "above", "below", "curve", "plane"})
    r.move("alpha")
    r.wait(lambda: "alpha 2, Th 0.43: not trained" in r.text("status"))
    assert not r.unfinished()

def test_training_is_stopped_and_finished(reader):
    r = reader
    r.press("Train")
    r.wait(lambda: "epoch" in r.text("status") and "validation accuracy" in r.text("status"), 60)
    r.shot("training")
    r.press("Stop")
    said = r.wait(lambda: r.text("status") if "stopped after" in r.text("status") else "")
    assert " of 8 epochs, which are kept" in said
    r.shot("stopped")
    assert len(r.unfinished()) == 1
    r.press("Train")
    r.wait(lambda: "trained and measured" in r.text("status"), 90)
    r.wait(lambda: "accepted" in r.text("numbers"))
    r.shot("trained")
    assert not r.unfinished()
