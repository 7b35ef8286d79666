"The published sets, read from stand-ins by the code that reads the real files, and from real files where they are."
import gzip
import inspect
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from bgcs.data.datasets import PUBLISHED, Birds, FashionOnTextures, MarineDebris, MNISTOnTextures, Shipwrecks, SpritesOnSAS, SpritesOnTextures, npz_rows, read_idx
from bgcs.data.files import ImageSetError
from bgcs.data.images import ImageSet
from bgcs.data.standins import SPRITES_FILE, STANDINS, write_standin
from reference import masks_of_images

PARTS = ("train", "val", "test")
NEEDS = {MNISTOnTextures: ("mnist", "textures"), FashionOnTextures: ("fashion", "textures"), SpritesOnTextures: ("dsprites", "textures"), SpritesOnSAS: ("sassed", "dsprites"),
         Shipwrecks: ("shipwrecks",), Birds: ("birds",), MarineDebris: ("marine_debris",)}
OPTIONS = {SpritesOnSAS: dict(per_snippet=8), Shipwrecks: dict(n_per_side=8, stride=16), MarineDebris: dict(n_per_image=2), SpritesOnTextures: dict(n=12)}
FILE_NAMED = {MNISTOnTextures: "textures/D4.gif", FashionOnTextures: "textures/D4.gif", SpritesOnTextures: "textures/D4.gif", SpritesOnSAS: SPRITES_FILE, Shipwrecks: "AI4Shipwrecks", Birds: "CUB_200_2011.tgz", MarineDebris: "watertank-segmentation"}
DATA = Path(os.environ.get("BGCS_DATA") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
every_set = pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p.__name__)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standins")
    for name in STANDINS: write_standin(name, folder)
    return folder


@pytest.fixture
def own(tmp_path):
    "A function that writes stand-ins to a folder of the test's own, which it may damage."
    def write(*names):
        for name in names: write_standin(name, tmp_path)
        return tmp_path
    return write


def real(folder):
    if not (DATA / folder).is_dir(): pytest.skip(f"no {folder} in {DATA}; set BGCS_DATA to the folder that holds it")
    return DATA / folder


def opened(published, root, split="train", **options): return published(root, split, **OPTIONS.get(published, {}) | options)


@every_set
def test_every_split_is_a_sane_image_set(published, root):
    for split in PARTS:
        data = opened(published, root, split)
        channels = 3 if published is Birds else 1
        assert isinstance(data, published) and isinstance(data, ImageSet) and data.shape == (channels, 64, 64)
        images, masks = data.images[:], data.masks[:]
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1 and torch.isfinite(images).all() and images.std() > 0
        assert masks.dtype == torch.bool and masks.shape == (len(data), 1, 64, 64)
        assert masks[data.presence].any((1, 2, 3)).all() and not masks[data.presence].all((1, 2, 3)).any() and not masks[~data.presence].any()
        assert 0 < int(data.presence.sum()) < len(data)
        for name in ("source", "names", "places", "background_class", "paths"):
            column = getattr(data, name)
            assert column is None or len(column) == len(data), name


@every_set
def test_seeds(published, root):
    first, same, other = opened(published, root), opened(published, root), opened(published, root, random_state=1)
    assert torch.equal(first.images[:], same.images[:]) and torch.equal(first.masks[:], same.masks[:]) and torch.equal(first.presence, same.presence)
    assert len(first) != len(other) or not torch.equal(first.images[:], other.images[:])


@every_set
def test_no_source_and_no_image_crosses_splits(published, root):
    parts = [opened(published, root, split, random_state=k) for k, split in enumerate(PARTS)]  # whatever the seeds
    for i in range(3):
        for j in range(i):
            if parts[i].source is not None: assert not set(parts[i].source.tolist()) & set(parts[j].source.tolist())
            pixels = [{image.numpy().tobytes() for image in part.objects.images[:]} for part in (parts[i], parts[j])]
            assert not pixels[0] & pixels[1]


@every_set
def test_other_size_and_use_as_an_image_set(published, root):
    data = opened(published, root, image_size=32)
    assert data.shape[1:] == (32, 32)
    weak = data.weak()
    assert weak.masks is None and weak.background_class is None and len(weak) == len(data)
    assert len(data.objects) + len(data.backgrounds) == len(data) and type(data.objects) is ImageSet
    assert data.packed().shape == data.shape and len(data.plot(4).axes) == 8


@every_set
def test_missing_files_are_named(published, tmp_path):
    with pytest.raises(ImageSetError) as caught: published(tmp_path)
    text = str(caught.value)
    assert published.__name__ in text and str(tmp_path) in text and FILE_NAMED[published] in text and "http" in text


@every_set
def test_all_are_made_alike_and_say_whose_they_are(published):
    parameters = inspect.signature(published).parameters
    assert list(parameters)[:5] == ["root", "split", "image_size", "download", "random_state"]
    assert [parameters[p].default for p in list(parameters)[1:5]] == ["train", 64, False, 0]
    for name in ("title", "citation", "licence", "homepage", "files"): assert getattr(published, name)


@every_set
def test_wrong_arguments(published, root):
    with pytest.raises(ValueError, match="'train', 'val', 'test'"): published(root, "tset")
    with pytest.raises(ValueError, match="image_size"): published(root, image_size=0)
    with pytest.raises(TypeError, match="shrae"): published(root, shrae=1)


@pytest.mark.parametrize("published, name", [(SpritesOnSAS, "sassed.h5"), (Shipwrecks, "AI4Shipwrecks.zip"), (MarineDebris, "sparse git checkout")], ids=lambda p: getattr(p, "__name__", ""))
def test_sets_to_be_fetched_by_hand_say_so(published, name, own, monkeypatch):
    root = own("dsprites")
    monkeypatch.setattr(published, "files", tuple(f for f in published.files if not f.checksum))
    with pytest.raises(ImageSetError, match="by hand") as caught: published(root, download=True)
    assert name in str(caught.value)


def test_a_download_without_a_line_says_which_file_to_put_where(tmp_path, monkeypatch):
    import requests
    def offline(*args, **kw): raise requests.ConnectionError("no route to host")
    monkeypatch.setattr(requests, "get", offline)
    with pytest.raises(ImageSetError) as caught: Birds(tmp_path, download=True)
    text = str(caught.value)
    assert "no route to host" in text and str(tmp_path / "segmentations.tgz") in text and "CUB_200_2011.tgz?download=1" in text


def test_checksums_are_those_of_torchvision():
    from torchvision import datasets
    for published, theirs in ((MNISTOnTextures, datasets.MNIST), (FashionOnTextures, datasets.FashionMNIST)):
        ours = {Path(f.path).name: f.checksum for f in published.files[:2]}
        assert {name: f"md5:{md5}" for name, md5 in theirs.resources if name in ours} == ours


@pytest.mark.parametrize("cut", [3, 10, 500, -1])
@pytest.mark.parametrize("packed", [True, False])
def test_truncated_idx(cut, packed, own):
    root = own("mnist", "textures")
    file = root / "MNIST/raw/train-images-idx3-ubyte.gz"
    content = file.read_bytes() if packed else gzip.decompress(file.read_bytes())
    file.write_bytes(content[:cut])
    with pytest.raises(ImageSetError, match="train-images.*Copy it again"): MNISTOnTextures(root)


def test_labels_in_place_of_images(own):
    root = own("mnist", "textures")
    (root / "MNIST/raw/train-images-idx3-ubyte.gz").write_bytes((root / "MNIST/raw/train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ImageSetError, match="1 axes"): MNISTOnTextures(root)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_hdf5(share, own):
    root = own("sassed", "dsprites")
    content = (root / "sassed.h5").read_bytes()
    (root / "sassed.h5").write_bytes(content[:int(share * len(content))])
    with pytest.raises(ImageSetError, match="sassed.h5.*cut short"): SpritesOnSAS(root)


def test_damaged_chunk_of_hdf5(own):
    root = own("sassed", "dsprites")
    content = bytearray((root / "sassed.h5").read_bytes())
    content[len(content) // 3:len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    (root / "sassed.h5").write_bytes(content)
    with pytest.raises(ImageSetError, match="sassed.h5"): [SpritesOnSAS(root, split) for split in PARTS]


def test_external_link_is_not_followed(own, root):
    mine = own("dsprites")
    with h5py.File(mine / "sassed.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(root / "sassed.h5"), "data")
        file["segments"] = h5py.ExternalLink(str(root / "sassed.h5"), "segments")
    with pytest.raises(ImageSetError, match="link to another file"): SpritesOnSAS(mine)


class Trap:
    "Leaves a mark if it is ever unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (Path(self.path),)


def test_metadata_of_dsprites_is_never_unpickled(own):
    root = own("dsprites", "textures")
    with np.load(root / SPRITES_FILE, allow_pickle=False) as file: arrays = {name: file[name] for name in ("imgs", "latents_values", "latents_classes")}
    np.savez_compressed(root / SPRITES_FILE, **arrays, metadata=np.array(Trap(root / "sprung"), dtype=object))
    assert len(SpritesOnTextures(root, n=5)) == 10 and not (root / "sprung").exists()


@pytest.mark.parametrize("name", ["imgs", "latents_values"])
def test_object_arrays_in_dsprites_are_refused(name, own):
    root = own("dsprites", "textures")
    with np.load(root / SPRITES_FILE, allow_pickle=False) as file: arrays = {name: file[name] for name in ("imgs", "latents_values")}
    arrays[name] = np.array([Trap(root / "sprung")] * 3, dtype=object)
    np.savez_compressed(root / SPRITES_FILE, **arrays)
    with pytest.raises(ImageSetError, match=f"'{name}' holds Python objects"): SpritesOnTextures(root)
    assert not (root / "sprung").exists()


def test_truncated_npz(own):
    root = own("dsprites", "textures")
    (root / SPRITES_FILE).write_bytes((root / SPRITES_FILE).read_bytes()[:-200])
    with pytest.raises(ImageSetError, match="dsprites.*Copy it again"): SpritesOnTextures(root)


def test_sprites_are_read_in_passing(tmp_path):
    "Few rows of a large array take little memory."
    import tracemalloc
    np.savez_compressed(tmp_path / "big.npz", imgs=np.zeros((20_000, 64, 64), np.uint8))  # 82 MB
    tracemalloc.start()
    assert npz_rows(tmp_path / "big.npz", "imgs", np.array([3, 19_999]), at_once=1 << 20).shape == (2, 64, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_shipwreck_labels_of_255_and_of_1_count_alike(root):
    data = opened(Shipwrecks, root)
    by_source = {str(s): data[torch.from_numpy(data.source == s) & data.presence].masks[:].float().mean() for s in set(data.source.tolist())}
    assert len(by_source) == 4 and min(by_source.values()) > 0.05 and max(by_source.values()) < 0.2


def test_shipwreck_predictions_can_be_laid_back(root):
    data = Shipwrecks(root, "test", stride=16)
    for path, back in masks_of_images(data.masks[:], data, (160, 344)).items():
        truth = np.asarray(Image.open(Path(path).parent.parent / "labels" / Path(path).name)) > 0
        seen = ~np.isnan(back)
        assert seen.mean() > 0.85 and ((back > 0.5) == truth)[seen].mean() > 0.98


def test_birds_follow_the_list_and_grey_ones_become_coloured(root):
    names = np.concatenate([Birds(root, split).names for split in PARTS])
    assert not any("_rgb" in name for name in names) and len(set(names.tolist())) == 20
    for split in PARTS:
        data = Birds(root, split)
        for i, path in enumerate(data.paths):
            if Image.open(path).mode == "L": assert torch.equal(data.images[i, 0], data.images[i, 2])


def test_birds_without_a_mask(own):
    root = own("birds")
    gone = next((root / "segmentations").rglob("*0003*.png"))
    gone.unlink()
    with pytest.raises(ImageSetError, match=gone.name): Birds(root)


def test_debris_shows_neither_wall_nor_what_lies_outside_the_fan(root):
    for split in PARTS:
        data = opened(MarineDebris, root, split)
        for path, (top, left, h, w, _) in zip(data.paths, data.places):
            mask = np.asarray(Image.open(Path(path).parent.parent / "Masks" / Path(path).name))
            mask = mask.max(-1) if mask.ndim == 3 else mask
            assert not (mask[top:top + h, left:left + w] == 11).any()
        assert (data.images[:] == 0).float().mean() < 0.01


def test_a_set_can_be_clustered(root):
    from bgcs.backgrounds.cluster import BackgroundClusterer
    data = opened(SpritesOnSAS, root, image_size=32)
    clusterer = BackgroundClusterer(2, epochs=1, accelerator="cpu", progress=False).fit(data)
    assert len(clusterer.labels_) == len(data.backgrounds)


def test_real_digits_on_real_textures():
    parts = {split: MNISTOnTextures(real("mnist_t10k"), split, textures=real("brodatz"), n=None) for split in PARTS}
    assert [int(p.presence.sum()) for p in parts.values()] == [7000, 1000, 2000]
    digits = read_idx(real("mnist_t10k") / "t10k-images-idx3-ubyte.gz")
    assert digits.shape == (10_000, 28, 28)
    for data in parts.values():
        assert data.shape == (1, 64, 64) and set(data.background_class.tolist()) == set(range(10))
        share = data.objects.masks[:].float().mean((1, 2, 3))
        assert 0.02 < share.min() and share.max() < 0.45 and 0.1 < share.mean() < 0.2


def test_real_sonar():
    from bgcs.data.datasets import deal_groups, scenes
    root = real("fls_sonar")
    files = sorted((root / "images").glob("*.png"))
    assert len(files) == 800
    dealt = deal_groups(scenes(files))
    assert [len(dealt[split]) for split in PARTS] == [560, 120, 120]
    data = MarineDebris(root, "test", n_per_image=2)
    share = data.objects.masks[:].float().mean((1, 2, 3))
    assert len(data.objects) > 200 and len(data.backgrounds) > 200 and 0.04 < share.min() and share.max() < 0.62
    assert len(set(data.source.tolist())) > 5 and (data.images[:] == 0).float().mean() < 0.02
