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

from bgcs.data.datasets import (PUBLISHED, Birds, FashionOnTextures, MarineDebris, MNISTOnTextures, Shipwrecks, SpritesOnSAS, SpritesOnTextures,
                                digits_on_textures, sprites_on_textures, _deal, _deal_groups, _draw_from, _find_textures, _free_patches, _hold_out,
                                _npz_rows, _on_textures, _read_idx, _read_textures, _scenes, _site_of, _texture_part)
from bgcs.data.files import ImageSetError
from bgcs.data.images import ImageSet
from bgcs.data.standins import STANDINS, write_standin, _SPRITES_FILE, _idx_bytes
from reference import masks_of_images

PARTS = ("train", "val", "test")
NEEDS = {MNISTOnTextures: ("mnist", "textures"), FashionOnTextures: ("fashion", "textures"), SpritesOnTextures: ("dsprites", "textures"), SpritesOnSAS: ("sassed", "dsprites"),
         Shipwrecks: ("shipwrecks",), Birds: ("birds",), MarineDebris: ("marine_debris",)}
OPTIONS = {SpritesOnSAS: dict(per_snippet=8), Shipwrecks: dict(n_per_side=8, stride=16), MarineDebris: dict(n_per_image=2), SpritesOnTextures: dict(n=12)}
FILE_NAMED = {MNISTOnTextures: "textures/D4.gif", FashionOnTextures: "textures/D4.gif", SpritesOnTextures: "textures/D4.gif", SpritesOnSAS: _SPRITES_FILE, Shipwrecks: "AI4Shipwrecks", Birds: "CUB_200_2011.tgz", MarineDebris: "watertank-segmentation"}
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
    with np.load(root / _SPRITES_FILE, allow_pickle=False) as file: arrays = {name: file[name] for name in ("imgs", "latents_values", "latents_classes")}
    np.savez_compressed(root / _SPRITES_FILE, **arrays, metadata=np.array(Trap(root / "sprung"), dtype=object))
    assert len(SpritesOnTextures(root, n=5)) == 10 and not (root / "sprung").exists()


@pytest.mark.parametrize("name", ["imgs", "latents_values"])
def test_object_arrays_in_dsprites_are_refused(name, own):
    root = own("dsprites", "textures")
    with np.load(root / _SPRITES_FILE, allow_pickle=False) as file: arrays = {name: file[name] for name in ("imgs", "latents_values")}
    arrays[name] = np.array([Trap(root / "sprung")] * 3, dtype=object)
    np.savez_compressed(root / _SPRITES_FILE, **arrays)
    with pytest.raises(ImageSetError, match=f"'{name}' holds Python objects"): SpritesOnTextures(root)
    assert not (root / "sprung").exists()


def test_truncated_npz(own):
    root = own("dsprites", "textures")
    (root / _SPRITES_FILE).write_bytes((root / _SPRITES_FILE).read_bytes()[:-200])
    with pytest.raises(ImageSetError, match="dsprites.*Copy it again"): SpritesOnTextures(root)


def test_sprites_are_read_in_passing(tmp_path):
    "Few rows of a large array take little memory."
    import tracemalloc
    np.savez_compressed(tmp_path / "big.npz", imgs=np.zeros((20_000, 64, 64), np.uint8))  # 82 MB
    tracemalloc.start()
    assert _npz_rows(tmp_path / "big.npz", "imgs", np.array([3, 19_999]), at_once=1 << 20).shape == (2, 64, 64)
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
    digits = _read_idx(real("mnist_t10k") / "t10k-images-idx3-ubyte.gz")
    assert digits.shape == (10_000, 28, 28)
    for data in parts.values():
        assert data.shape == (1, 64, 64) and set(data.background_class.tolist()) == set(range(10))
        share = data.objects.masks[:].float().mean((1, 2, 3))
        assert 0.02 < share.min() and share.max() < 0.45 and 0.1 < share.mean() < 0.2


def test_real_sonar():
    root = real("fls_sonar")
    files = sorted((root / "images").glob("*.png"))
    assert len(files) == 800
    dealt = _deal_groups(_scenes(files))
    assert [len(dealt[split]) for split in PARTS] == [560, 120, 120]
    data = MarineDebris(root, "test", n_per_image=2)
    share = data.objects.masks[:].float().mean((1, 2, 3))
    assert len(data.objects) > 200 and len(data.backgrounds) > 200 and 0.04 < share.min() and share.max() < 0.62
    assert len(set(data.source.tolist())) > 5 and (data.images[:] == 0).float().mean() < 0.02


# how things are dealt and drawn

@pytest.mark.parametrize("n", [3, 7, 100])
def test_everything_is_dealt_once(n):
    parts = _deal(n)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(n)) and all(len(part) for part in parts.values())


@pytest.mark.parametrize("n", [2, 5, 50])
def test_some_are_held_out(n):
    train, val = (_hold_out(n, split, 0.1) for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(n)) and 0 < len(val) < n


def test_a_draw_takes_everything_before_it_takes_anything_twice():
    rng = np.random.default_rng(0)
    assert sorted(_draw_from(5, 5, rng)) == list(range(5)) and sorted(_draw_from(5, 10, rng)) == sorted(2 * list(range(5)))
    assert len(set(_draw_from(5, 3, rng))) == 3


def test_whole_groups_are_dealt_by_their_size():
    groups = np.repeat(np.arange(9), [30, 20, 10, 9, 8, 8, 5, 5, 5])
    dealt = _deal_groups(groups)
    assert sorted(np.concatenate([*dealt.values()])) == list(range(100)) and not set(groups[dealt["train"]]) & set(groups[dealt["test"]])
    assert all(abs(len(part) - wanted) <= 3 for part, wanted in zip(dealt.values(), (70, 15, 15)))


@pytest.mark.parametrize("deal, says", [(lambda: _deal(2), "at least 3"), (lambda: _hold_out(1, "val", 0.1), "at least 2"),
                                        (lambda: _deal_groups(np.array([0, 0, 1])), "2 groups"), (lambda: _draw_from(5, 0, np.random.default_rng(0)), "n=0")])
def test_too_few_to_deal(deal, says):
    with pytest.raises(ValueError, match=says): deal()


# sets that need no download

def test_digits_of_other_sizes_and_seeds():
    few = digits_on_textures("train", n=20)
    assert torch.equal(digits_on_textures("train", n=20).images, few.images) and not torch.equal(digits_on_textures("train", n=20, random_state=1).images, few.images)
    assert digits_on_textures("val", n=3, image_size=64).shape == (1, 64, 64) and sprites_on_textures("test", n=5, image_size=48).shape == (1, 48, 48)


@pytest.mark.parametrize("made", [digits_on_textures, sprites_on_textures])
def test_generated_sets_refuse(made):
    with pytest.raises(ValueError, match="did you mean 'test'"): made("tset")
    with pytest.raises(ValueError, match="n=0; expected a whole number of object images"): made("test", n=0)
    with pytest.raises(ValueError, match="image_size=101; expected 8 to 100"): made("test", n=1, image_size=101)


# textures

def test_textures_are_found_in_their_order(root, tmp_path):
    found = _find_textures(root)
    assert [file.stem for file in found] == ["D4", "D6", "D92"]
    assert _find_textures(root / "textures") == found == _find_textures("", root / "textures") and _find_textures(tmp_path) == []
    assert _texture_part((320, 320), "test", "object", True) == ((0, 320), (0, 320))


def test_larger_textures_are_brought_to_size_and_damaged_ones_refused(root, tmp_path):
    scan = _read_textures(_find_textures(root))[0]
    Image.fromarray(np.kron(scan, np.ones((2, 2), np.uint8))).save(tmp_path / "D4.gif")
    assert abs(_read_textures(_find_textures(tmp_path))[0].astype(int) - scan).mean() < 12
    Image.fromarray(scan[:100]).save(tmp_path / "D5.png")
    with pytest.raises(ImageSetError, match="1 of 2 textures(?s:.*)D5.png is 100×320"): _read_textures(_find_textures(tmp_path))
    (tmp_path / "D5.png").unlink()
    (tmp_path / "D4.gif").write_bytes((tmp_path / "D4.gif").read_bytes()[:500])
    with pytest.raises(ImageSetError, match="D4.gif.*damaged"): _read_textures(_find_textures(tmp_path))


def test_large_objects_need_the_whole_texture():
    rng, texture = np.random.default_rng(0), np.random.default_rng(1).integers(256, size=(1, 320, 320)).astype(np.uint8)
    objects, masks = np.zeros((2, 96, 96), np.uint8), np.zeros((2, 96, 96), bool)
    with pytest.raises(ImageSetError, match="image_size=96.*80×80.*shared_textures=True"): _on_textures(objects, masks, texture, "val", rng)
    assert len(_on_textures(objects, masks, texture, "val", rng, shared_textures=True)) == 4


# IDX files

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_whole_or_not_at_all(packed, tmp_path):
    content = gzip.compress(_idx_bytes(ARRAY)) if packed else _idx_bytes(ARRAY)
    (tmp_path / "file").write_bytes(content)
    assert (_read_idx(tmp_path / "file") == ARRAY).all()
    for cut in (1, 3, 9, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(ImageSetError, match="cut.*Copy it again"): _read_idx(tmp_path / "cut")


@pytest.mark.parametrize("content, says", [(_idx_bytes(ARRAY) + b"1", "holds more"), (b"\x00\x00\x0d" + _idx_bytes(ARRAY)[3:], "does not begin"),
                                           (b"\x00\x00\x08\x03" + 12 * b"\xff", "Copy it again")])
def test_odd_idx_files(content, says, tmp_path):
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(ImageSetError, match=says): _read_idx(tmp_path / "odd")
    with pytest.raises(ImageSetError, match="is not there"): _read_idx(tmp_path / "nothing")


def test_where_only_the_test_file_is_there_all_splits_take_from_it(own, root):
    mine = own("textures")
    with pytest.raises(ImageSetError, match="found no t10k-images-idx3-ubyte(?s:.*)MNIST/raw/t10k-images-idx3-ubyte.gz from https"): MNISTOnTextures(mine)
    (mine / "t10k-images-idx3-ubyte.gz").write_bytes((root / "MNIST/raw/t10k-images-idx3-ubyte.gz").read_bytes())
    assert [int(MNISTOnTextures(mine, split).presence.sum()) for split in PARTS] == [14, 2, 4]


def test_as_many_as_are_asked_for(root):
    assert [len(MNISTOnTextures(root, split)) for split in PARTS] == [72, 8, 40]
    assert len(MNISTOnTextures(root, n=100, shared_textures=True, image_size=100)) == 200
    assert len(SpritesOnTextures(root, n=7, image_size=32)) == 14 and len(SpritesOnTextures(root, "test", n=50)) == 100
    assert len(Birds(root, per_image=5).backgrounds) == 45


# dSprites

def test_rows_of_npz_files(root, tmp_path):
    path = root / _SPRITES_FILE
    with np.load(path, allow_pickle=False) as file: images, latents = file["imgs"], file["latents_values"]
    assert (_npz_rows(path, "latents_values") == latents).all() and _npz_rows(path, "imgs", np.array([], int)).shape == (0, 64, 64)
    for at_once in (1, 5000, 1 << 24): assert (_npz_rows(path, "imgs", np.array([0, 3, 99, 215]), (64, 64), at_once) == images[[0, 3, 99, 215]]).all()
    np.savez(tmp_path / "column.npz", imgs=np.asfortranarray(np.ones((3, 4))))
    with pytest.raises(ImageSetError, match="column by column"): _npz_rows(tmp_path / "column.npz", "imgs")


@pytest.mark.parametrize("name, inner, says", [("metadata", None, "'metadata' holds Python objects"), ("x", None, "holds no array 'x'"), ("imgs", (32, 32), r"expected \(n, 32, 32\)")])
def test_arrays_that_are_not_read(name, inner, says, root):
    with pytest.raises(ImageSetError, match=says): _npz_rows(root / _SPRITES_FILE, name, None, inner)


def test_damaged_npz_files(root, tmp_path):
    content = (root / _SPRITES_FILE).read_bytes()
    for damaged in (content[:3000], content[:2000] + bytes(100) + content[2100:]):
        (tmp_path / "cut.npz").write_bytes(damaged)
        with pytest.raises(ImageSetError, match="cut.npz.*Copy it again"): _npz_rows(tmp_path / "cut.npz", "imgs")
    with pytest.raises(ImageSetError, match="is not there"): _npz_rows(tmp_path / "nothing.npz", "imgs")


def test_sprites_have_greys_of_their_own_and_are_each_in_one_split(root):
    parts = [SpritesOnTextures(root, split) for split in PARTS]
    assert sum(int(part.presence.sum()) for part in parts) == 3 * 2 * 3 * 9  # without the last of four orientations
    grey = (255 * parts[0].objects.images[:][parts[0].objects.masks[:]]).round()
    assert grey.min() >= 150 and grey.max() <= 250 and grey.unique().numel() > 20


# sonar

def test_snippets_under_either_name(own, root):
    mine = own("dsprites")
    with h5py.File(mine / "sassed.h5", "w") as file, h5py.File(root / "sassed.h5") as given: file["snippets"], file["labels"] = given["data"][:], given["segments"][:]
    assert torch.equal(SpritesOnSAS(mine, per_snippet=8).images[:], SpritesOnSAS(root, per_snippet=8).images[:])
    with h5py.File(mine / "sassed.h5", "w") as file: file["data"] = np.zeros((4, 90, 90))
    with pytest.raises(ImageSetError, match="holds no data set 'segments'"): SpritesOnSAS(mine)
    with h5py.File(mine / "sassed.h5", "w") as file: file["data"], file["segments"] = np.zeros((4, 90, 90)), np.zeros((4, 90))
    with pytest.raises(ImageSetError, match=r"expected \(n, h, w\) for both"): SpritesOnSAS(mine)
    with h5py.File(mine / "sassed.h5", "w") as file: file["data"], file["segments"] = np.ones((4, 90, 90)), np.indices((4, 90, 90)).sum(0) % 2
    with pytest.raises(ImageSetError, match="in no snippet of the train split"): SpritesOnSAS(mine, crop_size=32)


def test_sites_are_named_in_files():
    assert [_site_of(file) for file in ("a/Isaac_M_Scott_01.png", "Barge_12.png", "Barge.png")] == ["Isaac_M_Scott", "Barge", "Barge"]


def test_survey_without_labels(own):
    root = own("shipwrecks")
    (root / "AI4Shipwrecks/train/labels/Barge_02.png").unlink()
    with pytest.raises(ImageSetError, match="1 images have no label image(?s:.*)Barge_02.png"): Shipwrecks(root)


def test_no_crop_crosses_the_blind_band(root):
    data = opened(Shipwrecks, root)
    for source, (_, left, *_) in zip(data.source, data.places): assert source == "Egyptian_01" or left + 128 <= 156 or left >= 188
    assert set(data.places[:, 4]) == {0, 1} and not {_site_of(s) for s in data.source} & {_site_of(s) for s in opened(Shipwrecks, root, "val").source}


def test_debris_has_the_size_that_was_asked_for(root):
    for split in PARTS:
        data = opened(MarineDebris, root, split)
        share = data.objects.masks[:].float().mean((1, 2, 3))
        assert 0.03 < share.min() and share.max() < 0.62 and set(data.places[:, 2]) == {96}


# birds

def test_patches_without_the_bird():
    rng = np.random.default_rng(0)
    assert len(_free_patches(np.ones((40, 40), bool), 3, rng)) == 0
    assert len({tuple(place) for place in _free_patches(np.zeros((8, 8), bool), 49, rng)}) == 49


def test_the_papers_own_split_comes_first(own):
    root = own("birds")
    top = root / "CUB_200_2011"
    (top / "train_val_test_split.txt").write_text("".join(f"{i} {i % 3}\n" for i in range(1, 21)))
    assert [int(Birds(root, split).presence.sum()) for split in PARTS] == [6, 7, 7]
    (top / "train_val_test_split.txt").write_text("1 0\n2 x\n")
    with pytest.raises(ImageSetError, match="19 images(?s:.*)2 001.Black"): Birds(root)
    (top / "train_val_test_split.txt").write_text("1 0 3\n")
    with pytest.raises(ImageSetError, match="1 lines that are not a number and a word"): Birds(root)
    for name in ("train_val_test_split.txt", "train_test_split.txt"): (top / name).unlink()
    with pytest.raises(ImageSetError, match="holds neither"): Birds(root)


def test_an_empty_mask_of_a_bird(own):
    root = own("birds")
    for mask in (root / "segmentations").rglob("*0001*.png"): mask.write_bytes(b"")
    with pytest.raises(ImageSetError, match="of 9 masks cannot be used|of 10 masks cannot be used"): [Birds(root, split) for split in PARTS]


# all of them

@every_set
def test_every_keyword_has_a_default(published):
    assert published.__doc__ and all(p.default is not p.empty for p in list(inspect.signature(published).parameters.values())[1:])
