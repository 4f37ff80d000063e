"""What `make lab` and `make explorer` open, as a reader meets it in a browser: pictures of every chapter; the explorer with nothing trained,
its sliders moved, a training started, stopped and finished."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]"
)
CHROMIUM = os.environ.get("PIXELREG_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="no chromium found: install one (Debian: apt-get install chromium) or set PIXELREG_CHROMIUM",
)
needs_voila = pytest.mark.skipif(
    not importlib.util.find_spec("voila"), reason="voila is not installed: pip install -e .[voila]"
)

ROOT, TOKEN, LONG = (
    Path(__file__).resolve().parents[2],
    "for-this-test-only",
    900,
)  # seconds that a busy machine may take for what is waited for
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

PROMISED = 15  # seconds from opening the explorer to the panel, nothing trained


def with_parameters(notebook, path, **given):
    "A copy of a notebook, with parameters as papermill writes them"
    nb = json.loads(notebook.read_text())
    at = next(
        i for i, cell in enumerate(nb["cells"]) if "parameters" in cell["metadata"].get("tags", [])
    )
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    cell = dict(
        cell_type="code",
        execution_count=None,
        id="given",
        metadata={},
        outputs=[],
        source="\n".join(["# Parameters", *lines]),
    )
    nb["cells"].insert(at + 1, cell)
    path.write_text(json.dumps(nb))


def command(checkout, target):
    "The words behind a make target, as they stand in its recipe, without the path of the environment"
    asked = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", target, "VENV=.venv"]
    recipe = subprocess.run(asked, cwd=checkout, capture_output=True, text=True, check=True).stdout
    words = shlex.split(recipe.splitlines()[-1])
    return [word for word in words if not word.startswith("PATH=")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A copy of what make and the notebooks need, so that nothing is saved into the checkout, and a throw-away store"
    tmp = tmp_path_factory.mktemp("explorer")
    for part in ("nbs", "figures"):
        shutil.copytree(ROOT / part, tmp / "checkout" / part)
    for part in ("Makefile", "settings.ini"):
        shutil.copy(ROOT / part, tmp / "checkout" / part)
    with_parameters(
        ROOT / "nbs" / "explorer.ipynb",
        tmp / "checkout" / "nbs" / "explorer_smoke.ipynb",
        preset="smoke",
        epochs=8,
    )
    tracker = (
        tmp / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    )
    tracker.parent.mkdir(parents=True)
    tracker.write_text(
        json.dumps(dict(windowingMode="none"))
    )  # every cell is on the page, not only those in sight
    return tmp


@contextmanager
def served(tmp, name, *command, store="store"):  # -> Iterator[str], the address
    "A server of its own on a free port, ended with every process it started"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PIXELREG_DATA", "PIXELREG_PRESET", "PIXELREG_EVENTS")
    } | dict(
        PIXELREG_STORE=str(tmp / store),
        no_proxy="*",
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        JUPYTER_CONFIG_DIR=str(tmp / "config"),
        JUPYTERLAB_SETTINGS_DIR=str(tmp / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(tmp / "workspaces"),
    )
    opener, url = (
        urllib.request.build_opener(urllib.request.ProxyHandler({})),
        f"http://127.0.0.1:{port}",
    )
    with open(tmp / f"{name}.log", "w") as log:
        server = psutil.Popen(
            [sys.executable, "-m", *command, *(a.format(port=port) for a in PORT[name])],
            cwd=tmp / "checkout",
            env=env,
            stdout=log,
            stderr=log,
        )
    try:
        end = time.time() + LONG
        while True:
            assert server.poll() is None and time.time() < end, (tmp / f"{name}.log").read_text()[
                -3000:
            ]
            try:
                opener.open(f"{url}/static/", timeout=LONG)
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                time.sleep(0.1)
        yield url, server
    finally:
        mine = [server, *server.children(recursive=True)] if server.is_running() else [server]
        server.terminate()  # it ends its kernels
        for left in psutil.wait_procs(mine, 60)[1]:
            left.kill()


PORT = dict(
    lab=["--ServerApp.port={port}", "--ServerApp.port_retries=0"],
    voila=["--port={port}"],
    cold=["--port={port}"],
)


def processor_seconds(server):
    "What a server's kernels have computed so far, all of them together"
    used = 0
    for process in server.children(recursive=True):
        try:
            used += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            pass
    return used


class Reader:
    "What someone at the panel can read and do"

    def __init__(self, page, tmp):
        self.page, self.tmp, self.errors, self.asked = page, tmp, [], []
        page.set_default_timeout(1000 * LONG)
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.route(
            lambda url: (
                not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
            ),
            self.stand_in,
        )

    def stand_in(
        self, route
    ):  # Voilà's page asks for an icon font from elsewhere: the test needs no network
        self.asked.append(route.request.url)
        route.fulfill(status=200, content_type="text/css", body="")

    def text(self, name):
        return self.page.locator(f".pixelreg-{name}").inner_text()

    def image(self, name):
        return self.page.locator(f"img.pixelreg-{name}").get_attribute("src")

    def wait(self, f, every=100):  # ms: a page that is asked all the time takes the kernel's core
        end = time.time() + LONG
        while not (found := f()):
            assert time.time() < end, (
                f"after {LONG} s: {self.page.locator('.pixelreg-status, .pixelreg-expected').all_inner_texts()}"
            )
            self.page.wait_for_timeout(every)
        return found

    def open(self, status="not trained"):
        "Wait for the panel, or for the error that stands in its place"
        panel, error = (
            self.page.locator(".pixelreg-explorer"),
            self.page.locator("[data-mime-type='application/vnd.jupyter.error']"),
        )
        self.wait(lambda: panel.count() or error.count(), 100)
        assert not error.count(), error.first.inner_text()
        self.wait(lambda: status in self.text("status") and self.drawn() == 6)
        panel.scroll_into_view_if_needed()

    def drawn(self):
        "How many of the panel's pictures show something"
        return self.page.locator(".pixelreg-explorer img").evaluate_all(
            "all => all.filter(i => i.naturalWidth > 0).length"
        )

    def top(self, name):
        "Where a part of the panel begins, in pixels from the panel's own top"
        return self.page.evaluate(
            "name => document.querySelector(name).getBoundingClientRect().top - document.querySelector('.pixelreg-explorer').getBoundingClientRect().top",
            name,
        )

    def move(self, name, key="ArrowRight"):
        self.page.locator(f".pixelreg-set-{name} .noUi-handle").press(key)

    def press(self, button):
        self.page.get_by_role("button", name=button, exact=True).last.click()

    def full(self, name):  # the places of full marks, and of the handle's middle, in pixels
        marks = self.page.locator(f".pixelreg-marks-{name} i").evaluate_all(
            "all => all.filter(i => !i.style.background.includes('transparent')).map(i => i.getBoundingClientRect()).map(b => b.x+b.width/2)"
        )
        return marks, self.page.locator(f".pixelreg-set-{name} .noUi-handle").evaluate(
            "i => { const b = i.getBoundingClientRect(); return b.x+b.width/2 }"
        )

    def shot(self, name):
        if folder := os.environ.get("PIXELREG_SHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def unfinished(self):
        return [
            p.parent
            for p in (self.tmp / "store" / "runs").glob("*/.checkpoint")
            if not (p.parent / "done.json").exists()
        ]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, tmp, url):  # -> Iterator[Reader]
    reader = Reader(
        browser.new_page(viewport=dict(width=1280, height=1100), reduced_motion="reduce"), tmp
    )
    reader.page.goto(url)
    try:
        yield reader
    finally:
        reader.page.close()


LAB = [
    "--no-browser",
    "--ServerApp.ip=127.0.0.1",
    f"--IdentityProvider.token={TOKEN}",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
]


@pytest.fixture(scope="module")
def lab(place):
    "JupyterLab as `make lab` starts it"
    words = command(place / "checkout", "lab")
    assert words[:2] == ["jupyter", "lab"], words
    with served(place, "lab", "jupyterlab", *words[2:], *LAB) as (url, server):
        yield url


def end_kernels(lab):
    "JupyterLab starts one for each notebook that is opened, and keeps it"
    opener, authorized = (
        urllib.request.build_opener(urllib.request.ProxyHandler({})),
        dict(Authorization=f"token {TOKEN}"),
    )

    def ask(path, method):
        return opener.open(
            urllib.request.Request(f"{lab}/api/{path}", headers=authorized, method=method),
            timeout=LONG,
        )

    for session in json.load(ask("sessions", "GET")):
        ask(f"sessions/{session['id']}", "DELETE")


def test_lab_opens_among_the_notebooks(lab, place, browser):
    with opened(browser, place, f"{lab}/?token={TOKEN}") as r:
        r.page.get_by_role("listitem", name=re.compile("03_training.ipynb")).first.wait_for()
        assert "/lab/tree/nbs" in r.page.url, r.page.url
        r.shot("lab")


def test_lab_shows_every_picture_of_every_chapter(lab, place, browser):
    "As many pictures as a notebook links to, each with a size"
    n = 0
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        linked = sum(
            len(re.findall(r"!\[[^\]]*\]\([^)]+\)", "".join(c["source"])))
            for c in cells
            if c["cell_type"] == "markdown"
        )
        if not linked:
            continue
        with opened(browser, place, f"{lab}/doc/tree/nbs/{path.name}?token={TOKEN}") as r:
            pictures = r.page.locator(".jp-MarkdownOutput img")
            r.wait(lambda: pictures.count() >= linked)
            r.wait(lambda: pictures.evaluate_all("all => all.every(i => i.complete)"))
            shown = pictures.evaluate_all("all => all.filter(i => i.naturalWidth > 0).length")
            assert (shown, pictures.count()) == (linked, linked), path.name
            if path.name.startswith("06"):
                r.shot("chapter_06")
        end_kernels(lab)
        n += linked
    print(f"\n{n} pictures")
    assert n > 40


@pytest.fixture(scope="module")
def reader(place, browser, lab):
    "The explorer in JupyterLab, opened and run from the menu"
    with opened(browser, place, f"{lab}/doc/tree/nbs/explorer_smoke.ipynb?token={TOKEN}") as reader:
        reader.page.get_by_text(
            "Python 3 (ipykernel) | Idle"
        ).wait_for()  # what is run before is lost
        reader.page.get_by_role("menuitem", name="Run", exact=True).click()
        reader.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        reader.open()
        yield reader


def marked(r):  # the handles stand on full marks, to the pixel
    for name in ("alpha", "th"):
        marks, handle = r.full(name)
        assert min(abs(m - handle) for m in marks) < 1.5, (name, marks, handle)


def test_nothing_needs_to_be_trained(reader):
    r = reader
    r.shot("explorer")
    assert "alpha 1, Th 0.4: not trained" in r.text(
        "status"
    ) and "No pair is trained yet" in r.text("trained")
    assert "pairs of 40 images" in r.text("shares") and "No saved results" in r.text("numbers")
    assert r.page.get_by_role("button", name="Nearest trained", exact=True).last.is_disabled()
    assert not r.unfinished()


def test_sliders_move_numbers_and_pictures(reader):
    r = reader
    before, took = {n: r.image(n) for n in ("pixel", "th", "above", "below", "curve", "plane")}, []
    for _ in range(3):
        now, start = r.text("shares"), time.time()
        r.move("th")
        r.wait(lambda: r.text("shares") != now, 20)
        took.append(time.time() - start)
    print(f"\na move of Th reaches the page in {1000 * min(took):.0f} to {1000 * max(took):.0f} ms")
    r.wait(lambda: "alpha 1, Th 0.43: not trained" in r.text("status"))
    r.wait(
        lambda: {n for n in before if r.image(n) != before[n]} == {"th", "above", "below", "curve"}
    )  # no point in the plane
    assert not r.full("alpha")[0] and not r.full("th")[0] and not r.unfinished()


def test_training_is_stopped_and_finished(reader):
    r = reader
    said = r.wait(lambda: r.text("expected") if "about" in r.text("expected") else "")
    assert (
        "24 epochs of" in said
    )  # of the unregularized network, of the source, and of the pair's own
    r.press("Train")
    r.wait(lambda: "epoch" in r.text("status") and "validation accuracy" in r.text("status"))
    r.shot("training")
    r.press("Stop")
    stopped = r.wait(lambda: r.text("status") if "stopped after" in r.text("status") else "")
    assert " of 24 epochs, which are kept" in stopped
    assert len(r.unfinished()) == 1
    r.press("Train")
    done = r.wait(lambda: r.text("status") if "trained and measured" in r.text("status") else "")
    r.wait(lambda: "accepted" in r.text("numbers"))
    print(f"\n{said}; {stopped}; {done}")
    r.shot("trained")
    marked(r)
    assert not r.unfinished() and "1 trained pair," in r.text("trained")


def test_nearest_trained_pair(reader):
    r = reader
    before = {n: r.image(n) for n in ("curve", "plane")}
    for name in "alpha", "th":
        now = r.text("status")
        r.move(name)
        r.wait(lambda: r.text("status") != now)
    r.wait(
        lambda: (
            "alpha 2, Th 0.44: not trained" in r.text("status")
            and "8 epochs of" in r.text("expected")
        )
    )
    r.wait(lambda: all(r.image(n) != before[n] for n in before))
    r.press("Nearest trained")
    r.wait(lambda: "saved" in r.text("status") and r.full("alpha")[0] and r.full("th")[0])
    marked(r)
    assert r.text("expected").strip() == ""


def explorer_words(place, **changed):
    words = command(place / "checkout", "explorer")
    assert words[0] == "voila" and words[1] == "nbs/explorer.ipynb", words
    return [
        "voila",
        changed.get("notebook", words[1]),
        *words[2:],
        "--no-browser",
        "--Voila.ip=127.0.0.1",
    ]


@needs_voila
def test_explorer_stands_with_nothing_trained(place, browser):
    "`make explorer` with an empty store, at the preset that a newcomer gets: panel and pictures in seconds, at every width"
    with (
        served(place, "cold", *explorer_words(place), store="empty") as (url, server),
        opened(browser, place, "about:blank") as r,
    ):
        before, start = processor_seconds(server), time.time()
        r.page.goto(url)
        r.open()
        took, used = time.time() - start, processor_seconds(server) - before
        print(f"\nthe panel stands after {took:.1f} s, {used:.1f} of them on the processor")
        assert used < PROMISED  # on a busy machine a reader waits for others too
        assert "No pair is trained yet" in r.text("trained") and "499,500 pairs" in r.text("shares")
        for width in 1280, 900, 390:
            r.page.set_viewport_size(dict(width=width, height=1100))
            r.page.wait_for_timeout(300)
            r.shot(f"panel_{width}")
            wide = r.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 1, f"at {width} pixels the page is {wide} pixels wider than the window"
            assert (r.top(".pixelreg-curve") < r.top(".pixelreg-targets")) == (width < 1048), width
            if width == 900:
                assert r.top(".pixelreg-curve") < 300 and r.top(".pixelreg-plane") == r.top(
                    ".pixelreg-curve"
                )
        assert not r.errors, r.errors
        assert all("fontawesome" in url for url in r.asked), r.asked


@needs_voila
def test_voila_shows_what_was_trained(place, browser, reader):
    words = explorer_words(place, notebook="nbs/explorer_smoke.ipynb")
    with served(place, "voila", *words) as (url, server), opened(browser, place, url) as r:
        r.open()
        assert "1 trained pair," in r.text("trained")
        r.press("Nearest trained")
        r.wait(lambda: "saved" in r.text("status"))
        r.shot("voila")
        marked(r)
        shares = r.text("shares")
        r.move("th")
        r.wait(lambda: r.text("shares") != shares and "not trained" in r.text("status"))
        r.press("Nearest trained")
        r.wait(lambda: "saved" in r.text("status") and r.text("shares") == shares)
        marked(r)
        assert not r.errors, r.errors
