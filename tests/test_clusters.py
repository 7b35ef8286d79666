"""Clusters as a user meets them: found, mended, saved, loaded in another process, refreshed while masks form."""
import subprocess
import sys

import numpy as np
import pytest
import torch

from bgcs.backgrounds.cluster import BackgroundClusterer, Edits
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import from_arrays
from bgcs.masks.refresh import RefreshClusters
from bgcs.masks.segment import Segmenter


@pytest.fixture(scope="module")
def data(): return digits_on_textures("train", n=300)


@pytest.fixture(scope="module")
def clusterer(data): return BackgroundClusterer(3, epochs=4, progress=False).fit(data)


def test_loaded_elsewhere_gives_identical_labels(clusterer, data, tmp_path):
    edited = BackgroundClusterer.load(clusterer.save(tmp_path / "plain"))
    edited.split_cluster(1)
    edited.edits_ = edited.edits_.rename(3, "new").move(["object 5", "background 7"], 0)
    edited.save(tmp_path / "edited")
    code = f"""
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
    Segmenter(base_width=4, depth=1).fit(data, clusterer.predict(data), steps=12, epochs=4, per_cluster=4, n_real=20, callbacks=[refresh], accelerator="cpu", progress=False)
    assert len(refresh.changed) == 3 and all(0 <= share <= 1 for share in refresh.changed)


def test_unsure_images_stay_off_the_real_side(clusterer, data):
    from bgcs.objective.batches import Transplants
    clusters = clusterer.predict(data)
    clusters[:40] = -1
    deal = Transplants(clusters[data.presence], clusters[~data.presence])
    assert all(not set(deal.pairing.real[k].tolist()) & set(range(40)) and set(range(40)) <= set(deal.pairing.movable[k].tolist()) for k in deal.pairing.clusters)
    assert -1 not in deal(0)["real_clusters"] and -1 not in deal.pairing.clusters


def test_same_seed_same_clusters(clusterer, data): assert torch.equal(BackgroundClusterer(3, epochs=4, progress=False).fit(data).predict(data), clusterer.predict(data))


def test_truth_has_no_say(clusterer, data):
    from dataclasses import replace
    nonsense = replace(data, masks=~data.masks, background_class=data.background_class.flip(0))
    assert torch.equal(BackgroundClusterer(3, epochs=4, progress=False).fit(nonsense).predict(nonsense), clusterer.predict(data))


def test_edits_of_clusters_that_are_not_there(clusterer):
    text = clusterer.edits_.drop(2).to_json().replace('"cluster": 2', '"cluster": 9')
    with pytest.raises(ValueError, match="no cluster 9; there are 0, 1, 2"): Edits.from_json(text)
