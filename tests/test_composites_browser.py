"The viewer of composites in a real JupyterLab, in a real Chromium."
import json
import os
import re

import pytest
from conftest import ROOT
from lab import needs_browser, open_notebook, run_cell, shot

pytestmark = needs_browser
PATIENCE = 900  # seconds, which only a hang takes

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
answers = viewer.test.answers if viewer.test else None
Path("viewer.tmp").write_text(json.dumps(viewer.view.settings | {"cut": viewer.threshold, "answers": answers}))
Path("viewer.tmp").rename("viewer.json")
"""


@pytest.fixture(scope="module")
def page(lab, browser):
    page = open_notebook(lab, browser, "viewer", [CELL, STATE, "viewer"], (1366, 768))
    page.set_default_timeout(1000 * PATIENCE)
    run_cell(page, 0)
    page.locator(".bgcs-composite-viewer").wait_for()
    yield page
    shot(page, "viewer_last")
    page.close()


def state(page):
    path = page.folder / "viewer.json"
    path.unlink(missing_ok=True)
    run_cell(page, 1)
    for _ in range(10 * PATIENCE):
        if path.is_file(): return json.loads(path.read_text())
        page.wait_for_timeout(100)
    raise AssertionError("the kernel did not answer")


def viewer(page):
    found = page.locator(".bgcs-composite-viewer").first
    found.scroll_into_view_if_needed()
    return found


def text(page, words):
    shows = "words => document.querySelector('.bgcs-composite-viewer').innerText.includes(words)"
    page.wait_for_function(shows, arg=words)


def done(page):
    "All that was asked is answered, and drawn."
    page.wait_for_function("document.querySelector('.bgcs-composite-viewer .spin').hidden")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def source(view, number=2): return view.locator("img").nth(number).get_attribute("src")


def test_one_object_before_a_chosen_cluster(page):
    view = viewer(page)
    before = source(view)
    view.get_by_label("before").select_option(index=2)
    text(page, "backgrounds of cluster 2")
    text(page, "Sliced Wasserstein distance to real images of cluster 2")
    assert source(view) != before and view.locator("img").count() == 4
    assert view.locator("img").nth(2).evaluate("e => e.naturalWidth === e.width && e.width > 300")
    shot(page, "viewer")
    if os.environ.get("BGCS_REFRESH_IMAGES"): view.screenshot(path=ROOT / "nbs" / "images" / "composite_viewer.png")
    assert state(page)["target"] == 2


def test_threshold_by_keyboard(page):
    view, before = viewer(page), state(page)["threshold"]
    slider = view.get_by_role("slider", name="threshold")
    slider.focus()
    assert slider.evaluate("e => e === document.activeElement")
    assert slider.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for _ in range(2): page.keyboard.press("ArrowRight")  # faster than the kernel answers
    done(page)
    assert slider.evaluate("e => e === document.activeElement")
    assert state(page)["threshold"] == pytest.approx(before + 0.1) and f"{before + 0.1:.2f}" in view.inner_text()


def test_object_draw_and_soft_masks(page):
    view, before = viewer(page), source(viewer(page))
    view.get_by_role("button", name="Next draw").click()
    done(page)
    assert source(view) != before and view.get_by_label("draw", exact=True).input_value() == "1"
    view.get_by_label("draw", exact=True).fill("7")
    page.keyboard.press("Enter")
    view.get_by_label("soft mask").check()
    view.get_by_role("slider", name="object").focus()
    page.keyboard.press("End")
    text(page, "object 199")
    done(page)
    found = state(page)
    assert (found["draw"], found["soft"], found["cut"], found["object"]) == (7, True, None, 199)
    viewer(page).get_by_label("soft mask").uncheck()
    view.get_by_role("slider", name="object").focus()
    page.keyboard.press("Home")
    done(page)


def test_a_second_view_shows_the_same(page):
    run_cell(page, 2)
    other = page.locator(".bgcs-composite-viewer").nth(1)
    other.wait_for()
    other.get_by_label("before").select_option(index=1)
    text(page, "backgrounds of cluster 1")  # in the first view, whose control follows
    page.wait_for_function("document.querySelector('.bgcs-composite-viewer select').value === '1'")
    viewer(page).get_by_label("before").select_option(index=2)
    text(page, "backgrounds of cluster 2")


def test_grid_and_blind_test(page):
    view = viewer(page)
    view.get_by_role("button", name="Grid").click()
    text(page, "before a background of each of the clusters 0, 1, 2")
    done(page)
    assert view.locator("img").count() == 1 and not view.get_by_label("before").is_visible()
    assert view.get_by_role("button", name="Grid").get_attribute("aria-pressed") == "true"
    shot(page, "viewer_grid")
    view.get_by_role("button", name="Which is real?").click()
    text(page, "Which of these four is real?")
    done(page)
    assert view.locator("img").count() == 4 and not view.get_by_role("button", name="Save PNG").is_visible()
    view.get_by_role("button", name="2 is real").click()
    text(page, "of 1 right")
    done(page)
    assert view.locator(".choice.right").count() == 1 and view.get_by_role("button", name="3 is real").is_disabled()
    shot(page, "viewer_test")
    next_one = view.get_by_role("button", name="Next question")
    assert next_one.evaluate("e => e === document.activeElement")  # so that Enter goes on
    page.keyboard.press("Enter")
    text(page, "Which of these four is real?")
    assert len(state(page)["answers"]) == 1


def test_saved_by_a_click(page):
    view = viewer(page)
    view.get_by_role("button", name="One object").click()
    text(page, "before 6 backgrounds")
    view.get_by_role("button", name="Save PNG").click()
    text(page, "Saved as object0_cluster2")
    assert list(page.folder.glob("object0_cluster2_draw7.png"))


def theme(page, name):
    change = "name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
    page.evaluate(change, f"JupyterLab {name}")
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=f"JupyterLab {name}")


def bright(part, name):
    "Whether a colour of an element is bright."
    colour = part.evaluate("(e, name) => getComputedStyle(e)[name]", name)
    return sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128


def test_dark_theme(page):
    theme(page, "Dark")
    view = viewer(page)
    while bright(view, "backgroundColor"): page.wait_for_timeout(100)
    for part in (view, view.get_by_role("button", name="Save PNG"), view.get_by_label("before")):
        assert bright(part, "color") and not bright(part, "backgroundColor")
    shot(page, "viewer_dark")
    view.get_by_role("button", name="Which is real?").click()
    text(page, "Which of these four is real?")
    shot(page, "viewer_dark_test")
    theme(page, "Light")  # which tests of other files go on with
