"""Bad input is refused with a clear error before anything is trained."""
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import ImageSetError, from_arrays, from_folders
from bgcs.masks.segment import Segmenter


def noise(size, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def write(folder, sizes):
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes): noise(size, i).save(folder / f"{i}.png")
    return folder


def unreadable(folder):
    folder.mkdir()
    (folder / "a.png").write_text("no")
    (folder / "b.jpg").touch()


@pytest.fixture
def good(tmp_path): return write(tmp_path / "good", [(32, 32)] * 4)


FOLDERS = {
    "empty": (lambda f: f.mkdir(), "holds no image"),
    "no readable image": (unreadable, "2 of 6 images"),
    "one size more": (lambda f: write(f, [(32, 32)] * 40 + [(40, 30)]), "resize=(32, 32)"),
    "mixed channels": (lambda f: write(f, [(32, 32), (32, 32, 3)]), "color='gray'"),
    "one of another size": (lambda f: write(f, [(32, 32)] * 30 + [(40, 40)]), "1 channel, 40×40, uint8: 1 images"),
    "other channels": (lambda f: write(f, [(32, 32, 3)]), "3 channels, 32×32"),
    "missing": (lambda f: None, "is not a folder"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(case, good, tmp_path):
    make, message = FOLDERS[case]
    make(tmp_path / "bad")
    with pytest.raises(ImageSetError, match=re.escape(message)): from_folders(good, tmp_path / "bad")


@pytest.mark.parametrize("sizes", [[(40, 40)] * 4, [(90, 70)] * 3, [(32, 12)] * 5])
def test_sizes_that_tell_the_kinds_apart_are_told_of(sizes, good, tmp_path):
    "Windows of both are mirrored about, by more or less."
    with pytest.warns(UserWarning, match=r"the rest is mirrored: .* smaller window="):
        from_folders(good, write(tmp_path / "bad", sizes))


@pytest.mark.parametrize("sizes, options", [
    ([(32, 32), (32, 32), (40, 30)], {}), ([(32, 32)] * 4 + [(40, 40)] * 4, {}), ([(90, 70)] * 3, {"window": 32, "scale": 1}),
])
def test_sizes_that_tell_nothing_are_passed_over(sizes, options, good, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = from_folders(good, write(tmp_path / "bad", sizes), **options)
    assert data.windows is not None and len(data.windows.sizes) == 4 + len(sizes)


def test_no_background_only_image():
    with pytest.raises(ImageSetError, match="no background-only images"): from_arrays(np.zeros((3, 8, 8)), np.zeros((0, 8, 8)))


def no_training(*args, **kw): raise AssertionError("training began")


@pytest.mark.parametrize("k, message", [
    (1, "conditional divergence is undefined"),
    (0, "at least 2"),
    (21, "only 20 background-only images"),
])
def test_number_of_clusters(k, message, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", no_training)
    with pytest.raises(ValueError, match=message): BackgroundClusterer(k).fit(digits_on_textures(n=20))


@pytest.mark.parametrize("clusters, message", [
    (torch.zeros(40).long(), "Use at least 2 clusters"),
    (torch.arange(40) // 20, "No cluster holds both object and background-only images"),
    (torch.cat([torch.zeros(20).long(), torch.arange(20) % 2]), "All object images are in cluster 0, so none can be moved there"),
    (torch.zeros(5).long(), r"expected \(40,\)"),
])
def test_clusters_that_cannot_be_compared(clusters, message, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", no_training)
    with pytest.raises(ValueError, match=message): Segmenter().fit(digits_on_textures(n=20), clusters)
