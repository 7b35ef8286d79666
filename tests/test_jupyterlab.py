"""The quickstart in a real JupyterLab, in a real Chromium: the three views must show and answer."""
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from conftest import QUICKSTART, ROOT, TINY

from bgcs.experiments import with_parameters

CHROMIUM = os.environ.get("BGCS_CHROMIUM", "")
SHOTS = ROOT / "tests" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="BGCS_CHROMIUM names no browser; `make test` finds or installs one")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab server of its own, with settings of its own; gives its address and the folder it serves."
    root, private = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(8)
    places = {name: str(private / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    quiet = private / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # its question would cover the views
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    with open(private / "log", "w") as log: server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=1); break
            except OSError: time.sleep(0.5)
        else: raise RuntimeError("JupyterLab did not start:\n" + (private / "log").read_text()[-3000:])
        yield f"http://127.0.0.1:{port}", token, root
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def quickstart(lab, browser):
    "The quickstart on tiny settings, opened and run from top to bottom; gives the page and the folder."
    address, token, root = lab
    notebook = with_parameters(nbformat.read(QUICKSTART, as_version=4), TINY | {"run_folder": "run"})
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, root / "quickstart.ipynb")
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(f"{address}/doc/tree/quickstart.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=60_000)
    page.locator(".jp-Cell").first.click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function("!document.querySelector('.jp-CodeCell .jp-InputPrompt').innerText.includes('[ ]')", timeout=20_000)
    wait_for_file(root / "run" / "model" / "segmenter.safetensors", 240, page)
    page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=60_000)
    yield page, root


def wait_for_file(path, seconds, page):
    for _ in range(seconds):
        if path.exists(): return
        if page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count(): break
        page.wait_for_timeout(1000)
    shot(page, "failed")
    raise AssertionError(f"{path} did not appear; the page shows:\n{page.locator('.jp-Notebook').inner_text()[-2000:]}")


def shot(page, name):
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def view(page, name):
    "A view, scrolled to."
    found = page.locator(f".bgcs-{name}").first
    for _ in range(60):  # JupyterLab draws only the cells near the visible ones
        if found.count() and found.is_visible(): break
        page.mouse.move(600, 600)
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(200)
    found.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    return found


def to_top(page):
    page.mouse.move(600, 600)
    page.mouse.wheel(0, -100_000)
    page.wait_for_timeout(500)


def test_no_cell_fails(quickstart):
    page, root = quickstart
    assert (root / "run" / "metrics.json").is_file()
    assert "Traceback" not in page.locator(".jp-Notebook").inner_text()


def test_clusters_show_and_a_lasso_shows_their_images(quickstart):
    page, _ = quickstart
    to_top(page)
    explorer = view(page, "cluster-explorer")
    canvas = explorer.locator("canvas").first
    canvas.wait_for(timeout=20_000)
    assert "Draw a lasso" in explorer.inner_text()
    box = canvas.bounding_box()
    explorer.get_by_role("button").nth(1).click()  # the toolbar's lasso
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for fx, fy in ((0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.02)): page.mouse.move(box["x"] + fx * box["width"], box["y"] + fy * box["height"], steps=10)
    page.mouse.up()
    page.wait_for_function("[...document.querySelectorAll('.bgcs-cluster-explorer')].some(e => e.innerText.includes(' selected'))", timeout=10_000)
    shot(page, "clusters")
    assert explorer.locator("img").last.evaluate("e => e.naturalWidth") > 100


def test_composites_follow_the_target_cluster(quickstart):
    page, _ = quickstart
    to_top(page)
    viewer = view(page, "composite-viewer")
    picture = viewer.locator("img").first
    before = picture.get_attribute("src")
    viewer.locator("select").select_option(index=2)
    page.wait_for_function("(old) => document.querySelector('.bgcs-composite-viewer img').src != old", arg=before, timeout=10_000)
    shot(page, "composites")
    assert "before cluster 2" in viewer.inner_text() and picture.evaluate("e => e.naturalWidth") > 300


def test_training_shows_masks_and_turns_back(quickstart):
    page, _ = quickstart
    to_top(page)
    monitor = view(page, "training-monitor")
    assert "24 of 24 steps" in monitor.inner_text()
    masks = monitor.locator("img").first
    last = masks.get_attribute("src")
    monitor.get_by_role("slider").focus()
    for _ in range(11): page.keyboard.press("ArrowLeft")
    page.wait_for_function("(old) => { const e = document.querySelector('.bgcs-training-monitor'); return e.innerText.includes('epoch 1,') && e.querySelector('img').src != old; }", arg=last, timeout=10_000)
    shot(page, "training")


OWN_IMAGES = """import numpy as np
from pathlib import Path
from PIL import Image
from bgcs.datasets import digits_on_textures
from bgcs.describe import describe
from bgcs.images import from_folders
from bgcs.splits import split
images = digits_on_textures(n=1500)
for kind, part in (("with", images.objects), ("without", images.backgrounds)):
    Path(kind).mkdir()
    for i, image in enumerate(part.images): Image.fromarray((image[0] * 255).byte().numpy()).save(f"{kind}/{i:04}.png")
---
data = from_folders("with", "without", lazy=True).packed("cache")
data
---
describe(data, split(data))
---
Path("without/notes.png").write_text("Bring milk.")
from_folders("with", "without")"""


@pytest.fixture(scope="module")
def own_images(lab, browser):
    "A newcomer's notebook on folders of images, run from top to bottom; gives the page."
    address, token, root = lab
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in OWN_IMAGES.split("\n---\n")], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}), root / "own.ipynb")
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(f"{address}/doc/tree/own.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.get_by_text("Run", exact=True).first.click()
    page.get_by_text("Run All Cells", exact=True).first.click()
    page.get_by_text("Bring milk").first.wait_for(timeout=60_000)
    page.get_by_text("is not an image, whatever its name says").first.wait_for(timeout=180_000)
    yield page
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "own_images.png")


def test_own_images(own_images):
    text = own_images.locator(".jp-Notebook").inner_text()
    assert "ImageSet(1500 object + 1500 background-only images of 32×32, 1 channel; read when used)" in text
    assert "1500 object images, 1500 background-only images of 32×32, 1 channel; normalisation unit" in text and "duplicates across training, validation and test" in text
    assert own_images.locator(".jp-OutputArea-output img").count() >= 1
    assert "1 of 3001 images cannot be used" in text and "on_bad='skip'" in text
