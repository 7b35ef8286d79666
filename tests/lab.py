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
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="BGCS_CHROMIUM names no browser; `make test` finds or installs one")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "A JupyterLab server for all tests, with settings of its own; gives its address, its token and the folder it serves."
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
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"]
    with open(private / "log", "w") as log: server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=1); break
            except OSError: time.sleep(0.5)
        else: raise RuntimeError("JupyterLab did not start:\n" + (private / "log").read_text()[-3000:])
        yield f"http://127.0.0.1:{port}", token, root
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
    "Write a notebook, or cells of code, where JupyterLab sees it, open it, and wait until its kernel is there."
    address, token, root = lab
    if not isinstance(notebook, nbformat.NotebookNode):
        cells = [nbformat.v4.new_code_cell(source) for source in notebook]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(notebook, root / f"{name}.ipynb")
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(f"{address}/doc/tree/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    idle(page)
    return page


def idle(page, seconds=60):
    "Wait until the kernel is idle, by the status bar: the notebook's own sign reads idle too early."
    page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=1000 * seconds)


def menu(page, *path):
    for name in path: page.get_by_role("menuitem", name=name, exact=True).click()


def run_all(page):
    page.locator(".jp-Cell").first.click()
    menu(page, "Run", "Run All Cells")
    page.wait_for_function("!document.querySelector('.jp-CodeCell .jp-InputPrompt').innerText.includes('[ ]')", timeout=20_000)


def shot(page, name):
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")
