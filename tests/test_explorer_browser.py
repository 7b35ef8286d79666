"""The explorer in a real JupyterLab, in a real Chromium: what a hand does with it, and how long it waits."""
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from lab import SHOTS, idle, menu, needs_browser, open_notebook, run_cell, shot, slowness

pytestmark = needs_browser

SMALL = """
import json, time
from pathlib import Path
import numpy as np, torch
from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import from_arrays
from bgcs.widgets.explorer import ClusterExplorer
data = digits_on_textures("train", n=600).weak()
clusterer = BackgroundClusterer(n_clusters=4, epochs=6, progress=False).fit(data)
columns = {"brightness": data.images.mean((1, 2, 3)).numpy(), "site": [f"site {i % 9}" for i in range(1200)]}
explorer = ClusterExplorer(clusterer, data, columns)
explorer
"""
AGAIN = "explorer"
STATE = """
arrays = {"selection": explorer.selection, "numbers": explorer.points.numbers}
arrays |= {"xy": explorer.xy, "clusters": explorer.clusters}
state = {name: array.tolist() for name, array in arrays.items()}
state |= {"names": explorer.edits.names, "steps": len(explorer.edits.steps)}
Path("state.tmp").write_text(json.dumps(state)); Path("state.tmp").rename("state.json")
"""
LARGE = """
rng = np.random.default_rng(0)
kinds = rng.random((5, 8, 8)) * 0.6
pixels = (kinds[rng.integers(0, 5, 50_010)] + 0.2 * rng.random((50_010, 8, 8))).astype(np.float32)
many = from_arrays(pixels[:10], pixels[10:], channel_axis=None)
large = ClusterExplorer(BackgroundClusterer(5, encoder="pca", progress=False).fit(many[:2000]), many, progress=False)
large.stop()
def hear(change):
    now = time.time()
    Path("heard.tmp").write_text(json.dumps([now, int(large.chosen.sum())]))
    Path("heard.tmp").rename("heard.json")
large.view.observe(hear, "selected")
large
"""


@pytest.fixture(scope="module")
def page(lab, browser):
    page = open_notebook(lab, browser, "explorer", [SMALL, AGAIN, STATE, LARGE], (1366, 768))
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(f"{error}\n{error.stack}"))
    run_cell(page, 0)
    page.locator(".bgcs-explorer canvas").first.wait_for()
    yield page
    shot(page, "explorer_last")
    page.close()


@pytest.fixture
def view(page):
    "The first view, cleared, with its clusters as they were learned."
    view = page.locator(".bgcs-explorer").first
    view.locator(".plot").scroll_into_view_if_needed()
    while view.get_by_role("button", name="Undo").is_enabled():
        before = view.locator(".said").inner_text()
        view.get_by_role("button", name="Undo").click()
        said_now = view.locator(".said").element_handle()
        page.wait_for_function("([el, old]) => el.innerText != old", arg=[said_now, before])
    view.locator("canvas").focus()
    page.keyboard.press("Escape")
    said(view, "background-only images")
    return view


def state(page):
    "What Python knows: a cell writes it to a file."
    (page.folder / "state.json").unlink(missing_ok=True)
    for _ in range(20):  # a click on a busy page may be lost; the cell can be run again
        run_cell(page, 2)
        if appears(page, "state.json", 20): break
    known = read_json(page, "state.json")
    return {name: np.array(value) if isinstance(value, list) else value for name, value in known.items()}


def appears(page, name, seconds):
    "Whether a file is there after at most so long."
    for _ in range(10 * seconds):
        if (page.folder / name).exists(): return True
        page.wait_for_timeout(100)
    return False


def read_json(page, name):
    assert appears(page, name, 300), f"{name} was not written"
    return json.loads((page.folder / name).read_text())


def said(view, text):
    view.locator(".said").get_by_text(text).wait_for()


def drag(view, corners, modifier=None, steps=6):
    "Draw around a part of the plane; corners as shares of its width and height."
    page, box = view.page, view.locator("canvas").bounding_box()
    places = [(box["x"] + fx * box["width"], box["y"] + fy * box["height"]) for fx, fy in corners]
    if modifier: page.keyboard.down(modifier)
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]: page.mouse.move(*place, steps=steps)
    page.mouse.up()
    if modifier: page.keyboard.up(modifier)


def box(left, top, right, bottom): return [(left, top), (right, top), (right, bottom), (left, bottom)]


ALL = box(0.01, 0.01, 0.99, 0.99)


def selected(view):
    first = view.locator(".side strong").inner_text().split()[0]
    return 0 if first == "Nothing" else int(first.replace(",", ""))


def test_umap_takes_the_place_of_principal_components(page):
    view = page.locator(".bgcs-explorer").first
    said(view, "laid out by UMAP")
    view.locator(".busy").wait_for(state="hidden")
    assert "Draw around points to see their images" in view.inner_text()
    height = view.bounding_box()["height"]
    assert height < 560, f"{height} pixels are too high for a laptop's screen of 768"


def test_a_lasso_reaches_python_and_shows_images(page, view):
    drag(view, box(0.01, 0.01, 0.5, 0.99))
    said(view, "selected:")
    view.locator(".thumb img").nth(29).wait_for()
    known = state(page)
    chosen = np.isin(known["numbers"], known["selection"])
    assert 0 < chosen.sum() == selected(view) < 600
    x = known["xy"][:, 0]
    assert x[chosen].max() <= x[~chosen].min(), "the lasso took the left half, and Python has something else"
    colours = view.locator(".thumb img").nth(3).evaluate("e => [e.naturalWidth, e.complete]")
    assert colours == [32, True]


def test_shift_adds_and_alt_takes_away(page, view):
    drag(view, box(0.01, 0.01, 0.5, 0.99))
    left = selected(view)
    drag(view, box(0.5, 0.01, 0.99, 0.99), "Shift")
    assert selected(view) == 600
    drag(view, box(0.01, 0.01, 0.5, 0.99), "Alt")
    assert selected(view) == 600 - left
    page.keyboard.press("Escape")
    assert selected(view) == 0


def test_pages_of_thumbnails_by_mouse_and_keys(page, view):
    drag(view, ALL)
    pager = view.locator(".side .push span")
    assert pager.inner_text() == "1 / 20"
    titles = lambda: view.locator(".thumb").evaluate_all("all => all.map(e => e.title)")
    view.locator(".thumb img").nth(29).wait_for()
    first = titles()
    view.get_by_role("button", name="›").click()
    view.locator(".thumb img").nth(29).wait_for()
    assert pager.inner_text() == "2 / 20" and not set(titles()) & set(first)
    page.keyboard.press("PageUp")
    assert pager.inner_text() == "1 / 20"
    view.locator(".thumbs").focus()
    page.keyboard.press("ArrowRight")  # the ring comes to the first image
    for _ in range(5): page.keyboard.press("ArrowDown")
    assert pager.inner_text() == "2 / 20" and view.locator(".thumb.current").count() == 1
    page.keyboard.press("Enter")  # out of the selection
    assert selected(view) == 599


def test_merge_undo_and_redo(page, view):
    drag(view, ALL)
    cells = page.locator(".jp-Cell").count()
    view.get_by_role("button", name="Merge 0 + 1 + 2 + 3").click()
    said(view, "Merged cluster 0 and cluster 1 and cluster 2 and cluster 3")
    assert list(state(page)["names"]) == ["0"] and view.locator(".legend .entry").count() == 1
    view.locator("canvas").focus()
    page.keyboard.press("Control+z")
    said(view, "Undone: merge 0, 1, 2, 3")
    assert list(state(page)["names"]) == ["0", "1", "2", "3"]
    view.locator("canvas").focus()
    page.keyboard.press("Control+Shift+z")
    said(view, "Done again")
    assert list(state(page)["names"]) == ["0"]
    view.get_by_role("button", name="Undo").click()
    said(view, "Undone")
    assert page.locator(".jp-Cell").count() == cells  # JupyterLab's own undo was not asked


def test_the_legend_hides_and_selects(page, view):
    view.locator(".legend .entry").nth(1).click()
    drag(view, ALL)
    said(view, "450 selected")
    assert 1 not in state(page)["clusters"][np.isin(state(page)["numbers"], state(page)["selection"])]
    shot(page, "explorer_hidden")
    view.locator(".legend .entry").nth(1).click()
    view.get_by_role("button", name="Select cluster 1").focus()
    page.keyboard.press("Enter")  # which JupyterLab would take for itself
    said(view, "150 selected: 150 of cluster 1")


def test_rename_split_off_move_and_drop(page, view):
    view.get_by_role("button", name="Select cluster 0").click()
    said(view, "150 selected")
    view.get_by_placeholder("name").fill("stones")
    page.keyboard.press("Enter")
    said(view, "Cluster 0 is called stones")
    assert "cluster stones" in view.locator(".legend").inner_text()
    view.get_by_role("button", name="Split off").click()  # of all selected nothing is left over
    said(view, "select some of them, not all")
    assert "wrong" in view.locator(".said").get_attribute("class")
    view.get_by_role("button", name="Split into").click()
    said(view, "Split cluster stones into 2")
    assert list(state(page)["names"]) == ["0", "1", "2", "3", "4"]
    drag(view, box(0.01, 0.01, 0.3, 0.99))
    view.get_by_title("Where to").select_option("-1")
    view.get_by_role("button", name="Move to").click()
    said(view, "to no cluster")
    assert "no cluster" in view.locator(".legend").inner_text()
    view.get_by_role("button", name="Select cluster 2").click()
    view.get_by_role("button", name="Drop 2").click()
    said(view, "Dropped cluster 2")
    assert list(state(page)["names"]) == ["0", "1", "3", "4"]


def test_colours(page, view):
    by = view.get_by_label("Colour by")
    by.select_option("confidence")
    view.locator(".legend .scale").wait_for()
    shot(page, "explorer_confidence")
    by.select_option("site")
    view.locator(".legend").get_by_text("site 8").wait_for()
    assert "■" in view.locator(".legend").inner_text()  # the ninth differs by its shape
    shot(page, "explorer_sites")
    by.select_option("cluster")
    view.locator(".legend").get_by_text("cluster 3").wait_for()


def test_keys_go_from_point_to_point_and_the_image_shows(page, view):
    view.locator("canvas").focus()
    seen = set()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        seen.add(view.locator(".card").get_attribute("data-point"))
    assert len(seen) > 1
    view.locator(".card img").wait_for()
    assert "confidence" in view.locator(".card").inner_text()
    page.keyboard.press("Enter")
    said(view, "1 selected")
    shot(page, "explorer_keys")
    before = view.locator("canvas").evaluate("e => e.toDataURL()")
    for key in ("+", "Shift+ArrowRight"): page.keyboard.press(key)
    canvas = view.locator("canvas").element_handle()
    page.wait_for_function("([canvas, before]) => canvas.toDataURL() != before", arg=[canvas, before])
    page.keyboard.press("0")


def test_object_images_overlaid(page, view):
    view.get_by_label("Object images").check()
    said(view, "600 object images")
    drag(view, ALL)
    said(view, "1,200 selected")
    shot(page, "explorer_objects")
    page.keyboard.press("Escape")
    view.get_by_label("Object images").uncheck()
    said(view, "600 background-only images in 4 clusters, laid out by UMAP")


def test_export_and_save(page, view):
    view.get_by_role("button", name="Select cluster 3").click()
    said(view, "150 selected")
    view.get_by_title("A folder for the selected images").fill("chosen.csv")
    view.get_by_role("button", name="Export").click()
    said(view, "Written:")
    assert (pd.read_csv(page.folder / "chosen.csv").cluster == 3).all()
    view.get_by_title("A folder for the clusterer").fill("edits.json")
    view.get_by_role("button", name="Save").click()
    said(view, "edits.json")
    assert json.loads((page.folder / "edits.json").read_text())["edits"] == []


def test_shown_twice_both_views_keep_step(page, view):
    run_cell(page, 1)
    second = page.locator(".bgcs-explorer").nth(1)
    second.locator("canvas").wait_for()
    view.locator(".plot").scroll_into_view_if_needed()
    drag(view, box(0.01, 0.01, 0.5, 0.99))
    number = selected(view)
    assert number > 0
    second.get_by_text(f"{number} selected", exact=True).wait_for()
    page.locator(".jp-Notebook .jp-Cell").nth(1).locator(".jp-InputArea-editor").click()
    menu(page, "Edit", "Clear Cell Output")


def in_theme(page, name):
    "Change JupyterLab's theme, and wait until the canvas has followed."
    light = str(name == "Light").lower()
    page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {name}'}})")
    page.wait_for_function(f"document.body.dataset.jpThemeLight == '{light}'")
    page.wait_for_function("""(light) => {
        const canvas = document.querySelector('.bgcs-explorer canvas');
        const pixel = [...canvas.getContext('2d').getImageData(3, 3, 1, 1).data].slice(0, 3);
        return light ? Math.min(...pixel) > 240 : Math.max(...pixel) < 40;
    }""", arg=name == "Light")


def test_dark_theme(page, view):
    drag(view, box(0.5, 0.01, 0.99, 0.99))
    in_theme(page, "Light")
    in_theme(page, "Dark")
    page.mouse.move(5, 400)
    view.locator(".thumb img").nth(29).wait_for()
    SHOTS.mkdir(exist_ok=True)
    view.screenshot(path=SHOTS / "explorer_dark.png")
    in_theme(page, "Light")


def test_a_reloaded_page_has_the_view_as_it_was(page, view):
    drag(view, box(0.01, 0.01, 0.5, 0.99))
    said(view, "selected")
    number = selected(view)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    view.locator("canvas").wait_for()
    view.locator(".thumb img").nth(29).wait_for()
    assert selected(view) == number
    view.get_by_role("button", name="Clear").click()
    said(view, "laid out by UMAP")


def test_the_picture_of_the_documentation(page, view):
    known = state(page)
    spread = [known["xy"][known["clusters"] == k].std(0).sum() for k in range(4)]
    view.get_by_role("button", name=f"Select cluster {np.argmax(spread)}").click()
    said(view, "150 selected")
    view.locator(".thumb img").nth(29).wait_for()
    page.mouse.move(5, 400)
    SHOTS.mkdir(exist_ok=True)
    view.screenshot(path=SHOTS / "explorer.png")
    if not os.environ.get("BGCS_REFRESH_IMAGES"): return
    shutil.copy(SHOTS / "explorer.png", ROOT / "nbs" / "images" / "explorer.png")


MEASURE = """
() => {
  const view = [...document.querySelectorAll('.bgcs-explorer')].at(-1);
  const canvas = view.querySelector('canvas');
  const card = view.querySelector('.card');
  let moved = 0;
  Object.assign(window, { waits: [], pictures: [] });
  canvas.addEventListener('pointermove', (e) => {
    moved = e.timeStamp;
    requestAnimationFrame(() => setTimeout(() => window.waits.push(performance.now() - e.timeStamp)));
  });
  const seen = new MutationObserver(() => {
    if (card.querySelector('img')) window.pictures.push(performance.now() - moved);
  });
  seen.observe(card, { childList: true });
  const look = () => {
    if (view.querySelectorAll('.thumb img').length >= 30) window.shown = Date.now();
    else setTimeout(look, 5);
  };
  canvas.addEventListener('pointerup', () => {
    window.released = Date.now();
    look();
  });
}
"""


@pytest.mark.parametrize("timed", [False, pytest.param(True, marks=pytest.mark.slow)])  # with nothing beside it
def test_50_000_points_keep_up_with_the_hand(page, timed):
    run_cell(page, 3)
    page.locator(".jp-Cell").nth(3).locator(".bgcs-explorer canvas").wait_for()
    view = page.locator(".bgcs-explorer").last
    view.scroll_into_view_if_needed()
    said(view, "50,000 background-only images")
    idle(page)
    page.evaluate(MEASURE)
    canvas = view.locator("canvas").bounding_box()
    at = lambda fx, fy: (canvas["x"] + fx * canvas["width"], canvas["y"] + fy * canvas["height"])

    for fy in (0.1, 0.3, 0.5, 0.7, 0.9):
        for fx in np.linspace(0.1, 0.9, 20): page.mouse.move(*at(fx, fy)); page.wait_for_timeout(15)
    for fx in np.linspace(0.3, 0.7, 9):  # to rest where a point is
        page.mouse.move(*at(fx, 0.5))
        page.wait_for_timeout(100)
        if view.locator(".card").is_visible(): view.locator(".card img").wait_for()
    hover, pictures = (page.evaluate(f"window.{name}.splice(0)") for name in ("waits", "pictures"))

    view.get_by_role("button", name="Pan").click()
    page.mouse.move(*at(0.5, 0.5))
    page.mouse.down()
    for fx in np.linspace(0.5, 0.6, 25): page.mouse.move(*at(fx, 0.55)); page.wait_for_timeout(20)
    page.mouse.up()
    pan = page.evaluate("window.waits.splice(0)")
    view.get_by_role("button", name="Fit").click()
    view.get_by_role("button", name="Lasso").click()

    lassos = []
    for cx in (0.2, 0.5, 0.8):
        (page.folder / "heard.json").unlink(missing_ok=True)
        page.evaluate("window.shown = 0")
        drag(view, [(cx + 0.18 * np.cos(a), 0.5 + 0.49 * np.sin(a)) for a in np.linspace(0, 6.2, 60)], steps=1)
        page.wait_for_function("window.shown > 0")
        heard, number = read_json(page, "heard.json")
        released, shown = page.evaluate("[window.released, window.shown]")
        lassos.append([1000 * heard - released, shown - released])
        page.keyboard.press("Escape")
        said(view, "50,000 background-only images")
    drag(view, box(0.01, 0.01, 0.6, 0.99))
    page.wait_for_timeout(500)
    shot(page, "explorer_50000")
    to_python, thumbnails = np.median(lassos, 0)
    hovering, picture, panning = (float(np.median(times)) for times in (hover, pictures, pan))
    print(f"\n50,000 points, {number} in the lasso: hover {hovering:.0f} ms, its picture {picture:.0f} ms, pan {panning:.0f} ms, "
          f"lasso to Python {to_python:.0f} ms, thumbnails {thumbnails:.0f} ms; all lassos {np.round(lassos).tolist()}")
    assert number > 1000 and len(hover) >= 20 and len(pan) >= 20 and pictures
    if not timed: return
    slow = slowness(page)
    assert hovering < 100 * slow and picture < 200 * slow and panning < 100 * slow
    assert to_python < 1000 * slow and thumbnails < 2000 * slow  # twice what is promised


def test_a_restarted_kernel_leaves_a_view_that_says_so(page):
    page.evaluate("void jupyterapp.commands.execute('kernelmenu:restart')")
    page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    view = page.locator(".bgcs-explorer").last
    view.get_by_text("No kernel stands behind this view").wait_for()
    view.scroll_into_view_if_needed()
    shot(page, "explorer_stale")
    assert not errors_of_views(page)
    page.evaluate(THROWS)  # so that an error would have been seen
    page.wait_for_timeout(1000)
    assert len(errors_of_views(page)) == 1


THROWS = """
() => {
  const script = new Blob(["setTimeout(() => { throw new Error('on purpose'); });"], { type: "text/javascript" });
  import(URL.createObjectURL(script));
}
"""


def errors_of_views(page):
    "Errors from scripts that were loaded from a blob, as those of views are; JupyterLab has errors of its own."
    return [error for error in page.errors if "blob:" in error]
