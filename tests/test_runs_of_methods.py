"""Runs, their report, prediction and comparison, the monitor and the composite viewer, of other methods than the library's own."""
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from bgcs.data.datasets import digits_on_textures
from bgcs.masks.method import load_method, method_class
from bgcs.runs.cli import main
from bgcs.runs.runs import compare_runs, load_run
from bgcs.runs.settings import MethodChoice, Settings, settings_from
from bgcs.widgets.composites import CompositeViewer
from bgcs.widgets.monitor import TrainingMonitor

QUICK = ["digits_on_textures", "data.n=80", "data.image_size=24", "clusters.n_clusters=3", "clusters.epochs=1", "schedule.rounds=2"]
RUNS = {"critic": ["method.name=critic", "method.steps=6", "method.base_width=4", "method.depth=1"], "gaussian": ["method.name=gaussian"]}


def typed(capsys, *words):
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out + out.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A run of each of two kinds: one that takes steps, one that learns at once."
    root = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        code = main(["train", f"data.set={QUICK[0]}", *QUICK[1:], *words, "--folder", str(root / name), "--quiet"])
        assert code == 0
    return root


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_another_method_is_whole(runs, name):
    run = load_run(runs / name)
    assert run.status["state"] == "finished" and type(run.segmenter) is method_class(name)
    assert run.settings.method.name == name and "figures/masks.png" in {str(p.relative_to(run.folder)) for p in run.folder.rglob("*.png")}
    page = run.report.read_text()
    assert method_class(name).title.split(" (")[0] in page
    assert (run.folder / "figures" / "losses.png").is_file() == (method_class(name).default_steps is not None)
    assert sorted(path.name for path in (run.folder / "model").iterdir()) == ["method.safetensors"]


@pytest.mark.parametrize("name", RUNS)
def test_it_predicts(runs, name, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 52), np.uint8)).save(tmp_path / "a.png")
    code, said = typed(capsys, "predict", runs / name, tmp_path / "a.png", "--out", tmp_path / "out")
    assert code == 0, said
    assert Image.open(tmp_path / "out" / "masks" / "a.png").size == (52, 60)


def test_runs_of_different_methods_are_compared(runs):
    table = compare_runs([runs / name for name in RUNS], {"n": 240}, progress=False)
    assert set(table.index) == set(RUNS) and table[["score", "ap"]].notna().all().all()


def test_it_goes_on_and_starts_from_another(runs, tmp_path, capsys):
    words = ["train", f"data.set={QUICK[0]}", *QUICK[1:], *RUNS["critic"], "--quiet"]
    code, said = typed(capsys, *words, "--from", runs / "critic", "--folder", tmp_path / "longer")
    assert code == 0, said
    code, said = typed(capsys, *words, "--from", runs / "gaussian", "--folder", tmp_path / "other")
    assert code == 2 and "expected a trained Adversarial" in said


@pytest.mark.parametrize("words, said", [
    (["method.name=nothing"], "method.name='nothing'"),
    (["method.name=critic", "method.area=1"], "method.area is no setting of critic (did you mean 'area_weight'?)"),
    (["method.name=gaussian", "method.steps=5"], "learns at once"),
    (["method.name=critic", "clusters.assign=mask"], "clusters.assign=mask is for method.name=divergence"),
    (["method.name=presence", "method.pooling=sum"], "method.pooling='sum'"),
    (["method.depth=3"], "method.depth is no setting of divergence"),
])
def test_settings_that_cannot_be_are_refused_before_images_are_read(words, said, tmp_path, capsys):
    code, heard = typed(capsys, "train", f"data.set={QUICK[0]}", *QUICK[1:], *words, "--folder", tmp_path / "run")
    assert code == 2 and said in heard and not (tmp_path / "run").exists()


def test_a_change_of_method_drops_the_options_of_the_other():
    found = settings_from("digits-quick", {"method.name": "presence", "method.pooling": "max"}, {"method.name": "critic"})
    assert found.method == MethodChoice("critic") and settings_from(found.nested()) == found
    assert isinstance(found, Settings) and not found.differences(settings_from("digits-quick", {"method.name": "critic"}))


@pytest.fixture(scope="module")
def data(): return digits_on_textures("train", n=120, image_size=24)


def test_the_monitor_watches_another_method(data, tmp_path):
    monitor = TrainingMonitor(data.objects[:4], folder=tmp_path)
    method = method_class("decomposition")(base_width=4, depth=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor.fit(method, data, data.background_class, steps=4, rounds=2, held_out=None)
        assert monitor.wait(600) is method
    assert [frame.kind for frame in monitor.frames] == ["round", "round"] and "4 of 4 steps" in monitor._bundles()[0][0]["text/plain"]


def test_there_is_nothing_to_watch_of_what_learns_at_once(data):
    monitor, method = TrainingMonitor(data.objects[:4]), method_class("gaussian")()
    with pytest.raises(ValueError, match="a GaussianDetector learns at once, so there is no training to watch"): monitor.fit(method, data)
    method.fit(data, data.background_class, held_out=None, callbacks=[monitor], progress=False)
    assert "GaussianDetector learns at once" in monitor._bundles()[0][0]["text/plain"]
    with pytest.raises(TypeError, match="this is a Linear"): monitor.fit(torch.nn.Linear(1, 1), data)


def test_the_viewer_shows_composites_of_another_method(data, tmp_path):
    method = method_class("gaussian")()
    viewer = CompositeViewer(method, data, data.background_class)
    assert "isn't trained yet" in viewer._bundles()[0][0]["text/plain"]
    method.fit(data, data.background_class, held_out=None, progress=False)
    viewer.refresh()
    assert "isn't trained" not in viewer._bundles()[0][0]["text/plain"]
    again = load_method(method.save(tmp_path))
    assert torch.equal(again.predict(data.objects), method.predict(data.objects))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Images in two folders, and masks of twelve."
    root, found = tmp_path_factory.mktemp("labelled"), digits_on_textures("train", n=40, image_size=24)
    for name, images in (("with", found.objects.images), ("without", found.backgrounds.images), ("few", found.objects.masks[:12])):
        (root / name).mkdir()
        for i, image in enumerate(images): Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(root / name / f"a{i}b.png")
    return root


@pytest.mark.parametrize("name", ["divergence", "supervised"])
def test_a_run_learns_from_the_few_masks_there_are(name, folders, tmp_path, capsys, monkeypatch):
    seen = {}
    cls = method_class(name)
    fit = cls.fit
    monkeypatch.setattr(cls, "fit", lambda self, *given, **options: seen.update(options) or fit(self, *given, **options))
    length = ["schedule.steps=3"] if name == "divergence" else ["method.steps=3", "method.base_width=4", "method.depth=1"]
    code, said = typed(capsys, "train", "--objects", folders / "with", "--backgrounds", folders / "without", f"labels.masks={folders / 'few'}",
                       f"method.name={name}", *length, "network.base_width=4", "network.depth=1", "clusters.encoder=pca",
                       "clusters.n_clusters=2", "schedule.rounds=1", "--folder", tmp_path / "run")
    assert code == 0, said
    run = load_run(tmp_path / "run")
    train = split_of(folders)
    assert 0 < len(seen["masks"]) < 12 and f"masks of {len(seen['masks'])} images to train on are learned from; {12 - len(seen['masks'])} are of" in said
    for i, mask in seen["masks"].items():
        number = int(train.names[i].split("a")[-1].split("b")[0])
        own = np.asarray(Image.open(folders / "few" / f"a{number}b.png")) > 0
        assert np.array_equal(np.asarray(mask).squeeze() == 1, own)
    assert run.settings.labels.masks == str(folders / "few")


def split_of(folders):
    from bgcs.runs.settings import gather, load_images
    return load_images(settings_from(gather(objects=folders / "with", backgrounds=folders / "without")).data)[1].train


@pytest.mark.parametrize("words, said", [
    (["labels.masks=nowhere"], "nowhere is not there"),
    (["labels.masks={few}", "method.name=critic"], "labels.masks is given, and critic learns from presence alone"),
    (["method.name=supervised"], "method.name=supervised needs masks: say labels.masks=PATH"),
])
def test_labels_that_cannot_be_are_refused_before_training(words, said, folders, tmp_path, capsys):
    code, heard = typed(capsys, "train", "--objects", folders / "with", "--backgrounds", folders / "without",
                        *[word.format(few=folders / "few") for word in words], "--folder", tmp_path / "run")
    assert code == 2 and said in heard and not (tmp_path / "run" / "status.json").exists()
