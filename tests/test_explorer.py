"""The explorer without a browser: what the page sends, UMAP, object images, what is said; bad input."""
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from stripes import KINDS, agrees, fitted, images

from bgcs.backgrounds.cluster import BackgroundClusterer, Edits
from bgcs.data.files import read_image
from bgcs.data.images import from_arrays
from bgcs.data.stores import clear_cache
from bgcs.widgets.explorer import ClusterExplorer


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BGCS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(): return images()


@pytest.fixture
def explore():
    "Opens explorers, and ends what they do in the background."
    opened = []
    yield lambda *args, **settings: opened.append(ClusterExplorer(*args, **settings)) or opened[-1]
    for explorer in opened: explorer.stop()


@pytest.fixture
def explorer(data, explore): return explore(fitted(data), data)


def says(explorer): return explorer.view.panel["said"]


def from_page(explorer, action, **content):
    "What the view's button sends, and what comes back."
    answers = []
    explorer.view.send = lambda answer, buffers=None: answers.append((answer, buffers))
    explorer.view._handle_custom_msg({"do": action, "id": 7, **content}, [])
    (answer, buffers), = answers
    assert answer["done"] == 7
    return answer, buffers


def selected_on_page(explorer, points):
    buffer = memoryview(np.asarray(points, np.uint32).tobytes())
    update = {"method": "update", "state": {}, "buffer_paths": [["selected"]]}
    explorer.view._handle_msg({"content": {"data": update}, "buffers": [buffer]})


# ---- object images -------------------------------------------------------------------------------

@pytest.mark.parametrize("assign", ["patch", "nearest"])
@pytest.mark.parametrize("min_confidence", [0, 0.7])
def test_object_images_have_the_clusters_that_training_gives_them(assign, min_confidence, explore):
    data = images(object_source=np.arange(60) % 7, background_source=np.arange(90) % 8)
    explorer = explore(fitted(data, assign=assign, min_confidence=min_confidence), data)
    explorer.show_objects()
    explorer.wait()
    assert len(explorer.points) == 150 and len(explorer.xy) == 150
    agrees(explorer)
    explorer.merge(0, 1); explorer.split(2); explorer.select([0, 1, 70]); explorer.move(3)
    agrees(explorer)
    assert (explorer.clusters[np.isin(explorer.points.numbers, [0, 1, 70])][:1] == 3).all()
    explorer.show_objects(False)
    assert explorer.selection.tolist() == [70] and len(explorer.view.codes) == 2 * 90


def test_splitting_off_needs_background_only_images(explorer):
    explorer.show_objects()
    explorer.wait()
    explorer.select(explorer.points.numbers[(explorer.clusters == 0) & explorer.points.presence])
    with pytest.raises(ValueError, match="no background-only image is selected"): explorer.split_off()


def test_the_truth_is_not_looked_at(explore):
    data = images()
    data = replace(data, background_class=torch.arange(150) % 3, masks=torch.ones(150, 1, 16, 16, dtype=torch.bool))
    explorer = explore(fitted(data, assign="oracle"), data)
    explorer.show_objects()
    explorer.wait()
    assert explorer.data.background_class is None and explorer.data.masks is None and len(explorer.points) == 150


# ---- what the page sends -------------------------------------------------------------------------

def test_a_lasso_on_the_page(explorer):
    selected_on_page(explorer, [0, 4, 89])
    assert explorer.selection.tolist() == [60, 64, 149] and says(explorer).startswith("3 selected: ")
    answer, pictures = from_page(explorer, "images", points=[0, 89, 5000])
    assert answer["points"] == [0, 89] and "background 0 · confidence" in answer["texts"][0]
    assert [p[:4] for p in pictures] == [b"\x89PNG"] * 2
    explorer.select([100])
    assert np.frombuffer(explorer.view.selected, np.uint32).tolist() == [40] and explorer.view.page == 0


def test_buttons_on_the_page(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from_page(explorer, "color_by", column="confidence")
    assert "colours" in explorer.view.legend
    from_page(explorer, "color_by", column="cluster")
    selected_on_page(explorer, range(90))
    from_page(explorer, "merge")
    assert explorer.edits.clusters == [0] and explorer.view.panel["undo"] == "merge 0, 1, 2, 3"
    assert says(explorer).startswith("Merged cluster 0 and cluster 1")
    from_page(explorer, "undo")
    assert explorer.view.panel["undo"] == "" and explorer.view.panel["redo"] == "merge 0, 1, 2, 3"
    from_page(explorer, "redo"); from_page(explorer, "undo")
    selected_on_page(explorer, np.flatnonzero(explorer.clusters == 2))
    from_page(explorer, "rename", name="grass")
    from_page(explorer, "split", n=2)
    from_page(explorer, "move", to=-1)
    from_page(explorer, "save", to="edits.json")
    from_page(explorer, "export", to="some.csv")
    saved = Edits.from_json((tmp_path / "edits.json").read_text())
    assert [step["edit"] for step in saved.steps] == ["rename", "split", "move"]
    assert len(pd.read_csv("some.csv")) == explorer.chosen.sum()
    assert [entry["label"] for entry in explorer.view.legend["entries"]][-1] == "no cluster"


def test_errors_reach_the_page(explorer):
    from_page(explorer, "merge")
    assert explorer.view.panel["wrong"] and "select images of at least two" in says(explorer)
    from_page(explorer, "split", n="many")
    assert explorer.view.panel["wrong"]
    for action in ("__init__", "wait", "nonsense"): from_page(explorer, action)  # none of the page's business
    selected_on_page(explorer, [1])
    assert not explorer.view.panel["wrong"]


def test_the_legend_hides(explorer):
    explorer.view.hidden = [1]
    explorer.merge(2, 3)  # cluster 1 stays hidden, whatever its place in the legend
    assert explorer.view.hidden == [1]
    explorer.lasso([[-1e3, -1e3], [1e3, -1e3], [1e3, 1e3], [-1e3, 1e3]])
    assert 1 not in explorer.touched and explorer.touched == [0, 2]
    explorer.show()
    assert explorer.view.hidden == []
    explorer.hide(0, 2)
    assert explorer.view.hidden == [0, 2]
    with pytest.raises(ValueError, match="no entry 7"): explorer.hide(7)
    explorer.color_by("kind")
    explorer.hide("background-only")
    with pytest.raises(ValueError, match="no entry 'sea'"): explorer.hide("sea")


def test_pages_and_camera(explorer):
    explorer.select(explorer.points.numbers)
    explorer.turn_page(3)
    assert explorer.view.page == 2
    for page in (0, 4):
        with pytest.raises(ValueError, match="no page"): explorer.turn_page(page)
    explorer.wait().zoom_to([70, 80])
    x, y, half = explorer.view.camera
    at = explorer.xy[[10, 20]]
    assert (np.abs(at - [x, y]) <= [1.5 * half, half]).all()
    explorer.zoom_to()
    assert explorer.view.camera == []
    assert explorer.picture(70).size == (16, 16)


# ---- planes --------------------------------------------------------------------------------------

def test_umap_is_seeded_kept_and_can_be_stopped(data, tmp_path, monkeypatch, explore):
    monkeypatch.setenv("BGCS_CACHE", str(tmp_path))
    explorer = explore(fitted(data), data)
    assert "principal components" in says(explorer) and explorer.view.busy
    explorer.stop()
    explorer.wait()
    assert says(explorer).startswith("Laying out with UMAP: stopped.") and not explorer.view.busy
    assert not list(tmp_path.glob("plane-*"))
    first = explore(fitted(data), data).wait()
    assert "laid out by UMAP" in says(first)
    kept, = tmp_path.glob("plane-*.npy")
    kept.unlink()
    assert np.array_equal(explore(fitted(data), data).wait().xy, first.xy)
    np.save(kept, first.xy + 1)
    assert np.array_equal(explore(fitted(data), data).wait().xy, first.xy + 1)
    kinds = np.arange(90) % KINDS
    middles = np.stack([first.xy[kinds == k].mean(0) for k in range(KINDS)])
    assert (np.linalg.norm(first.xy[:, None] - middles, axis=2).argmin(1) == kinds).mean() > 0.9
    assert clear_cache() > 0 and not kept.exists()


def test_a_failure_of_umap_is_shown(data, explore):
    explorer = explore(fitted(data), data).wait()
    explorer._plane.components = np.full_like(explorer._plane.components, np.nan)
    explorer._work.start("Laying out with UMAP", explorer._lay_out)
    with pytest.raises(RuntimeError, match="NaN"): explorer.wait()
    assert explorer.view.panel["wrong"] and "NaN" in says(explorer) and np.isfinite(explorer.xy).all()


def test_without_umap_principal_components_stay(data, monkeypatch, explore):
    def absent(package): raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    explorer = explore(fitted(data), data)
    missing = "UMAP is not installed: pip install 'bgcs[notebook]'"
    with pytest.raises(RuntimeError) as caught: explorer.wait()
    assert str(caught.value) == says(explorer) == missing and explorer.view.panel["wrong"] and not explorer.view.busy
    explorer.merge(0, 1)
    assert "laid out by principal components" in says(explorer)


def cpu():
    "Seconds of work of this process and those that it started, which do not depend on what else the machine does."
    import resource  # not on Windows

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def slowness():
    "How many times as long as on a quiet machine of 2 cores some work takes here now, in seconds of work; at least 1."
    times = []
    for _ in range(5):
        start = time.process_time()
        np.sort(np.random.default_rng(0).random(2_000_000))
        times.append(time.process_time() - start)
    return max(1, float(np.median(times)) / QUIET)


QUIET = 0.125  # seconds that this took there


@pytest.mark.slow
@pytest.mark.posix
def test_10_000_points_take_15_seconds_of_work(tmp_path, monkeypatch, explore):
    monkeypatch.setenv("BGCS_CACHE", str(tmp_path))
    many = images(5, 10_000)
    clusterer = fitted(many[:2000])
    start, work = time.monotonic(), cpu()
    explorer = explore(clusterer, many, progress=False)
    shown = time.monotonic() - start
    explorer.wait()
    total, worked = time.monotonic() - start, cpu() - work
    print(f"\n10,000 points: shown after {shown:.1f} s, UMAP after {total:.1f} s, {worked:.1f} s of work")
    assert worked < 15 * slowness()  # a machine that has nothing else to do takes no longer than that


@pytest.mark.posix
@pytest.mark.parametrize("seconds", [None, pytest.param(10, marks=pytest.mark.slow)])  # of work, with nothing beside it
def test_500_000_points_are_thinned_with_a_word(explore, seconds):
    rng = np.random.default_rng(0)
    many = from_arrays(rng.random((10, 8, 8), dtype=np.float32), rng.random((500_000, 8, 8), dtype=np.float32))
    clusterer = fitted(many[:1000])
    work = cpu()
    explorer = explore(clusterer, many, progress=False)
    explorer.stop()
    explorer.select_cluster(0)
    explorer.move(1)
    explorer.clear()
    assert seconds is None or cpu() - work < seconds * slowness()
    assert len(explorer.points) == 50_000 and "of 500,000, 50,000 drawn at random are shown" in says(explorer)
    assert explorer.points.names[0] == f"background {explorer.points.numbers[0] - 10}"
    with pytest.raises(ValueError, match="50,000 images of a set of 500,010"): explorer.select(np.arange(10, 500_010))


# ---- bad input -----------------------------------------------------------------------------------

@pytest.mark.parametrize("channels, word", [
    (1, None),
    (2, "of 2 channels, the first is shown"),
    (3, None),
    (7, "of 7 channels, the first three are shown"),
])
def test_channels(channels, word, tmp_path, explore):
    data = images(channels=channels)
    explorer = explore(fitted(data), data)
    said = says(explorer)
    assert word in said if word else said.endswith((" components.", " UMAP."))  # the plane before UMAP is there, and after
    assert explorer.picture(60).mode == ("RGB" if channels >= 3 else "L")
    explorer.select([60, 61])
    file = sorted(explorer.export(tmp_path / "some").iterdir())[0]
    assert file.suffix == (".png" if channels in (1, 3) else ".tif")
    stored = read_image(file, page="channels" if channels > 3 else None)
    if file.suffix == ".png": stored = stored / 255
    assert np.allclose(stored, data.images[60].numpy(), atol=1 / 255)


def test_floats_outside_0_and_1(data, explore):
    wild = replace(data, images=8 * data.images - 3)
    message = r"have values from -3 to .*expected \[0, 1\], see bgcs.data.intensity"
    with pytest.raises(ValueError, match=message): explore(fitted(data), wild)


def test_one_background(data, explore):
    few = data[torch.tensor([0, 1, 75])]
    explorer = explore(fitted(data), few).wait()
    assert len(explorer.points) == 1 and says(explorer).startswith("1 background-only image in")
    explorer.show_objects()
    explorer.wait()
    assert explorer.xy.shape == (3, 2) and np.isfinite(explorer.xy).all()
    explorer.select([2]); explorer.zoom_to([2]); explorer.plot()


def test_all_images_alike(data, explore):
    alike = replace(data, images=data.images[70:71].expand(150, -1, -1, -1).clone())
    explorer = explore(fitted(data), alike).wait()
    assert np.isfinite(explorer.xy).all()


def test_what_cannot_be_shown(data, explore):
    clusterer = fitted(data)
    none = "no background-only image.*pass the set that the clusterer was fitted on"
    with pytest.raises(ValueError, match=none): explore(clusterer, data.objects)
    with pytest.raises(NotFittedError, match="call fit first"): explore(BackgroundClusterer(3), data)
    with pytest.raises(TypeError, match="a ImageSet; expected a fitted BackgroundClusterer"): explore(data, clusterer)
    with pytest.raises(ValueError, match="channels × height × width"): explore(clusterer, images(size=12))
    with pytest.raises(ValueError, match="most=0; expected a whole number of points"): explore(clusterer, data, most=0)
    backgrounds = explore(clusterer, data.backgrounds)
    with pytest.raises(ValueError, match="no object images to show"): backgrounds.show_objects()


def test_columns(data, explore):
    short = {"depth": [1, 2, 3]}
    with pytest.raises(ValueError, match="3 rows for 150 images"): explore(fitted(data), data, columns=short)
    taken = pd.DataFrame({"confidence": np.zeros(150)})
    with pytest.raises(ValueError, match="'confidence'.*rename"): explore(fitted(data), data, columns=taken)
    columns = {"depth": np.r_[np.nan, np.arange(149.0)], "site": [f"site {i % 60}" for i in range(150)]}
    explorer = explore(fitted(data), data, columns=columns)
    explorer.color_by("depth")
    assert explorer.view.legend["high"] == "148"
    explorer.color_by("site")
    assert explorer.view.legend["entries"][-1]["label"] == "13 others"
    known = "did you mean 'depth'.*'cluster', 'confidence', 'kind', 'depth', 'site'"
    with pytest.raises(ValueError, match=known): explorer.color_by("deep")


def test_saved_edits_hold_wherever_the_clusterer_is_loaded(explorer, tmp_path, data, explore):
    explorer.merge(1, 3)
    explorer.select([60, 61]); explorer.move(2)
    again = BackgroundClusterer.load(explorer.save(tmp_path / "clusterer"))
    assert torch.equal(again.predict(data), explorer.clusterer.predict(data)) and again.edits_ == explorer.edits
    fresh = explore(fitted(data), data)
    fresh.edits = Edits.from_json(explorer.save(tmp_path / "edits.json").read_text())
    assert (fresh.clusters == explorer.clusters).all()


def test_closing_python_does_not_wait_for_umap(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import numpy as np
from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.images import from_arrays
from bgcs.widgets.explorer import ClusterExplorer
rng = np.random.default_rng(0)
data = from_arrays(rng.random((5, 16, 16)), rng.random((5000, 16, 16)))
clusterer = BackgroundClusterer(3, encoder="pca", progress=False).fit(data[:500])
explorer = ClusterExplorer(clusterer, data, progress=False)
explorer._work.threads[0].join(1)
print(explorer.view.busy)
""")
    env = os.environ | {"BGCS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=True)
    assert "UMAP" in done.stdout and not done.stderr and not list(tmp_path.glob("plane-*"))
