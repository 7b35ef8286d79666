"""Stores: what HDF5 files and folders may hold that cannot be used, and how a mixed set is described."""
import h5py
import numpy as np
import pytest
from PIL import Image

from bgcs.data.files import ImageSetError
from bgcs.data.intensity import Normalization
from bgcs.data.stores import FileStore, HDF5Store, LazyImages, Reading, pack

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)


@pytest.fixture
def hdf5(tmp_path):
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file.create_dataset("a/grey", data=PIXELS[:, 0], chunks=(8, 16, 16), compression="gzip")
        file["colour"] = np.repeat(PIXELS.transpose(0, 2, 3, 1), 3, -1)
        file["square"], file["none"] = np.zeros((5, 8, 9, 8)), np.zeros((0, 8, 9))
        file["outside"], file["labels"] = h5py.ExternalLink("secrets.h5", "/images"), np.arange(40)
    return tmp_path / "set.h5"


@pytest.mark.parametrize("name, says", [
    ("outside", r"link to another file \(secrets.h5\)"),
    ("images", "holds no data set 'images'; it holds 'a/grey', 'colour', 'labels'"),
    ("labels", r"\(n, h, w\)"),
    ("square", "the channels may be axis 1 or -1. Say channel_axis="),
    ("none", "data set 'none' of .* is empty"),
])
def test_data_sets_that_cannot_be_used(name, says, hdf5):
    with pytest.raises(ImageSetError, match=says): HDF5Store(hdf5, name)


@pytest.mark.parametrize("index", [slice(0, 40), [5, 5, 2], [39, 0, 20]], ids=str)
@pytest.mark.parametrize("name, channels", [("a/grey", 1), ("colour", 3)])
def test_rows_of_hdf5(name, channels, index, hdf5):
    images = LazyImages(HDF5Store(hdf5, name), Normalization())[index]
    assert np.allclose(images, np.repeat(PIXELS[index], channels, 1) / 255)


def test_hdf5_is_made_grey(hdf5):
    store = HDF5Store(hdf5, "colour", reading=Reading("gray", crop=(8, 8), dtype="float32"))
    assert store.shape == (40, 1, 8, 8) and store.dtype == np.float32
    assert np.allclose(store.read([3]), PIXELS[[3], :, 4:12, 4:12])


@pytest.mark.parametrize("resize", [(0, 5), (5,), 0, (5.5, 5)], ids=str)
def test_sizes_that_are_none(resize):
    with pytest.raises(ValueError, match=r"expected \(height, width\) in pixels"): Reading(resize=resize)


def test_mixed_forms_are_counted_and_the_remedy_computed(tmp_path):
    paths = [tmp_path / f"{i:03}.png" for i in range(40)]
    for path, image in zip(paths, PIXELS): Image.fromarray(image[0]).save(path)
    files = FileStore(paths)
    Image.fromarray(PIXELS[9, 0, :8]).save(paths[8])
    Image.fromarray(np.repeat(PIXELS[9, 0, ..., None], 3, 2)).save(paths[9])
    with pytest.raises(ImageSetError) as error: pack({"images": files}, folder=tmp_path / "cache")
    for says in ("1 channel, 16×16, uint8: 38 images", "1 channel, 8×16, uint8: 1 images, such as",
                 "resize=(16, 16)", "color='gray'"):
        assert says in str(error.value)


def test_a_cache_without_index_is_built_anew(tmp_path):
    paths = [tmp_path / f"{i:03}.png" for i in range(40)]
    for path, image in zip(paths, PIXELS): Image.fromarray(image[0]).save(path)
    files = FileStore(paths)
    pack({"images": files}, folder=tmp_path / "cache")
    next((tmp_path / "cache").glob("*/index.json")).unlink()
    assert np.array_equal(pack({"images": files}, folder=tmp_path / "cache").stores["images"].array, PIXELS)
