"""A real JupyterLab and a real Chromium for tests; conftest.py makes its fixtures known to all of them."""
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

CHROMIUM = os.environ.get("BGCS_CHROMIUM", "")
SHOTS = Path(__file__).parent / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
           "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
PATIENCE = 300_000  # milliseconds, until something is taken to be broken and not slow, however busy the machine
WHY_SKIPPED = "BGCS_CHROMIUM names no browser; `make test` finds or installs one"
needs_browser = pytest.mark.skipif(not CHROMIUM, reason=WHY_SKIPPED)


def own_folders(private):
    "Environment variables that keep JupyterLab's settings in a folder of the tests."
    places = {name: str(private / name) for name in FOLDERS}
    settings = private / "JUPYTERLAB_SETTINGS_DIR"
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # its question would cover the views
    return places


def wait_for_server(url, log):
    for _ in range(PATIENCE // 500):
        try:
            urllib.request.urlopen(url, timeout=10)
            return
        except OSError: time.sleep(0.5)
    raise RuntimeError("JupyterLab did not start:\n" + log.read_text()[-3000:])


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "A JupyterLab server for all tests, with settings of its own; gives its address, token and folder."
    root, private = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token, address = secrets.token_hex(8), f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
    ]
    env = os.environ | own_folders(private)
    with open(private / "log", "w") as log: server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_for_server(f"{address}/api/status?token={token}", private / "log")
        yield address, token, root
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope="module")
def browser():
    "A Chromium for the tests of one file: while it runs, others cannot use asyncio."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def open_notebook(lab, browser, name, notebook, size=(1200, 1000)):
    """Write a notebook, or cells of code, where JupyterLab sees it, open it, and wait until its kernel is there.

    It has a folder of its own, `page.folder`, so that no notebook meets what another left.
    """
    address, token, root = lab
    if not isinstance(notebook, nbformat.NotebookNode):
        cells = [nbformat.v4.new_code_cell(source) for source in notebook]
        kernel = {"name": "python3", "display_name": "Python 3"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    folder = root / name
    folder.mkdir()
    nbformat.write(notebook, folder / f"{name}.ipynb")
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.folder = folder
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/doc/tree/{name}/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook")
    idle(page)
    return page


def idle(page, seconds=PATIENCE / 1000):
    "Wait until the kernel is idle, by the status bar: the notebook's own sign reads idle too early."
    page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=1000 * seconds)


YARDSTICK = """
() => {
  const times = [], pixels = new Uint32Array(1 << 16);
  for (let turn = 0; turn < 9; turn++) {
    const start = performance.now();
    for (let i = 0; i < 16e6; i++) pixels[(i * 7919) & 0xffff] += (pixels[i & 0xffff] * 3) >>> 1;
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[4];
}
"""
QUIET = 20  # milliseconds that this took on a machine of 2 cores without other work


def slowness(page):
    "How many times as long as there the page takes for some work now; at least 1."
    return max(1, page.evaluate(YARDSTICK) / QUIET)


def menu(page, *path):
    for name in path: page.get_by_role("menuitem", name=name, exact=True).click()


def run_all(page):
    page.locator(".jp-Cell").first.click()
    menu(page, "Run", "Run All Cells")
    page.wait_for_function("!document.querySelector('.jp-CodeCell .jp-InputPrompt').innerText.includes('[ ]')")


def run_cell(page, number):
    page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")


def shot(page, name):
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")
