"The browser of masks in a real JupyterLab, in a real Chromium: keys, sliders, sorting, decisions, many and large images."
import io
import json
import os
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from lab import idle, needs_browser, open_notebook, run_cell, shot, slowness
from PIL import Image

pytestmark = needs_browser
PATIENCE = 900  # seconds, which only a hang takes

SETUP = """
import json
from pathlib import Path
import numpy as np
import tifffile
from PIL import Image
from skimage import data as textures
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.method import load_method
from bgcs.methods.supervised import Supervised
from bgcs.widgets.browser import MaskBrowser

grounds = [getattr(textures, name)() for name in ("brick", "grass", "gravel")]
data = digits_on_textures("train", n=300, random_state=0)

def photograph(number, height, width, digits=3):
    rng = np.random.default_rng(number)
    top, left = rng.integers(0, 512 - height), rng.integers(0, 512 - width)
    picture = grounds[number % 3][top:top + height, left:left + width].copy()
    for digit in rng.choice(len(data.objects), digits):
        image, mask = (of[int(digit)][0].numpy() for of in (data.objects.images, data.objects.masks))
        top, left = rng.integers(0, height - 32), rng.integers(0, width - 32)
        picture[top:top + 32, left:left + 32][mask] = 255 * image[mask]
    return picture

if not Path("model").is_dir():
    truth = dict(zip(data.presence.nonzero()[:, 0].tolist(), data.objects.masks))
    model = Supervised(base_width=8, depth=2, backgrounds=True)
    model.fit(data.weak(), steps=150, rounds=1, held_out=None, masks=truth, progress=False).save("model")
    Path("photos").mkdir()
    for i in range(40):
        height, width = np.random.default_rng(i).integers(80, 220, 2)
        Image.fromarray(photograph(i, height, width, digits=1 + i % 5)).save(f"photos/photo{i}.png")
    Path("photos/photo6.png").write_bytes(b"no picture")
model = load_method("model")
"""
OPEN = 'browser = MaskBrowser(model, "photos", folder="decided", tile=32)\nbrowser'
STATE = """
shown = MaskBrowser.shown if hasattr(MaskBrowser, "shown") else browser
state = {"settings": shown.view.settings, "order": shown._order.tolist(), "current": shown.view.current}
state |= {"names": shown.source.names, "size": shown.scores_["size"].tolist()}
state |= {"uncertainty": shown.scores_["uncertainty"].tolist(), "decided": shown.decisions_.decision.to_dict()}
Path("browser.tmp").write_text(json.dumps(state)); Path("browser.tmp").rename("browser.json")
"""
MANY = """
small = [photograph(i, 72, 96, digits=1) for i in range(100)]
many = {f"frame{i:05d}": np.roll(small[i % 100], i, 1) for i in range(10_000)}
MaskBrowser.shown = MaskBrowser(model, many, tile=32, overlap=0, batch_size=64)
MaskBrowser.shown
"""
HUGE = """
rng = np.random.default_rng(0)
side = int(Path("side").read_text())
huge = np.tile(grounds[1], (20, 20))[:side, :side]
for digit in rng.choice(len(data.objects), 3000 * side ** 2 // 10 ** 8):
    image, mask = (of[int(digit)][0].numpy() for of in (data.objects.images, data.objects.masks))
    top, left = rng.integers(0, side - 32, 2)
    huge[top:top + 32, left:left + 32][mask] = 255 * image[mask]
tifffile.imwrite("huge.tif", huge)
if hasattr(MaskBrowser, "shown"): MaskBrowser.shown.close()
MaskBrowser.shown = MaskBrowser(model, ["huge.tif"], tile=256, overlap=0)
MaskBrowser.shown
"""


@pytest.fixture(scope="module")
def page(lab, browser):
    page = open_notebook(lab, browser, "browser", [SETUP, OPEN, STATE, MANY, HUGE], (1366, 800))
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(f"{error}\n{error.stack}"))
    page.set_default_timeout(1000 * PATIENCE)
    run_cell(page, 0)
    run_cell(page, 1)
    page.locator(".bgcs-browser").wait_for()
    yield page
    shot(page, "browser_last")
    page.close()


def state(page):
    "What Python knows: a cell writes it to a file."
    path = page.folder / "browser.json"
    path.unlink(missing_ok=True)
    run_cell(page, 2)
    for _ in range(10 * PATIENCE):
        if path.is_file(): return json.loads(path.read_text())
        page.wait_for_timeout(100)
    raise AssertionError("the kernel did not answer")


@pytest.fixture
def view(page): return seen(page, 0)


def seen(page, number):
    "A view, in sight, with the focus on its picture."
    found = page.locator(".bgcs-browser").nth(number)
    found.scroll_into_view_if_needed()
    found.locator("canvas").nth(1).focus()
    return found


def until(view, **wanted):
    "Wait until the screen shows what is wanted: image, picture, mask."
    screen = view.locator(".screen").element_handle()
    holds = "([el, wanted]) => Object.entries(wanted).every(([name, value]) => el.dataset[name] === String(value))"
    view.page.wait_for_function(holds, arg=[screen, wanted])


def says(view, words):
    view.page.wait_for_function("([el, words]) => el.innerText.includes(words)", arg=[view.element_handle(), words])


def colours(view):
    "Pixels of the picture, and of what lies on it, `(h, w, 4)`."
    canvases = [view.locator("canvas").nth(k).evaluate("canvas => canvas.toDataURL('image/png')") for k in (0, 1)]
    return [np.asarray(Image.open(io.BytesIO(b64decode(url.partition(",")[2]))).convert("RGBA")) for url in canvases]


def current(view): return int(view.locator(".screen").get_attribute("data-image"))


def test_the_mask_lies_on_the_image(page, view):
    until(view, picture="sharp", mask="sharp")
    says(view, "presence")
    below, over = colours(view)
    ink = (over == (213, 94, 0, 255)).all(-1)
    assert ink.sum() > 50, "no outline is drawn"
    marked = over[..., 3] > 0
    inside = below[marked][:, :3].mean()
    assert inside > 140, f"digits are bright, and what is marked has a mean of {inside}"
    assert below[..., :3].std() > 20 and not page.errors
    shot(page, "browser")


def test_next_and_previous_by_keys(page, view):
    known = state(page)
    view = seen(page, 0)
    first = current(view)
    place = known["order"].index(first)
    for _ in range(3): page.keyboard.press("ArrowRight")
    until(view, image=known["order"][place + 3], picture="sharp", mask="sharp")
    page.keyboard.press("ArrowLeft")
    until(view, image=known["order"][place + 2])
    page.keyboard.press("End")
    until(view, image=known["order"][-1], picture="sharp")
    assert view.get_by_role("button", name="Next image").is_disabled()
    page.keyboard.press("Home")
    until(view, image=known["order"][0], picture="sharp")
    assert state(page)["current"] == known["order"][0]
    assert page.locator(".jp-Cell").count() == 5, "JupyterLab took a key for itself"


def test_sliders_answer_in_the_page(page, view):
    until(view, picture="sharp", mask="sharp")
    slider = view.get_by_role("slider", name="threshold")
    marked = lambda: int((colours(view)[1][..., 3] > 0).sum())
    before = marked()
    slider.fill("0.98")
    page.wait_for_timeout(300)
    fewer = marked()
    assert 0 < fewer < before
    view.get_by_role("slider", name="opacity").fill("1")
    slider.fill("0.52")
    page.wait_for_timeout(300)
    assert (colours(view)[1][..., 3] == 255).sum() == marked()
    seen(page, 0)
    for _ in range(2): page.keyboard.press("[")
    says(view, "0.50")
    known = state(page)["settings"]
    assert (known["threshold"], known["opacity"]) == (0.5, 1)
    view = seen(page, 0)
    view.get_by_role("slider", name="opacity").fill("0.35")
    for key, alpha in (("2", 255), ("4", 0)):
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert (colours(view)[1][150:200, 575:605, 3] == alpha).all()
    page.keyboard.press("1")
    page.wait_for_timeout(300)
    assert marked() == before and state(page)["settings"]["mode"] == "overlay"


def test_an_unreadable_image_is_named_and_stops_nothing(page, view):
    names = state(page)["names"]
    view = seen(page, 0)
    number = names.index("photo6.png")
    place = view.get_by_role("spinbutton", name="Place in the list")
    place.fill(str(state(page)["order"].index(number) + 1))
    view = seen(page, 0)
    place.fill(str(state(page)["order"].index(number) + 1))
    page.keyboard.press("Enter")
    until(view, image=number)
    says(view, "photo6.png is not an image, whatever its name says")
    shot(page, "browser_unreadable")
    seen(page, 0)
    page.keyboard.press("ArrowRight")
    until(view, picture="sharp", mask="sharp")


def test_sorted_by_uncertainty_and_size(page, view):
    for by in ("size of the object", "uncertainty"):
        view.get_by_label("Sort by").select_option(label=by)
        for _ in range(PATIENCE):
            known = state(page)
            values = pd.Series(known["size" if "size" in by else by])
            ordered = values[known["order"]].to_numpy()
            if values.notna().sum() == 39 and (np.diff(ordered[:-1]) <= 0).all(): break
            page.wait_for_timeout(1000)
        assert values.notna().sum() == 39 and known["order"][-1] == known["names"].index("photo6.png")
        assert (np.diff(ordered[:-1]) <= 0).all() and known["current"] == known["order"][0]
        view = seen(page, 0)
    until(view, image=known["order"][0], picture="sharp", mask="sharp")
    assert view.locator(".thumb").first.get_attribute("aria-label") == known["names"][known["order"][0]]


def test_decisions_by_keys_survive_the_kernel(page, view):
    order, names = (state(page)[name] for name in ("order", "names"))
    view = seen(page, 0)
    page.keyboard.press("Home")
    until(view, image=order[0])
    for key in "arca": page.keyboard.press(key)  # each goes on to the next
    until(view, image=order[4])
    says(view, "2 accepted, 1 rejected, 1 to correct")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")
    says(view, "1 accepted, 1 rejected, 1 to correct")
    expected = dict(zip([names[i] for i in order[:3]], ["accepted", "rejected", "correct"]))
    decided = lambda: {name: value for name, value in state(page)["decided"].items() if value != "undecided"}
    assert decided() == expected
    view = seen(page, 0)
    until(view, picture="sharp", mask="sharp")
    page.keyboard.press("Home")
    until(view, picture="sharp", mask="sharp")
    page.wait_for_timeout(500)
    shot(page, "browser_decided")
    if os.environ.get("BGCS_REFRESH_IMAGES"): view.screenshot(path=ROOT / "nbs" / "images" / "browser.png")
    page.evaluate("void jupyterapp.commands.execute('kernelmenu:restart')")
    page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    idle(page)
    says(seen(page, 0), "No kernel stands behind this view")
    run_cell(page, 0)
    run_cell(page, 1)
    view = page.locator(".bgcs-browser").first
    says(view, "1 accepted, 1 rejected, 1 to correct")
    assert decided() == expected


def test_zoom_and_pan(page, view):
    until(view, picture="sharp", mask="sharp")
    whole = colours(view)[0]
    box = view.locator("canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(5): page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    zoomed = colours(view)[0]
    assert (whole != zoomed).any() and (zoomed[:, :40, :3] != 32).any(), "the image does not fill the screen"
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    panned = colours(view)[0]
    assert (panned[50:300, 400:900] == zoomed[50:300, 340:840]).mean() > 0.98, "it did not go along with the hand"
    seen(page, 0)
    page.keyboard.press("0")
    page.wait_for_timeout(300)
    assert (colours(view)[0] == whole).all()


def test_a_second_view_and_the_dark_theme(page, view):
    change = "name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
    page.evaluate(change, "JupyterLab Dark")
    page.wait_for_timeout(1000)
    shot(page, "browser_dark")
    page.evaluate(change, "JupyterLab Light")  # which tests of other files go on with
    page.wait_for_function("document.body.dataset.jpThemeName === 'JupyterLab Light'")


# How long a page waits, by its own clock: until the screen shows what a key asks for.
MEASURE = """
async ([el, keys, wanted]) => {
  const screen = el.querySelector(".screen");
  const canvas = el.querySelectorAll("canvas")[1];
  const times = [];
  for (const key of keys) {
    const image = screen.dataset.image;
    const start = performance.now();
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    do await frame();
    while ((screen.dataset.image === image || screen.dataset[wanted] === "none") && performance.now() - start < 20000);
    times.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 250));
  }
  return times;
}
"""
SLIDE = """
async ([el, name]) => {
  const slider = el.querySelector(`input[aria-label="${name}"]`);
  const over = el.querySelectorAll("canvas")[1];
  const times = [];
  for (const value of [0.2, 0.8, 0.4, 0.6, 0.5]) {
    const start = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    over.getContext("2d").getImageData(0, 0, 1, 1);
    times.push(performance.now() - start);
  }
  return times;
}
"""


# The same for moves within an image: until tiles are there, or until they are sharp.
MOVE = """
async ([el, keys, wanted, sharp]) => {
  const screen = el.querySelector(".screen");
  const canvas = el.querySelectorAll("canvas")[1];
  const times = [];
  for (const name of keys) {
    const start = performance.now();
    const [key, shiftKey] = [name.replace("Shift+", ""), name.startsWith("Shift")];
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    do await frame();
    while ((sharp ? screen.dataset[wanted] !== "sharp" : screen.dataset[wanted] === "none") && performance.now() - start < 20000);
    times.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 250));
  }
  return times;
}
"""


def tell(what, times):
    shown = ", ".join(f"{time:.0f}" for time in times)
    print(f"\n{what}: median {np.median(times):.0f} ms, longest {max(times):.0f} ms ({shown})")


def test_ten_thousand_images(page):
    run_cell(page, 3)
    page.locator(".bgcs-browser").nth(1).wait_for()
    view = seen(page, 1)
    until(view, picture="sharp", mask="sharp")
    says(view, "of 10,000")
    assert view.locator(".thumb").count() < 40
    handle = view.element_handle()
    print(f"\n{slowness(page):.1f} times as slow as a quiet machine")
    tell("next image", page.evaluate(MEASURE, [handle, ["ArrowRight"] * 12, "picture"]))
    tell("next image, with its mask", page.evaluate(MEASURE, [handle, ["ArrowRight"] * 12, "mask"]))
    tell("ten further", page.evaluate(MEASURE, [handle, ["PageDown"] * 12, "picture"]))
    tell("threshold", page.evaluate(SLIDE, [handle, "threshold"]))
    assert int(view.get_by_role("spinbutton", name="Place in the list").input_value()) == 145
    view.get_by_role("slider", name="Place in the list, to drag").fill("7777")
    until(view, image=7776, picture="sharp", mask="sharp")
    thumb = view.get_by_role("option", name="frame07776")
    thumb.locator("img").wait_for()
    assert thumb.get_attribute("aria-selected") == "true" and thumb.get_attribute("aria-setsize") == "10000"
    seen(page, 1)
    page.keyboard.press("a")
    says(view, "1 accepted")
    view.get_by_label("Sort by").select_option(label="uncertainty")
    says(view, "Predicting all images")
    shot(page, "browser_many")
    tell("next image, while all are predicted", page.evaluate(MEASURE, [handle, ["ArrowRight"] * 12, "picture"]))
    tell("its mask, while all are predicted", page.evaluate(MEASURE, [handle, ["ArrowRight"] * 12, "mask"]))
    view.get_by_role("button", name="Stop").click()
    page.wait_for_function("el => el.querySelector('.busy').hidden", arg=handle)
    known = state(page)
    values = np.array(known["uncertainty"], float)[known["order"]]
    done = np.isfinite(values)
    assert 24 < done.sum() < 10_000 and done[:done.sum()].all() and (np.diff(values[done]) <= 0).all()
    assert known["decided"]["frame07776"] == "accepted" and not page.errors


@pytest.mark.parametrize("side", [4_000, pytest.param(10_000, marks=pytest.mark.slow)])  # a hundred megapixels
def test_an_image_of_many_megapixels(page, side):
    (page.folder / "side").write_text(str(side))
    run_cell(page, 4)
    page.get_by_text("Predicting huge.tif").wait_for()
    view = seen(page, 1)
    until(view, picture="sharp")
    says(view, f"{side:,} × {side:,}")
    handle = view.element_handle()
    print(f"\n{slowness(page):.1f} times as slow as a quiet machine")
    moves = ["+", "+", "+", "+", "+", "+", "+", "+", "-", "-", "-"]
    tell("zoom, while it is predicted", page.evaluate(MOVE, [handle, moves, "picture", False]))
    shot(page, "browser_huge_busy")
    until(view, mask="sharp")
    says(view, "presence")
    tell("a slider", page.evaluate(SLIDE, [handle, "threshold"]))
    tell("pan, something there", page.evaluate(MOVE, [handle, ["Shift+ArrowRight"] * 20, "mask", False]))
    tell("pan, sharp", page.evaluate(MOVE, [handle, ["Shift+ArrowDown"] * 20, "mask", True]))
    seen(page, 1)
    page.keyboard.press("9")
    until(view, picture="sharp", mask="sharp")
    below, over = colours(view)
    marked = over[..., 3] > 0
    assert 100 < marked.sum() < 0.3 * marked.size and below[marked][:, :3].mean() > below[~marked][:, :3].mean() + 30
    shot(page, "browser_huge")
    page.keyboard.press("0")
    until(view, picture="sharp", mask="sharp")
    shot(page, "browser_huge_whole")
    assert not page.errors
