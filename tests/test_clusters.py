"""Clusters as a user meets them: found, mended, saved, loaded in another process, refreshed while masks form."""
import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from bgcs.backgrounds.cluster import BackgroundClusterer, Edits
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import from_arrays
from bgcs.masks.refresh import RefreshClusters
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches, Transplants
from bgcs.training.checkpoints import read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def data(): return digits_on_textures("train", n=300)


@pytest.fixture(scope="module")
def clusterer(data): return BackgroundClusterer(3, epochs=4, progress=False).fit(data)


def test_loaded_elsewhere_gives_identical_labels(clusterer, data, tmp_path):
    edited = BackgroundClusterer.load(clusterer.save(tmp_path / "plain"))
    edited.split_cluster(1)
    edited.edits_ = edited.edits_.rename(3, "new").move(["object 5", "background 7"], 0)
    edited.save(tmp_path / "edited")
    code = """
import sys, torch
from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
clusterer = BackgroundClusterer.load(sys.argv[1])
torch.save(clusterer.predict(digits_on_textures("train", n=300)), sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "edited"), str(tmp_path / "labels.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "labels.pt", weights_only=True), edited.predict(data))
    assert not torch.equal(edited.predict(data), clusterer.predict(data))


def test_nothing_already_saved_is_lost(clusterer, tmp_path, monkeypatch):
    saved = clusterer.save(tmp_path)
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError): clusterer.save(tmp_path)
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("encoder", ["contrastive", "autoencoder", "pixels", "pca"])
def test_every_encoder(encoder, data, tmp_path):
    fitted = BackgroundClusterer(3, encoder=encoder, epochs=1, progress=False).fit(data)
    clusters = fitted.predict(data)
    assert set(clusters.tolist()) == {0, 1, 2} and fitted.labels_.bincount().min() > 80
    assert torch.equal(BackgroundClusterer.load(fitted.save(tmp_path)).predict(data), clusters)


def test_a_torch_module(data, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    fitted = BackgroundClusterer(3, encoder=module, progress=False).fit(data)
    fitted.save(tmp_path)
    assert torch.equal(BackgroundClusterer.load(tmp_path, module=module).predict(data), fitted.predict(data))
    with pytest.raises(ValueError, match=r"expected \(n, d\). Pool them"): BackgroundClusterer(3, encoder=module[:2], progress=False).fit(data)


@pytest.mark.parametrize("channels", [2, 3, 7])
def test_channels(channels):
    noise = np.random.default_rng(0).random((60, channels, 24, 30), np.float32)
    data = from_arrays(noise[:30] * 0.5, noise[30:])
    assert set(BackgroundClusterer(2, epochs=1, progress=False).fit(data).predict(data).tolist()) <= {0, 1}


def test_other_images_are_refused(clusterer, tmp_path):
    loaded = BackgroundClusterer.load(clusterer.save(tmp_path))
    noise = np.random.default_rng(0).random((8, 3, 32, 32), np.float32)
    with pytest.raises(ValueError, match="images are 3×32×32 .* fitted on 1×32×32"): loaded.predict(from_arrays(noise[:4], noise[4:]))
    small = noise[:, :1, :9, :9]
    with pytest.raises(ValueError, match="images are 1×9×9 "): loaded.predict(from_arrays(small[:4], small[4:]))
    with pytest.raises(ValueError, match="normalised by zscore"): loaded.predict(from_arrays(noise[:4, :1], noise[4:, :1], normalization="zscore"))


def test_masks_refresh_clusters_while_training(clusterer, data):
    refresh = RefreshClusters(clusterer, start=0.2)
    segmenter = Segmenter(base_width=4, depth=1)
    batches = Batches(per_cluster=4, n_real=20)
    segmenter.fit(data, clusterer.predict(data), steps=12, rounds=4, batches=batches, callbacks=[refresh], accelerator="cpu", progress=False)
    assert len(refresh.changed) == 3 and all(0 <= share <= 1 for share in refresh.changed)


def test_unsure_images_stay_off_the_real_side(clusterer, data):
    clusters = clusterer.predict(data)
    clusters[:40] = -1
    deal = Transplants(clusters[data.presence], clusters[~data.presence])
    unsure = set(range(40))
    for k in deal.pairing.clusters:
        assert not set(deal.pairing.real[k].tolist()) & unsure and unsure <= set(deal.pairing.movable[k].tolist())
    assert -1 not in deal(0)["real_clusters"] and -1 not in deal.pairing.clusters


def test_same_seed_same_clusters(clusterer, data):
    again = BackgroundClusterer(3, epochs=4, progress=False).fit(data)
    assert torch.equal(again.predict(data), clusterer.predict(data))


def test_truth_has_no_say(clusterer, data):
    nonsense = replace(data, masks=~data.masks, background_class=data.background_class.flip(0))
    assert torch.equal(BackgroundClusterer(3, epochs=4, progress=False).fit(nonsense).predict(nonsense), clusterer.predict(data))


def test_edits_of_clusters_that_are_not_there(clusterer):
    text = clusterer.edits_.drop(2).to_json().replace('"cluster": 2', '"cluster": 9')
    with pytest.raises(ValueError, match="no cluster 9; there are 0, 1, 2"): Edits.from_json(text)
    with pytest.raises(ValueError, match="no cluster 7; there are 0, 1, 2"): clusterer.split_cluster(7)


BEGIN = '{"format": "bgcs.Edits/1", "n_clusters": 2, "edits": '

@pytest.mark.parametrize("says, call", [
    ("no cluster 2; there are 0, 1", lambda: Edits(2).merge(0, 2)),
    ("at least two", lambda: Edits(3).merge(1, 1)),
    ("no edit to undo", lambda: Edits(3).undo()),
    ("no cluster 9", lambda: Edits(3).rename(9, "x")),
    ("no cluster 9", lambda: Edits(3).drop(9)),
    ("no cluster 9", lambda: Edits(3).move(["a"], 9)),
    ("no cluster 9", lambda: Edits(3).split(9, [[0.0], [1.0]])),
    ("not JSON", lambda: Edits.from_json("{")),
    ("no edits of format", lambda: Edits.from_json("[]")),
    ("edit 1 of 1", lambda: Edits.from_json(BEGIN + '[{"edit": "merge", "clusters": [0, 7]}]}')),
    ("edit 1 of 1", lambda: Edits.from_json(BEGIN + '[{"edit": "merge"}]}')),
    ("no edit; expected", lambda: Edits.from_json(BEGIN + '[{"edit": "melt"}]}')),
])
def test_edits_that_are_refused(says, call):
    with pytest.raises(ValueError, match=says): call()


@pytest.mark.parametrize("says, call", [
    ("conditional divergence is undefined", lambda c, data: BackgroundClusterer(1).fit(data)),
    ("n_clusters=2.5", lambda c, data: BackgroundClusterer(2.5).fit(data)),
    ("n_clusters=many", lambda c, data: BackgroundClusterer("many").fit(data)),
    ("assign='guess' is not known", lambda c, data: BackgroundClusterer(2, assign="guess").fit(data)),
    ("min_confidence=1", lambda c, data: BackgroundClusterer(2, min_confidence=1).fit(data)),
    ("only 2 background-only images", lambda c, data: BackgroundClusterer(3).fit(data[299:302])),
    ("has no source", lambda c, data: c.assign_objects(data, "nearest")),
    ("has none; use assign='patch'", lambda c, data: c.assign_objects(data.weak(), "oracle")),
    ("expected one of 'patch'", lambda c, data: c.assign_objects(data, "guess")),
    (r"expected \(300, 1, h, w\)", lambda c, data: c.assign_objects(data, "mask", torch.zeros(3, 1, 32, 32))),
    (r"images are 3×32×32 \(channels × height × width\), and the clusterer was fitted on 1×32×32", lambda c, data: c.embed(torch.rand(2, 3, 32, 32))),
    (r"resize=\(32, 32\)", lambda c, data: c.embed(torch.rand(2, 1, 10, 32))),
    ("too few to make 90 clusters", lambda c, data: c.split_cluster(0, 90)),
])
def test_what_is_refused(says, call, clusterer, data):
    with pytest.raises(ValueError, match=says): call(clusterer, data)


def test_it_must_be_fitted(data):
    for call in (lambda c: c.embed(data.images), lambda c: c.predict(data), lambda c: c.plot(data), lambda c: c.save("nowhere")):
        with pytest.raises(NotFittedError, match="call fit first"): call(BackgroundClusterer(3))


def test_images_that_are_all_the_same(data):
    same = replace(data, images=data.images[:1].expand(len(data), -1, -1, -1))
    with pytest.raises(ValueError, match="same embedding"): BackgroundClusterer(2, encoder="pixels", progress=False).fit(same)


@pytest.mark.parametrize("says, changes", [
    ("no clusterer of format", {"clusterer": "other"}), ("lacks something", {"tensors": {}}), ("colour", {"params": {"colour": 1}}),
    ("belongs to other settings", {"encoder_weights": {}}), ("not known", {"encoder_settings": {"name": "os.system"}}), ("not JSON", {"edits": "{"}),
])
def test_forged_files_are_refused(says, changes, clusterer, tmp_path):
    path = clusterer.save(tmp_path) / "clusterer.safetensors"
    write_checkpoint(path, read_checkpoint(path) | changes)
    with pytest.raises(ValueError, match=says): BackgroundClusterer.load(tmp_path)


def test_damaged_and_missing_files(clusterer, tmp_path):
    path = clusterer.save(tmp_path) / "clusterer.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"): BackgroundClusterer.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="clusterer.safetensors missing"): BackgroundClusterer.load(tmp_path)


def test_the_sheet_shows_object_images_where_there_are_some(clusterer, data):
    titles = lambda figure: [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles(clusterer.plot(data)) == ["cluster 0", "cluster 1", "cluster 2"] == titles(clusterer.plot(data.backgrounds))
    named = BackgroundClusterer.load(clusterer.save(tempfile.mkdtemp()))
    named.edits_ = named.edits_.rename(1, "gravel").drop(2)
    sheet = named.plot(data, per_cluster=4)
    assert titles(sheet) == ["cluster 0", "cluster gravel"] and len(sheet.axes) == 8
    first = data.objects.images[named.predict(data)[data.presence] == 0][0, 0]
    assert np.array_equal(sheet.axes[0].images[0].get_array(), first.numpy())
