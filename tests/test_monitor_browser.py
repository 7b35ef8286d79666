"""TrainingMonitor in a real JupyterLab and a real Chromium: training is watched, paused, left, come back to, and stopped."""
import os
import re

import pytest
from conftest import ROOT
from lab import idle, needs_browser, open_notebook, shot

pytestmark = needs_browser
PATIENCE = 900  # seconds, which only a hang takes
CELLS = ["""from pathlib import Path
from bgcs.data.datasets import digits_on_textures
from bgcs.widgets.monitor import TrainingMonitor
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.objective.terms import Objective
data, watched = digits_on_textures("train", n=300), digits_on_textures("test", n=10).objects
TrainingMonitor()""",
"""monitor = TrainingMonitor(watched, folder="watched")
segmenter = Segmenter(base_width=8, depth=2, schedule="constant", objective=Objective(opening=0.01))
endless = dict(steps=30_000, rounds=1_000, batches=Batches(per_cluster=4, n_real=32))  # 30 steps a round
monitor.fit(segmenter, data, data.background_class, **endless)
print("the kernel is free")""",
"monitor",
"""segmenter = monitor.wait()
print(monitor.phase, tuple(segmenter.predict(data.objects[:3]).shape), "usable")""",
"""TrainingMonitor.open("watched")""",
"""held = TrainingMonitor(watched)
Segmenter(base_width=8, depth=2).fit(data, data.background_class, callbacks=[held], progress=False, **endless)"""]


@pytest.fixture(scope="module")
def session(lab, browser):
    "The page, which tests may open anew."
    page = open_notebook(lab, browser, "watching", CELLS, size=(1366, 768))
    page.set_default_timeout(1000 * PATIENCE)
    address, token, _ = lab
    yield {"browser": browser, "page": page, "url": f"{address}/doc/tree/watching/watching.ipynb?token={token}"}


def run_cell(page, number):
    page.locator(".jp-CodeCell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


def monitors(page): return page.locator(".bgcs-training-monitor")


def monitor(page, number=1):
    found = monitors(page).nth(number)
    found.scroll_into_view_if_needed()
    return found


def theme(page, name):
    change = "name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
    page.evaluate(change, f"JupyterLab {name}")
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=f"JupyterLab {name}")
    page.wait_for_timeout(500)  # for the colours to fade over


def step(view): return int(re.search(r"step (\d+) of", view.locator(".title").inner_text()).group(1))


def until(page, true):
    for _ in range(PATIENCE * 5):
        if true(): return
        page.wait_for_timeout(200)
    shot(page, "monitor_failed")
    raise AssertionError(f"in vain; the page shows:\n{page.locator('.jp-Notebook').inner_text()[-3000:]}")


def test_an_empty_monitor_says_what_to_do(session):
    page = session["page"]
    run_cell(page, 0)
    monitors(page).first.wait_for()
    assert "Give me to fit" in monitors(page).first.inner_text()
    assert not monitors(page).first.locator(".verdict").is_visible()
    assert not monitors(page).first.get_by_role("button", name="Pause").is_visible()


def test_frames_arrive_while_the_kernel_is_free(session):
    page = session["page"]
    run_cell(page, 1)
    page.get_by_text("the kernel is free").last.wait_for()
    view = monitor(page)
    slider = view.get_by_role("slider")
    until(page, lambda: slider.is_visible() and int(slider.get_attribute("max")) >= 2)
    assert view.locator("img").evaluate("e => e.naturalWidth") > 300 and view.locator("svg").count() >= 3
    assert "images/s" in view.inner_text() and "GB" in view.inner_text() and "IoU" in view.inner_text()


def test_pause_stands_still_and_resume_goes_on(session):
    page, view = session["page"], monitor(session["page"])
    view.get_by_role("button", name="Pause").click()
    until(page, lambda: "Paused: step" in view.inner_text())
    before = step(view)
    page.wait_for_timeout(1500)
    assert step(view) == before
    page.keyboard.press("Enter")  # the button has kept the focus, and is called Resume now
    until(page, lambda: "Training: step" in view.inner_text() and step(view) > before)


def test_a_second_view_shows_the_same(session):
    page = session["page"]
    run_cell(page, 2)
    other = monitor(page, 2)
    other.get_by_role("button", name="Snapshot").click()
    until(page, lambda: "Kept a snapshot" in other.inner_text())
    monitor(page).get_by_role("slider").focus()
    page.keyboard.press("Home")
    until(page, lambda: "round 1, step 30" in other.locator(".at").inner_text())
    shot(page, "monitor")
    page.keyboard.press("End")
    until(page, lambda: other.locator(".at").inner_text() == "now")


def test_after_a_reload_and_a_closed_lid_the_view_is_up_to_date(session):
    page = session["page"]
    before = step(monitor(page))
    page.keyboard.press("Control+s")  # the slider has the focus, and takes no more than its own keys
    page.wait_for_timeout(1000)
    page.reload()
    idle(page, PATIENCE)
    view = monitor(page)
    until(page, lambda: step(view) > before)
    before = step(view)
    page.close()
    page = session["page"] = session["browser"].new_page(viewport={"width": 1366, "height": 768})
    page.set_default_timeout(1000 * PATIENCE)
    page.wait_for_timeout(2000)
    page.goto(session["url"])
    idle(page, PATIENCE)
    view = monitor(page)
    until(page, lambda: step(view) > before)
    view.get_by_role("slider").focus()
    page.keyboard.press("Home")
    until(page, lambda: "round 1, step 30" in view.locator(".at").inner_text())
    until(page, lambda: view.locator("img").evaluate("e => e.naturalWidth") > 300)
    page.keyboard.press("End")


def test_stop_ends_training_with_a_usable_segmenter(session):
    page, view = session["page"], monitor(session["page"])
    if os.environ.get("BGCS_REFRESH_IMAGES"):  # the picture of the documentation, when masks have formed
        until(page, lambda: step(view) > 600)
        view.screenshot(path=ROOT / "nbs" / "images" / "monitor.png")
    view.get_by_role("button", name="Stop").click()
    until(page, lambda: "Stopped after step" in view.inner_text())
    run_cell(page, 3)
    page.get_by_text("stopped (3, 1, 32, 32) usable").last.wait_for()
    chip = view.locator(".verdict .chip")
    until(page, chip.is_visible)
    assert chip.inner_text() in ("usable", "doubtful", "failed") and chip.inner_text() == chip.get_attribute("data-word")
    assert not view.get_by_role("button", name="Pause").is_visible()
    theme(page, "Dark")
    monitor(page)
    shot(page, "monitor_dark")
    theme(page, "Light")


def test_another_day_the_history_plays(session):
    page = session["page"]
    run_cell(page, 4)
    page.locator(".jp-CodeCell").nth(4).locator(".bgcs-training-monitor").wait_for()
    view = page.locator(".jp-CodeCell").nth(4).locator(".bgcs-training-monitor")
    view.scroll_into_view_if_needed()
    assert "Training, stopped" in view.inner_text() and view.locator(".verdict .chip").is_visible()
    observe = "new MutationObserver(() => e.seen.push(e.innerText)).observe(e, { childList: true })"
    at, slider = view.locator(".at"), view.get_by_role("slider")
    at.evaluate(f"e => {{ e.seen = []; {observe}; }}")  # a picture stays for a third of a second; this test may sleep
    view.get_by_role("button", name="Play").click()
    until(page, lambda: {"round 1", "round 2"} <= {text.split(",")[0] for text in at.evaluate("e => e.seen")})
    slider.focus()
    page.keyboard.press("End")  # halts, too
    page.keyboard.press("ArrowLeft")
    last = int(slider.get_attribute("max"))
    assert int(slider.input_value()) == last - 1
    view.get_by_role("button", name="Play").click()
    until(page, lambda: int(slider.input_value()) == last and "Play" in view.inner_text())


def test_where_training_holds_the_kernel_a_button_that_is_not_heard_says_so(session):
    page = session["page"]
    run_cell(page, 5)
    view = page.locator(".jp-CodeCell").nth(5).locator(".bgcs-training-monitor")
    view.wait_for()
    view.scroll_into_view_if_needed()
    until(page, lambda: "Training: step" in view.inner_text())
    assert "holds this notebook's kernel" in view.inner_text()
    view.get_by_role("button", name="Stop").click()
    until(page, lambda: "has not heard" in view.inner_text() or "Stopped after step" in view.inner_text())
    page.locator("body").evaluate("e => e.focus()")
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Interrupt Kernel").click()
    until(page, lambda: "Stopped after step" in view.inner_text())
