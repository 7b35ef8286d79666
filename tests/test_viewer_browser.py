"The viewer of composites in a real JupyterLab, in a real Chromium."
import json
import os
import shutil

import pytest
from conftest import ROOT
from lab import needs_browser, open_notebook, shot

pytestmark = needs_browser

CELL = """
import json
from pathlib import Path
from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.widgets.composites import CompositeViewer
data = digits_on_textures("train", n=200)
clusterer = BackgroundClusterer(3, encoder="pca", progress=False).fit(data.weak())
viewer = CompositeViewer(data.objects.masks.float(), data.weak(), clusterer)
viewer
"""
STATE = """
Path("viewer.tmp").write_text(json.dumps({"threshold": viewer.threshold, "target": viewer._target.value, "object": viewer._object.value, "answers": viewer.test.answers if viewer.test else None}))
Path("viewer.tmp").rename("viewer.json")
"""


@pytest.fixture(scope="module")
def page(lab, browser):
    page = open_notebook(lab, browser, "viewer", [CELL, STATE], (1366, 768))
    page.folder = lab[2]
    page.set_default_timeout(10_000)
    page.locator(".jp-Cell").first.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    page.locator(".bgcs-composite-viewer").wait_for(timeout=120_000)
    yield page
    shot(page, "viewer_last")
    page.close()


def state(page):
    path = page.folder / "viewer.json"
    path.unlink(missing_ok=True)
    page.locator(".jp-Cell").nth(1).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    for _ in range(100):
        if path.is_file(): return json.loads(path.read_text())
        page.wait_for_timeout(100)
    raise AssertionError("the kernel did not answer")


def text(page, words): page.wait_for_function("words => document.querySelector('.bgcs-composite-viewer').innerText.includes(words)", arg=words)


def test_one_object_before_a_chosen_cluster(page):
    view = page.locator(".bgcs-composite-viewer")
    view.scroll_into_view_if_needed()
    source = view.locator("img:visible").nth(2).get_attribute("src")
    view.locator("select").select_option(index=2)
    text(page, "backgrounds of cluster 2")
    assert view.locator("img:visible").nth(2).get_attribute("src") != source
    text(page, "Sliced Wasserstein distance to real images of cluster 2")
    shot(page, "viewer")
    if os.environ.get("BGCS_REFRESH_IMAGES"): view.screenshot(path=ROOT / "nbs" / "images" / "composite_viewer.png")
    assert state(page)["target"] == 2


def test_threshold_by_keyboard_and_draws(page):
    view = page.locator(".bgcs-composite-viewer")
    view.scroll_into_view_if_needed()
    handle = view.locator(".noUi-handle").nth(1)
    handle.focus()
    assert handle.evaluate("e => e === document.activeElement")
    before = state(page)["threshold"]
    handle.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(400)
    assert state(page)["threshold"] == pytest.approx(before + 0.1)
    source = view.locator("img:visible").nth(2).get_attribute("src")
    view.get_by_role("button", name="Next draw").click()
    page.wait_for_function("old => [...document.querySelectorAll('.bgcs-composite-viewer img')].filter(e => e.offsetParent)[2].src != old", arg=source)


def test_grid_and_blind_test(page):
    view = page.locator(".bgcs-composite-viewer")
    view.scroll_into_view_if_needed()
    view.get_by_role("button", name="Grid").click()
    text(page, "before a background of each of the clusters 0, 1, 2")
    shot(page, "viewer_grid")
    view.get_by_role("button", name="Which is real?").click()
    text(page, "Which of these four is real?")
    assert view.locator("img:visible").count() == 4
    view.get_by_role("button", name="2 is real").click()
    text(page, "of 1 right")
    shot(page, "viewer_test")
    view.get_by_role("button", name="Next question").click()
    text(page, "Which of these four is real?")
    assert len(state(page)["answers"]) == 1


def test_saved_by_a_click(page):
    view = page.locator(".bgcs-composite-viewer")
    view.scroll_into_view_if_needed()
    view.get_by_role("button", name="One object").click()
    view.get_by_role("button", name="Save PNG").click()
    text(page, "Saved as object0_cluster2")
    assert list(page.folder.glob("object0_cluster2_draw*.png"))


def test_dark_theme(page):
    view = page.locator(".bgcs-composite-viewer")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_timeout(1500)
    view.scroll_into_view_if_needed()
    shot(page, "viewer_dark")
