"""The still pictures that views leave in a notebook: executed, as HTML, stripped, and in a real JupyterLab another day."""
import base64
import io
import json
import re
import shutil
import urllib.request
import warnings

import nbformat
import numpy as np
import pytest
import strip_widgets
import torch
from lab import idle, needs_browser, open_notebook, run_all, shot
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbdev.clean import clean_nb
from PIL import Image

from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import from_arrays
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.widgets.composites import CompositeViewer
from bgcs.widgets.monitor import Frame, TrainingMonitor
from bgcs.widgets.shared import picture_png

PATIENCE = 600  # seconds, which only a hang takes
VIEW = strip_widgets.VIEW
MOST = 150_000  # bytes of a picture
SETUP = """from pathlib import Path
import ipywidgets
from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches
from bgcs.widgets.composites import CompositeViewer
from bgcs.widgets.explorer import ClusterExplorer
from bgcs.widgets.monitor import TrainingMonitor
data = digits_on_textures("train", n=150)
clusterer = BackgroundClusterer(n_clusters=3, epochs=2, progress=False).fit(data)
quick = dict(steps=30, rounds=3, batches=Batches(per_cluster=2, n_real=8), held_out=None, progress=False)
def small(): return Segmenter(base_width=4, depth=2)
def last(monitor): Path(monitor.folder / "last.png").write_bytes(monitor.frames[-1].picture)"""
CELLS = {
    "setup": SETUP,
    "explorer": "explorer = ClusterExplorer(clusterer, data)\nexplorer",
    "waited": "_ = explorer.plot()",
    "monitor": """monitor = TrainingMonitor(data.objects[:5], folder="watched")
segmenter = small().fit(data, data.background_class, callbacks=[monitor], **quick)""",
    "last": "last(monitor)",
    "behind": """behind = TrainingMonitor(data.objects[:5], folder="behind")
behind.fit(small(), data, data.background_class, **quick)""",
    "over": "_ = behind.wait()\nlast(behind)",
    "viewer": "viewer = CompositeViewer(segmenter, data, clusterer)\nviewer",
    "test": "viewer.show(mode='test')",
    "empty": "TrainingMonitor()",
    "slider": "ipywidgets.IntSlider()",
}
NUMBER = {name: i for i, name in enumerate(CELLS)}
SHOWN = ("explorer", "monitor", "behind", "viewer", "test")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "The notebook as nbconvert leaves it, and the folder in which it ran."
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("executed")
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=PATIENCE, resources=resources, store_widget_state=False).execute()
    return notebook, folder


def first(notebook, name): return notebook.cells[NUMBER[name]].outputs[0].data


def pixels(file):
    "A picture on white."
    image = Image.open(io.BytesIO(file)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]


@pytest.mark.parametrize("name", SHOWN)
def test_each_view_has_a_picture_beside_it(executed, name):
    data = first(executed[0], name)
    assert set(data) == {VIEW, "image/png", "text/plain"}
    file = base64.b64decode(data["image/png"])
    assert 3000 < len(file) < MOST and pixels(file).std() > 5
    assert "object at 0x" not in data["text/plain"]


def test_what_there_is_nothing_to_see_of_is_said_in_words(executed):
    data = first(executed[0], "empty")
    assert set(data) == {VIEW, "text/plain"} and data["text/plain"].startswith("TrainingMonitor: No training yet.")


def test_the_explorer_is_stored_as_it_was_when_umap_was_ready(executed):
    assert first(executed[0], "explorer")["text/plain"].endswith("in 3 clusters, laid out by UMAP.")


@pytest.mark.parametrize("name, folder", [("monitor", "watched"), ("behind", "behind")])
def test_the_monitor_is_stored_with_its_last_masks(executed, name, folder):
    notebook, place = executed
    data, masks = first(notebook, name), pixels((place / folder / "last.png").read_bytes())
    still, (h, w, _) = pixels(base64.b64decode(data["image/png"])), masks.shape
    assert (still[-h - 16:-16, :w] == masks).all()
    assert "Training, finished: 30 of 30 steps" in data["text/plain"] and "The masks: not judged" in data["text/plain"]


def test_html_shows_the_pictures_once(executed):
    page, _ = HTMLExporter().from_notebook_node(executed[0])
    pictures = ["".join(first(executed[0], name)["image/png"].split()) for name in SHOWN]
    page_pictures = ["".join(found.split()) for found in re.findall(r'src="data:image/png;base64,([^"]*)"', page)]
    assert sorted(picture for picture in page_pictures if picture in pictures) == sorted(pictures)
    assert "object at 0x" not in page and f'type="{VIEW}"' not in page


def test_pictures_stay_when_widgets_are_stripped(executed, tmp_path):
    notebook = nbformat.from_dict(executed[0])
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    strip_widgets.strip(tmp_path / "a.ipynb")
    stripped = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    clean_nb(stripped)
    nbformat.validate(stripped)
    for name in SHOWN:
        output, = stripped.cells[NUMBER[name]].outputs
        assert output.data == {kind: value for kind, value in first(executed[0], name).items() if kind != VIEW}
    assert stripped.cells[NUMBER["slider"]].outputs == [] and "widgets" not in stripped.metadata
    text = (tmp_path / "a.ipynb").read_text()
    assert VIEW not in text and "showStill" not in text
    assert len(text) < 600_000
    strip_widgets.strip(tmp_path / "a.ipynb")
    assert (tmp_path / "a.ipynb").read_text() == text


def stored(view): return view._bundles()[0][0].get("image/png", b"")


@pytest.mark.parametrize("side, channels", [(8, 1), (32, 7), (300, 3)])
def test_pictures_of_images_of_any_kind_are_small(side, channels):
    noise = np.random.default_rng(0).random((12, side, side, channels), dtype=np.float32)
    data = from_arrays(noise[:6], noise[6:], channel_axis=-1)
    viewer = CompositeViewer(torch.rand(6, 1, side, side).round(), data, torch.arange(12) % 2)
    for mode in ("one", "grid", "test"): assert 0 < len(stored(viewer.show(mode=mode))) < MOST


def test_a_monitor_of_many_images_is_small():
    monitor = TrainingMonitor()
    monitor.history.frames = [Frame("round", 1, 10, picture_png(list(torch.rand(3, 60, 3, 64, 64)), zoom=1))]
    monitor._tell(frames=True)
    assert 0 < len(stored(monitor)) < MOST


def test_without_a_notebook_a_view_is_a_line_of_words(capsys):
    data = digits_on_textures("train", n=60)
    monitor = TrainingMonitor(data.objects[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Segmenter(base_width=4, depth=1).fit(data, data.background_class, steps=2, rounds=1, held_out=None,
                                             batches=Batches(per_cluster=2, n_real=8), callbacks=[monitor], progress=False)
    assert capsys.readouterr().out == "" and not monitor._outputs
    monitor._ipython_display_()
    assert capsys.readouterr().out.startswith("TrainingMonitor: Training, finished: 2 of 2 steps")


CLASSES = {"explorer": "explorer", "monitor": "training-monitor", "behind": "training-monitor", "viewer": "composite-viewer"}
IMAGES = "e => [...e.querySelectorAll('.jp-OutputArea img')].filter(i => i.offsetParent && i.naturalWidth > 300).length"


TRACKER = "@jupyterlab/notebook-extension:tracker"


def set_tracker(page, **settings):
    "How JupyterLab shows notebooks: by its own custom it leaves out what lies outside the window."
    page.evaluate("([name, text]) => jupyterapp.serviceManager.settings.save(name, text)", [TRACKER, json.dumps(settings)])
    page.reload()
    page.wait_for_selector(".jp-Notebook")
    idle(page)


def views_are_done(page):
    page.locator(".bgcs-composite-viewer").wait_for()
    page.get_by_text("Training, finished").nth(1).wait_for()
    page.locator(".bgcs-explorer").get_by_text("laid out by UMAP").wait_for()
    idle(page)


@pytest.fixture(scope="module")
def page(lab, browser):
    "The notebook, run in JupyterLab, on a page that holds all its cells."
    page = open_notebook(lab, browser, "stills", [CELLS[name] for name in ("setup", *CLASSES)], (1200, 3600))
    set_tracker(page, windowingMode="none")
    page.set_default_timeout(1000 * PATIENCE)
    run_all(page)
    try: views_are_done(page)
    except Exception as error:
        shot(page, "stills_stuck")
        raise AssertionError(f"the views did not end; the page says: {page.inner_text('.jp-Notebook')[-6000:]}") from error
    page.wait_for_timeout(1000)
    yield page
    set_tracker(page)
    page.close()


def cell(page, name): return page.locator(".jp-CodeCell").nth(1 + list(CLASSES).index(name))


def reopened(page, lab, name):
    address, token, _ = lab
    page.goto(f"{address}/doc/tree/stills/{name}.ipynb?token={token}&reset")
    page.wait_for_selector(".jp-Notebook")
    page.wait_for_function("document.querySelectorAll('.jp-OutputArea img').length >= 4")


@needs_browser
def test_jupyterlab_shows_the_live_view_alone(page):
    shot(page, "stills_live")
    for name, kind in CLASSES.items():
        view = cell(page, name).locator(f".bgcs-{kind}")
        assert view.count() == 1 and view.is_visible()
        assert not cell(page, name).locator(".bgcs-still").count()
        assert [e.is_visible() for e in cell(page, name).locator(".jp-OutputArea-child").all()] == [True, False]


@needs_browser
def test_another_day_the_still_picture_stands_there(page, lab):
    address, token, _ = lab
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    for _ in range(PATIENCE):
        if (page.folder / "stills.ipynb").read_text().count('"image/png"') >= 4: break
        page.wait_for_timeout(1000)
    sessions = json.load(urllib.request.urlopen(f"{address}/api/sessions?token={token}"))
    for session in sessions:
        if session["path"] != "stills/stills.ipynb": continue
        ask = urllib.request.Request(f"{address}/api/sessions/{session['id']}?token={token}", method="DELETE")
        urllib.request.urlopen(ask)
    shutil.copy(page.folder / "stills.ipynb", page.folder / "sent.ipynb")
    path = page.folder / "sent.ipynb"
    path.write_text(path.read_text().replace("def small()", "def tiny()"))  # a stranger's, which JupyterLab doesn't trust
    for name in ("stills", "sent"):
        reopened(page, lab, name)
        page.wait_for_function("!document.querySelector('.jp-Notebook').innerText.includes('Loading widget')")
        shot(page, f"stills_{name}")
        for part in CLASSES: assert cell(page, part).evaluate(IMAGES) == 1, (name, part)
        text = page.locator(".jp-Notebook").inner_text()
        assert "Error displaying widget" not in text and "object at 0x" not in text
