"""The quickstart in a real JupyterLab, in a real Chromium: the three views must show and answer."""
import nbformat
import pytest
from conftest import QUICKSTART, TINY
from lab import idle, needs_browser, open_notebook, run_all, shot

from bgcs.runs.notebooks import _with_parameters

pytestmark = needs_browser
PATIENCE = 900  # seconds, which only a hang takes


@pytest.fixture(scope="module")
def quickstart(lab, browser):
    "The quickstart on tiny settings, opened and run from top to bottom; gives the page."
    notebook = _with_parameters(nbformat.read(QUICKSTART, as_version=4), TINY | {"run_folder": "run"})
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    page = open_notebook(lab, browser, "quickstart", notebook)
    page.set_default_timeout(1000 * PATIENCE)
    run_all(page)
    wait_for_file(page.folder / "run" / "model" / "segmenter.safetensors", page)
    idle(page, PATIENCE)
    yield page


STDERR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"


def wait_for_file(path, page):
    for _ in range(PATIENCE):
        if path.exists(): return
        if page.locator(f"{STDERR} >> text=Error").count(): break
        page.wait_for_timeout(1000)
    shot(page, "failed")
    raise AssertionError(f"{path} did not appear; the page shows:\n{page.locator('.jp-Notebook').inner_text()[-2000:]}")


def view(page, name):
    "A view, scrolled to."
    found = page.locator(f".bgcs-{name}").first
    for _ in range(5 * PATIENCE):  # JupyterLab draws only the cells near the visible ones
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
    page = quickstart
    assert (page.folder / "run" / "metrics.json").is_file()
    assert "Traceback" not in page.locator(".jp-Notebook").inner_text()


def test_clusters_show_and_a_lasso_shows_their_images(quickstart):
    page = quickstart
    to_top(page)
    explorer = view(page, "explorer")
    box = explorer.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for x, y in ((0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.02)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
    page.mouse.up()
    page.wait_for_function("document.querySelector('.bgcs-explorer').innerText.includes('80 selected')")
    explorer.locator(".thumb img").nth(29).wait_for()
    shot(page, "clusters")


def test_composites_follow_the_target_cluster(quickstart):
    page = quickstart
    to_top(page)
    viewer = view(page, "composite-viewer")
    viewer.get_by_label("before").select_option(index=2)
    viewer.get_by_text("backgrounds of cluster 2").wait_for()
    shot(page, "composites")
    assert viewer.locator("img").nth(2).evaluate("e => e.naturalWidth") > 300


def test_training_shows_masks_and_turns_back(quickstart):
    page = quickstart
    to_top(page)
    monitor = view(page, "training-monitor")
    assert "24 of 24 steps" in monitor.inner_text()
    masks = monitor.locator("img").first
    last = masks.get_attribute("src")
    monitor.get_by_role("slider").focus()
    for _ in range(11): page.keyboard.press("ArrowLeft")
    monitor.get_by_text("round 1,").wait_for()
    page.wait_for_function("old => document.querySelector('.bgcs-training-monitor img').src !== old", arg=last)
    shot(page, "training")


OWN_IMAGES = """import numpy as np
from pathlib import Path
from PIL import Image
from bgcs.data.datasets import digits_on_textures
from bgcs.data.describe import describe
from bgcs.data.images import from_folders
from bgcs.data.splits import split
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
    page = open_notebook(lab, browser, "own", OWN_IMAGES.split("\n---\n"))
    page.set_default_timeout(1000 * PATIENCE)
    run_all(page)
    page.get_by_text("Bring milk").first.wait_for()
    page.get_by_text("is not an image, whatever its name says").first.wait_for()
    yield page
    shot(page, "own_images")


def test_own_images(own_images):
    text = own_images.locator(".jp-Notebook").inner_text()
    assert "ImageSet(1500 object + 1500 background-only images of 32×32, 1 channel; read when used)" in text
    assert "1500 object images, 1500 background-only images of 32×32, 1 channel; normalisation unit" in text
    assert "duplicates across training, validation and test" in text
    assert own_images.locator(".jp-OutputArea-output img").count() >= 1
    assert "1 of 3001 images cannot be used" in text and "on_bad='skip'" in text
