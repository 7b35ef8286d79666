"""Planes: principal components, UMAP kept and missing; points of images."""
from importlib import metadata

import numpy as np
import pytest
import torch
from stripes import fitted, images

from bgcs.backgrounds.cluster import _image_names
from bgcs.widgets import plane as module
from bgcs.widgets.plane import umap_plane


@pytest.fixture(scope="module")
def data(): return images()


@pytest.mark.parametrize("spoilt", [b"", b"no array", None], ids=["empty", "not an array", "cut off"])
def test_a_spoilt_plane_in_the_cache_is_not_used(spoilt, tmp_path, monkeypatch):
    made = []

    def umap(points, settings, progress):  # the true one takes seconds
        made.append(settings)
        return points[:, :2] * 2

    monkeypatch.setattr(module, "_umap_apart", umap)
    points = np.random.default_rng(0).random((30, 5), dtype=np.float32)
    plane = umap_plane(points, folder=tmp_path)
    assert np.array_equal(umap_plane(points, folder=tmp_path), plane) and len(made) == 1
    kept, = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:200] if spoilt is None else spoilt)
    assert np.array_equal(umap_plane(points, folder=tmp_path), plane) and len(made) == 2


def test_a_missing_umap_is_named(tmp_path, monkeypatch):
    def absent(package): raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    points = np.random.default_rng(0).random((30, 5), dtype=np.float32)
    with pytest.raises(ModuleNotFoundError) as caught: umap_plane(points, folder=tmp_path)
    assert str(caught.value) == "UMAP is not installed: pip install 'bgcs[notebook]'"
    assert umap_plane(points[:5], folder=tmp_path).shape == (5, 2)  # so few need none


def test_principal_components_of_few_dimensions():
    assert module.principal_components(np.ones((1, 20))).shape == (1, 20)
    assert module.principal_components(np.ones((3, 1))).shape == (3, 2)


def test_points_of_a_set_in_another_order(data):
    clusterer = fitted(data)
    shuffled = data[torch.randperm(150, generator=torch.Generator().manual_seed(0))]
    points = module._background_points(clusterer, shuffled, progress=False)
    assert points.embeddings is not clusterer.embeddings_
    assert torch.allclose(points.embeddings, clusterer.embed(shuffled.backgrounds.images), atol=1e-5)
    both = module._background_points(clusterer, data) + module._object_points(clusterer, data)
    assert (both.names == [*_image_names(data.backgrounds), *_image_names(data.objects)]).all()
    few = module._background_points(clusterer, data, most=40)
    assert len(few) == 40 and (np.diff(few.numbers) > 0).all()
