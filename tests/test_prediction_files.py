"""What is written of files as people have them: unseen pixels, places on the map, normalisation; in Python and on the command line.

Each case of the table says what became of it before (`before`), and is tried through `Run.predict` and `bgcs predict`.
"""
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

import bgcs.data.files
import bgcs.masks.predict
from bgcs.data.datasets import digits_on_textures
from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays, from_files, from_folders, from_hdf5
from bgcs.data.intensity import Normalization, as_normalization
from bgcs.data.patches import cut_patches
from bgcs.masks.predict import predict_files, predict_large
from bgcs.masks.segment import Segmenter
from bgcs.runs.cli import main
from bgcs.runs.runs import load_run, train

SIDE = 32
TINY = {
    "clusters.n_clusters": 2, "clusters.encoder": "pca", "network.base_width": 4, "network.depth": 1, "schedule.steps": 2,
    "schedule.rounds": 1, "schedule.per_cluster": 4, "schedule.n_real": 8, "schedule.choose": False,
    "trainer.accelerator": "cpu", "data.normalization": "zscore", "data.val": 0.3, "data.test": 0.2,
}


def write_folders(root, n=24, mode="L"):
    "Digits and textures as files, in two folders."
    example = digits_on_textures(n=n)
    for i, (image, present) in enumerate(zip(example.images, example.presence)):
        kind = root / ("with" if present else "without")
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).convert(mode).save(kind / f"{i:03}.png")
    return root / "with", root / "without"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run on whole grey images of 32×32, normalised by 'zscore'."
    root = tmp_path_factory.mktemp("trained")
    return train(*write_folders(root), folder=root / "run", settings=TINY, progress=False).folder


@pytest.fixture(scope="module")
def coloured(trained):
    "The same, with a network for three channels."
    folder = trained.with_name("coloured")
    shutil.copytree(trained, folder)
    segmenter = Segmenter(3, base_width=4, depth=1)
    segmenter.normalization_ = Normalization("zscore", of="image")
    segmenter.save(folder / "model")
    return folder


def noise(h=40, w=48, seed=0, channels=None, high=256):
    shape = (h, w) if channels is None else (h, w, channels)
    return np.random.default_rng(seed).integers(1, high, shape).astype(np.uint8)


# ---- what is measured to normalise

def whole(array): return np.stack([array] * 3), np.stack([array[::-1]] * 3)


def opened_as(way, tmp_path, normalization):
    "An image set of the same pixels, opened in one of the ways."
    images = [noise(SIDE, SIDE, seed) for seed in range(6)]
    files = []
    for k, image in enumerate(images):
        files.append(tmp_path / ("with" if k < 3 else "without") / f"{k}.png")
        files[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(files[-1])
    presence = [True] * 3 + [False] * 3
    if way == "arrays": return from_arrays(np.stack(images[:3]), np.stack(images[3:]), normalization=normalization)
    if way == "folders": return from_folders(tmp_path / "with", tmp_path / "without", normalization=normalization)
    if way == "lazy": return from_files(files, presence, normalization=normalization, lazy=True)
    if way == "crop": return from_files(files, presence, normalization=normalization, crop=(16, 16))
    if way == "hdf5":
        with h5py.File(tmp_path / "set.h5", "w") as file: file["images"], file["presence"] = np.stack(images), presence
        return from_hdf5(tmp_path / "set.h5", normalization=normalization)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:16, :16] = 1
    return cut_patches(images[:2], 16, labels=[labels, labels * 0], stride=16, normalization=normalization, progress=False)


class Same:
    "Gives back what the network would see."
    settings = {"channels": 1}
    def __init__(self, normalization): self.normalization_ = normalization
    def predict(self, images, flip="none"): return images


MEASURED = ["zscore", "percentile", "mean-clip", ("percentile", 5, 80), ("zscore", 2),
            lambda image: (image - image.min()) / np.ptp(image)]
OPENED = {"arrays": "image", "folders": "image", "lazy": "image", "hdf5": "image", "crop": "patch", "patches": "patch"}


@pytest.mark.parametrize("way", OPENED)
@pytest.mark.parametrize("normalization", MEASURED, ids=lambda value: str(as_normalization(value)).split(".")[-1])
def test_tiles_are_normalised_as_training_images_were(way, normalization, tmp_path):
    "Before: tile by tile, however the training images were opened."
    learned = opened_as(way, tmp_path, normalization).normalization
    assert learned.of == OPENED[way]
    image = (np.linspace(0, 1, 96)[:, None] * noise(96, 64)).astype(np.float32)
    seen = predict_large(Same(learned), image, tile=16, overlap=0)
    of_whole = learned(image[None, None])[0, 0].numpy()
    tiles = image.reshape(6, 16, 4, 16).swapaxes(1, 2).reshape(-1, 1, 16, 16)
    of_tiles = learned(tiles).numpy().reshape(6, 4, 16, 16).swapaxes(1, 2).reshape(96, 64)
    expected, other = (of_whole, of_tiles) if OPENED[way] == "image" else (of_tiles, of_whole)
    assert np.abs(seen - expected).max() < 1e-6 and np.abs(seen - other).mean() > 0.02
    for measure, there in (("image", of_whole), ("patch", of_tiles)):
        assert np.abs(predict_large(Same(learned), image, tile=16, overlap=0, measure=measure) - there).max() < 1e-6


@pytest.mark.parametrize("normalization", ["zscore", "percentile", "mean-clip"])
def test_what_is_unseen_has_no_say_in_normalisation(normalization):
    way = Normalization(normalization, of="image")
    image = noise(64, 64).astype(np.float32)
    clean = way(image[None, None])[0, 0].numpy()
    image[:40, :32] = -3.4e38  # no data, in whole tiles and in parts of others
    for measure in ("image", "patch"):
        seen = predict_large(Same(way), image, tile=16, overlap=0, invalid=float(np.float32(-3.4e38)), measure=measure)
        assert np.isnan(seen[:40, :32]).all() and np.abs(seen - clean)[48:].mean() < 0.05 and np.nanstd(seen[40:]) > 0.02


def test_regions_are_measured_together():
    from bgcs.data.patches import Side
    def halves(image): return [Side("port", (0, 30), False), Side("starboard", (34, 64), True)]
    image = noise(64, 64).astype(np.float32)
    image[:, 34:] *= 3
    seen = predict_large(Same(Normalization("zscore", of="image")), image, tile=16, regions=halves)
    shown = image[:, np.r_[0:30, 34:64]]
    assert np.abs(seen[:, np.r_[0:30, 34:64]] - Normalization("zscore")(shown[None, None])[0, 0].numpy()).max() < 1e-5


def test_what_was_measured_is_stored_with_the_model(trained, tmp_path):
    segmenter = load_run(trained).segmenter
    assert segmenter.normalization_.of == "image" and segmenter.normalization_ == Normalization("zscore")
    again = Segmenter.load(segmenter.save(tmp_path / "model"))
    assert again.normalization_.of == "image" and Normalization.from_dict({"name": "zscore", "clip": 4.0}).of is None


def seen_by_network(monkeypatch):
    monkeypatch.setattr(bgcs.masks.predict, "predict_masks", lambda model, images, size: images[:, :1])


def test_normalisation_through_the_command_line(trained, tmp_path, monkeypatch, capsys):
    seen_by_network(monkeypatch)
    image = (np.linspace(0, 1, 96)[:, None] * noise(96, 96)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "large.png")
    expected = Normalization("zscore")(image[None, None])[0, 0].numpy()
    for words, near in ((["--tile", "16"], True), (["--tile", "none"], True), (["--tile", "16", "--measure", "patch"], False)):
        out = tmp_path / "_".join(words)
        assert main(["predict", str(trained), str(tmp_path / "large.png"), "--out", str(out), *words]) == 0, capsys.readouterr().err
        soft = (np.asarray(Image.open(out / "soft" / "large.png")) - 1.0) / 65534
        assert (np.abs(soft - expected).max() < 1e-3) == near


# ---- files

@dataclass
class Case:
    kind: str
    before: str  # what became of it
    write: Callable  # a function of a folder: writes files, gives the image's path
    check: Callable  # a function of the file read back as `Written`, and of the image's path
    options: dict = field(default_factory=dict)  # in Python
    words: str = ""  # on the command line
    coloured: bool = False  # by the network for three channels


@dataclass
class Written:
    folder: Path
    mask: Path

    @property
    def values(self): return values_of(self.mask)

    @property
    def soft(self): return values_of(next((self.folder / "soft").glob("x.[pn]*[gzi]")))

    @property
    def world(self): return [float(line) for line in self.mask.with_suffix("." + self.mask.suffix[1] + self.mask.suffix[-1] + "w").read_text().split()]

    @property
    def row(self): return pd.read_csv(self.folder / "images.csv").iloc[0]


def values_of(path):
    if path.name.endswith((".nii", ".nii.gz")): return np.asarray(nibabel.load(path).dataobj)
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))


ON_MAP = [(33550, "d", 3, (2.0, 2.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 500000.0, 4000000.0, 0), True),
          (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True)]
WORLD = "2.0\n0.0\n0.0\n-2.0\n500001.0\n3999999.0\n"


def tif(values, tags=(), **kw):
    def write(folder):
        tifffile.imwrite(folder / "x.tif", values, extratags=list(tags), metadata=None, **kw)
        return folder / "x.tif"
    return write


def picture(name, image, beside=None, **kw):
    "An image by Pillow, and text files beside it."
    def write(folder):
        image.save(folder / name, **kw)
        for other, text in (beside or {}).items(): (folder / other).write_text(text)
        return folder / name
    return write


def nifti(name, values, affine, cls=nibabel.Nifti1Image):
    def write(folder):
        image = cls(values, affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / name)
        return folder / name
    return write


def hole(values, number, rows=np.s_[:10]):
    values = values.copy()
    values[rows] = number
    return values


def unseen_above(n, h=40, w=48):
    "A check: the first n rows are not seen, and said to be so."
    def check(found, path):
        expected = np.arange(h)[:, None] < np.full((1, w), n)
        values, soft = found.values, found.soft
        assert values.shape == soft.shape == (h, w) and ((values == 127) == expected).all() and set(np.unique(values[n:])) <= {0, 255}
        assert ((soft == 0) == expected).all() and found.row.unseen_share == pytest.approx(n / h)
        if found.mask.suffix == ".tif":
            with tifffile.TiffFile(found.mask) as file:
                assert file.pages[0].tags[42113].value == "127" and "127 not seen" in file.pages[0].description
        elif n:
            with Image.open(found.mask) as file: assert file.info["transparency"] == 127 and "127 not seen" in file.text["Description"]
            with Image.open(found.folder / "soft" / "x.png") as file: assert file.info["transparency"] == 0
        drawn = np.asarray(Image.open(found.folder / "overlays" / "x.png"))
        assert drawn[n:].std() > 20  # what is seen is not flattened by what isn't
    return check


def on_map(numbers=(2, 0, 0, -2, 500001, 3999999)):
    def check(found, path):
        assert found.world == pytest.approx(list(numbers))
        for kind in ("soft", "overlays"): assert (found.folder / kind / "x.pgw").read_text() == found.mask.with_suffix(".pgw").read_text()
    return check


def has_place(found, path):
    with tifffile.TiffFile(path) as image, tifffile.TiffFile(found.mask) as mask:
        assert image.pages[0].geotiff_tags == mask.pages[0].geotiff_tags
    assert [float(line) for line in (found.folder / "soft" / "x.pgw").read_text().split()] == [2, 0, 0, -2, 500001, 3999999]


AFFINE = np.array([[0, -0.5, 0.1, 7], [0.4, 0, 0, -3], [0, 0.05, 2.5, 11], [0, 0, 0, 1.0]])


def in_space(shape, affine=AFFINE):
    def check(found, path):
        mask, image = nibabel.load(found.mask), nibabel.load(path)
        assert type(mask) is type(image) and found.mask.name == path.name and mask.shape == shape and np.allclose(mask.affine, affine, atol=1e-5)
        assert mask.get_data_dtype() == np.uint8 and mask.header.get_xyzt_units()[0] == "mm" and "127 not seen" in str(mask.header["descrip"])
        soft = nibabel.load(found.folder / "soft" / path.name)
        assert soft.shape == shape and np.allclose(soft.affine, affine, atol=1e-5) and 0 <= np.nanmin(soft.dataobj) <= np.nanmax(soft.dataobj) <= 1
        assert ((np.asarray(mask.dataobj) == 127) == np.isnan(np.asarray(soft.dataobj))).all()
    return check


def shifted(slices):
    affine = AFFINE.copy()
    affine[:3, 3] += slices * affine[:3, 2]
    return affine


GREY, COLOUR = noise(), noise(channels=3)
ALPHA = np.full((40, 48, 1), 255, np.uint8)
RGBA = np.concatenate([COLOUR, ALPHA], 2)
LA = np.stack([GREY, ALPHA[..., 0]], 2)
PALETTE = Image.fromarray(hole(noise(high=4), 9)).convert("P")
PALETTE.putpalette([k * 20 for k in range(12) for _ in range(3)])
EXIF = Image.Exif()
EXIF[0x0112] = 6
FLOAT = GREY.astype(np.float32)
TO_RGBA = dict(photometric="rgb", extrasamples=["unassalpha"])

CASES = {
    # where nothing is seen
    "NaN in a GeoTIFF": Case("unseen", "0, as background", tif(hole(FLOAT, np.nan), ON_MAP), unseen_above(10)),
    "NaN in a TIFF": Case("unseen", "0, as background", tif(hole(FLOAT, np.nan)), unseen_above(10)),
    "NaN in NumPy": Case("unseen", "0, as background", lambda folder: np.save(folder / "x.npy", hole(FLOAT, np.nan)) or folder / "x.npy", unseen_above(10)),
    "infinity": Case("unseen", "0, as background", tif(hole(FLOAT, np.inf)), unseen_above(10)),
    "zeros": Case("unseen", "0; no option of the command line", picture("x.png", Image.fromarray(hole(GREY, 0))), unseen_above(10), {"invalid": "zero"}, "--invalid zero"),
    "-9999": Case("unseen", "0, overlay flattened; no option", tif(hole(FLOAT, -9999), ON_MAP), unseen_above(10), {"invalid": -9999}, "--nodata -9999"),
    "lowest float": Case("unseen", "0, overlay flattened; no option", tif(hole(FLOAT, -3.4e38)), unseen_above(10), {"invalid": -3.4e38}, "--nodata -3.4e38"),
    "255": Case("unseen", "0; no option", picture("x.png", Image.fromarray(hole(noise(high=255), 255))), unseen_above(10), {"invalid": 255}, "--invalid 255"),
    "all is seen": Case("unseen", "the same", picture("x.png", Image.fromarray(GREY)), unseen_above(0)),
    # transparency
    "grey and alpha, opaque": Case("alpha", "refused: 2 channels", picture("x.png", Image.fromarray(LA)), unseen_above(0)),
    "grey and alpha, clear": Case("alpha", "refused: 2 channels", picture("x.png", Image.fromarray(hole(LA, 0, np.s_[:10, :, 1]))), unseen_above(10)),
    "grey and alpha, nearly clear": Case("alpha", "refused: 2 channels", picture("x.png", Image.fromarray(hole(LA, 3, np.s_[:10, :, 1]))), unseen_above(0)),
    "RGBA, opaque": Case("alpha", "refused: 4 channels", picture("x.png", Image.fromarray(RGBA)), unseen_above(0), coloured=True),
    "RGBA, clear": Case("alpha", "refused: 4 channels", picture("x.png", Image.fromarray(hole(RGBA, 0, np.s_[:10, :, 3]))), unseen_above(10), coloured=True),
    "RGBA to grey, clear": Case("alpha", "seen; no option", picture("x.png", Image.fromarray(hole(RGBA, 0, np.s_[:10, :, 3]))), unseen_above(10), {"color": "gray"}, "--color gray"),
    "RGBA to RGB, clear": Case("alpha", "seen; no option", picture("x.png", Image.fromarray(hole(RGBA, 0, np.s_[:10, :, 3]))), unseen_above(10), {"color": "rgb"}, "--color rgb", coloured=True),
    "RGBA TIFF, opaque": Case("alpha", "refused: 4 channels", tif(RGBA, **TO_RGBA), unseen_above(0), coloured=True),
    "RGBA TIFF, clear": Case("alpha", "refused: 4 channels", tif(hole(RGBA, 0, np.s_[:10, :, 3]), **TO_RGBA), unseen_above(10), coloured=True),
    "RGBA GeoTIFF to grey, clear": Case("alpha", "seen; no option", tif(hole(RGBA, 0, np.s_[:10, :, 3]), ON_MAP, **TO_RGBA), unseen_above(10), {"color": "gray"}, "--color gray"),
    "a clear colour of a palette": Case("alpha", "seen; no option", picture("x.png", PALETTE, transparency=9), unseen_above(10), {"color": "gray"}, "--color gray"),
    "a clear grey": Case("alpha", "seen", picture("x.png", Image.fromarray(hole(GREY, 0)), transparency=0), unseen_above(10)),
    # on the map
    "a GeoTIFF": Case("map", "mask on the map, soft mask not", tif(GREY, ON_MAP), has_place),
    "a GeoTIFF with NaN": Case("map", "mask on the map, soft mask not", tif(hole(FLOAT, np.nan), ON_MAP), has_place),
    "JPEG and .jgw": Case("map", "not on the map", picture("x.jpg", Image.fromarray(GREY), {"x.jgw": WORLD}), on_map()),
    "JPEG and .JGW": Case("map", "not on the map", picture("x.jpg", Image.fromarray(GREY), {"x.JGW": WORLD}), on_map()),
    "JPEG and .jpgw": Case("map", "not on the map", picture("x.jpg", Image.fromarray(GREY), {"x.jpgw": WORLD}), on_map()),
    "JPEG and .wld": Case("map", "not on the map", picture("x.jpeg", Image.fromarray(GREY), {"x.wld": WORLD}), on_map()),
    "PNG and .pgw": Case("map", "not on the map", picture("x.png", Image.fromarray(GREY), {"x.pgw": WORLD}), on_map()),
    "BMP and .bpw": Case("map", "not on the map", picture("x.bmp", Image.fromarray(GREY), {"x.bpw": WORLD}), on_map()),
    "TIFF and .tfw": Case("map", "not on the map", lambda folder: (folder / "x.tfw").write_text(WORLD) and tif(GREY)(folder), on_map()),
    "turned on the map": Case("map", "not on the map", picture("x.png", Image.fromarray(GREY), {"x.pgw": "1 2 3 4 5 6"}), on_map((1, 2, 3, 4, 5, 6))),
    "turned by the camera": Case("map", "not on the map", picture("x.jpg", Image.fromarray(GREY.T.copy()), {"x.jgw": WORLD}, exif=EXIF), on_map((0, 2, 2, 0, 500001, 3999905))),
    "with .prj": Case("map", "not on the map", picture("x.jpg", Image.fromarray(GREY), {"x.jgw": WORLD, "x.prj": "PROJCS[]"}),
                      lambda found, path: all((found.folder / kind / "x.prj").read_text() == "PROJCS[]" for kind in ("masks", "soft")) or pytest.fail("no .prj")),
    # in space
    "NIfTI": Case("space", "PNG", nifti("x.nii", FLOAT, AFFINE), in_space((40, 48))),
    "NIfTI, packed": Case("space", "PNG", nifti("x.nii.gz", FLOAT[..., None], AFFINE), in_space((40, 48, 1))),
    "NIfTI, 16 bits": Case("space", "PNG", nifti("x.nii", GREY.astype(np.int16)[..., None], AFFINE), in_space((40, 48, 1))),
    "NIfTI 2": Case("space", "PNG", nifti("x.nii.gz", FLOAT, AFFINE, nibabel.Nifti2Image), in_space((40, 48))),
    "NIfTI with NaN": Case("space", "PNG, 0", nifti("x.nii.gz", hole(FLOAT, np.nan), AFFINE), in_space((40, 48))),
    "a slice of a NIfTI": Case("space", "PNG; no option", nifti("x.nii.gz", np.stack([FLOAT] * 3, 2), AFFINE), in_space((40, 48, 1), shifted(2)), {"page": 2}, "--page 2"),
    # reading and tiling, as options
    "colour to grey": Case("options", "no option", picture("x.png", Image.fromarray(COLOUR)), unseen_above(0), {"color": "gray"}, "--color gray"),
    "a page": Case("options", "no option", tif(np.stack([GREY] * 5), photometric="minisblack"), unseen_above(0), {"page": 3}, "--page 3"),
    "pages as channels": Case("options", "no option", tif(np.stack([GREY] * 3), photometric="minisblack"), unseen_above(0), {"page": "channels"}, "--page channels", coloured=True),
    "resized": Case("options", "no option", picture("x.png", Image.fromarray(GREY)), unseen_above(0), {"tile": None, "resize": (16, 24)}, "--tile none --resize 16,24"),
    "tiles resized": Case("options", "no option", picture("x.png", Image.fromarray(GREY)), unseen_above(0), {"tile": 32, "resize": 16, "blend": "mean", "overlap": 0.25}, "--tile 32 --resize 16 --blend mean --overlap 0.25"),
    "another type": Case("options", "no option", picture("x.png", Image.fromarray(GREY)), unseen_above(0), {"dtype": "float32", "batch_size": 5}, "--dtype float32 --batch-size 5"),
}


def python(folder, path, out, case): return load_run(folder).predict(path, out, progress=False, **case.options)


def command_line(folder, path, out, case):
    assert main(["predict", str(folder), str(path), "--out", str(out), *case.words.split()]) == 0


@pytest.mark.parametrize("through", [python, command_line])
@pytest.mark.parametrize("name", CASES)
def test_what_is_written(name, through, trained, coloured, tmp_path):
    case, out = CASES[name], tmp_path / "out"
    (tmp_path / "in").mkdir()
    path = case.write(tmp_path / "in")
    through(coloured if case.coloured else trained, path, out, case)
    case.check(Written(out, next(mask for mask in (out / "masks").iterdir() if mask.suffix in (".png", ".tif", ".nii", ".gz"))), path)


def test_the_same_from_python_and_the_command_line(trained, tmp_path):
    path = CASES["tiles resized"].write(tmp_path)
    for through in (python, command_line): through(trained, path, tmp_path / through.__name__, CASES["tiles resized"])
    a, b = ({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()} for folder in (tmp_path / "python", tmp_path / "command_line"))
    assert a == b


# ---- with what reading marks as unseen

reads_unseen = pytest.mark.skipif(not hasattr(bgcs.data.files, "fill_unseen"), reason="reading doesn't mark unseen pixels yet")


def with_mask_page(folder):
    "A TIFF whose second page is a mask, as GDAL writes it."
    shown = np.where(np.arange(40)[:, None] < 10, 0, 255).repeat(48, 1).astype(np.uint8)
    with tifffile.TiffWriter(folder / "x.tif") as file:
        file.write(GREY, metadata=None, photometric="minisblack")
        file.write(shown > 0, metadata=None, photometric="mask", subfiletype=4)
    return folder / "x.tif"


def with_mask_beside(folder):
    tifffile.imwrite(folder / "x.tif.msk", np.where(np.arange(40)[:, None] < 10, 0, 255).repeat(48, 1).astype(np.uint8), metadata=None)
    return tif(GREY)(folder)


NODATA = {
    "GDAL's tag, 0": tif(hole(GREY, 0), [(42113, "s", 0, "0", True)]),
    "GDAL's tag, lowest float": tif(hole(FLOAT, -3.4028234663852886e38), [*ON_MAP, (42113, "s", 0, "-3.4028234663852886e+38", True)]),
    "GDAL's tag, -9999": tif(hole(FLOAT, -9999), [*ON_MAP, (42113, "s", 0, "-9999", True)]),
    "a mask page": with_mask_page,
    "a mask beside": with_mask_beside,
}


@reads_unseen
@pytest.mark.parametrize("through", [python, command_line])
@pytest.mark.parametrize("name", NODATA)
def test_what_a_raster_does_not_show(name, through, trained, tmp_path):
    "Before: object or background, or 'has 2 pages'."
    (tmp_path / "in").mkdir()
    case = Case("unseen", "", NODATA[name], unseen_above(10))
    path = case.write(tmp_path / "in")
    through(trained, path, tmp_path / "out", case)
    case.check(Written(tmp_path / "out", next((tmp_path / "out" / "masks").glob("x.[pt]*[gf]"))), path)


@reads_unseen
@pytest.mark.parametrize("name", ["NaN in a GeoTIFF", "NaN in NumPy"])
def test_written_masks_are_read_as_masks(name, trained, tmp_path):
    "What was not seen is no object."
    (tmp_path / "in").mkdir()
    found = load_run(trained).predict(CASES[name].write(tmp_path / "in"), tmp_path / "out", progress=False)
    mask = tmp_path / "out" / found.images["mask"][0]
    read = bgcs.data.files.read_image(mask, color="index")
    assert (np.ma.filled(read, 0)[0] == np.where(values_of(mask) == 127, 0, values_of(mask))).all()


# ---- what is said

@dataclass
class Refused:
    kind: str
    before: str  # what was said on the command line
    write: Callable
    python: str  # what is said
    command_line: str
    options: dict = field(default_factory=dict)
    words: str = ""
    coloured: bool = False


def large(folder):
    Image.fromarray(noise(200, 200)).save(folder / "x.png")
    return folder / "x.png"


REFUSED = {
    "colours": Refused("words", "say color='gray' or 'rgb'", picture("x.png", Image.fromarray(COLOUR)), "color='gray' or color='rgb'", "--color gray or --color rgb", {"color": None}, "--color none"),
    "a palette": Refused("words", "at the end of all work, color='rgb'", picture("x.png", PALETTE), "Say color='rgb' or color='gray'", "Say --color rgb or --color gray", {"color": None}, "--color none"),
    "four bands": Refused("words", "color='gray'", tif(noise(channels=4), photometric="rgb", extrasamples=["unspecified"]), "has 4 channels, and the segmenter takes 3", "--color rgb", coloured=True),
    "pages": Refused("words", "page=, 'channels'", tif(np.stack([GREY] * 5), photometric="minisblack"), "Say page=, the number of one, or page='channels'", "Say --page, the number of one, or --page channels"),
    "a page that isn't there": Refused("words", "at the end of all work", tif(np.stack([GREY] * 5), photometric="minisblack"), "has 5 pages, and page 7 was asked for", "has 5 pages, and page 7", {"page": 7}, "--page 7"),
    "not an image": Refused("words", "on_bad='skip'", lambda folder: (folder / "x.png").write_text("no image") and folder / "x.png", "on_bad='skip'", "--on-bad skip"),
    "a world file of five numbers": Refused("words", "not read", picture("x.jpg", Image.fromarray(GREY), {"x.jgw": "1 2 3 4 5"}), "world file, x.jgw, that doesn't hold six numbers", "x.jgw"),
    "overlap": Refused("words", "overlap=1.5", picture("x.png", Image.fromarray(GREY)), "overlap=1.5; expected", "--overlap 1.5; expected", {"overlap": 1.5}, "--overlap 1.5"),
    "tile": Refused("words", "tile=2", picture("x.png", Image.fromarray(GREY)), "tile=2; expected", "--tile 2; expected", {"tile": 2}, "--tile 2"),
    "a type": Refused("words", "no option", picture("x.png", Image.fromarray(GREY)), "dtype='float31' is no type of NumPy", "--dtype float31 is no type of NumPy; expected a name, such as", {"dtype": "float31"}, "--dtype float31"),
    "resize": Refused("words", "no option", picture("x.png", Image.fromarray(GREY)), r"resize=\(16, 8\); tiles are square", "--resize 16,8; tiles are square", {"resize": (16, 8), "tile": 32}, "--resize 16,8 --tile 32"),
    "too large for one piece": Refused("words", "no option", lambda folder: Image.new("L", (3000, 3000), 9).save(folder / "x.png") or folder / "x.png", "Say tile=, the side", "Say --tile, the side", {"tile": None}, "--tile none"),
    "more pixels than Pillow allows": Refused("pixels", "raise PIL.Image.MAX_IMAGE_PIXELS", large, "say max_pixels=, how many", "say --max-pixels, how many"),
    "a folder that can't be": Refused("folders", "Errno 20", picture("x.png", Image.fromarray(GREY)), "cannot be written .*: out=", "Choose another folder: --out"),
}


@pytest.fixture
def guarded(monkeypatch):
    "Pillow's guard against decompression bombs, so low that a test can reach it."
    def lower(n): monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", n)
    return lower


@pytest.mark.parametrize("name", REFUSED)
def test_each_message_is_worded_for_its_place(name, trained, coloured, tmp_path, capsys, guarded):
    case, out = REFUSED[name], tmp_path / "out"
    (tmp_path / "in").mkdir()
    path = case.write(tmp_path / "in")
    if case.kind == "folders": out = path / "out"
    if case.kind == "pixels": guarded(15_000)
    folder = coloured if case.coloured else trained
    with pytest.raises((ValueError, OSError), match=case.python), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_run(folder).predict(path, out, progress=False, **case.options)
    capsys.readouterr()
    assert main(["predict", str(folder), str(path), "--out", str(out), *case.words.split()]) == 2
    said = capsys.readouterr().err
    assert case.command_line in said and "='" not in said and "Traceback" not in said, said


@pytest.mark.parametrize("n", [40_000, "any"])
def test_large_images_are_read_where_that_is_meant(n, trained, tmp_path, guarded, capsys):
    path = large(tmp_path)
    guarded(10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        load_run(trained).predict(path, tmp_path / "python", progress=False, max_pixels=n)
        assert main(["predict", str(trained), str(path), "--out", str(tmp_path / "words"), "--max-pixels", str(n)]) == 0
    assert Image.MAX_IMAGE_PIXELS == 10_000
    with pytest.raises(ValueError, match="max_pixels=0; expected a whole number, at least 1, or 'any'"): load_run(trained).predict(path, tmp_path / "c", max_pixels=0)
    assert main(["predict", str(trained), str(path), "--out", str(tmp_path / "few"), "--max-pixels", "39999"]) == 2
    assert "--max-pixels" in capsys.readouterr().err


def test_what_is_left_out_is_said_in_words_of_the_place(trained, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    picture("a.png", Image.fromarray(GREY))(tmp_path / "in")
    picture("b.png", Image.fromarray(COLOUR))(tmp_path / "in")
    assert main(["predict", str(trained), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--skip-bad", "--color", "none"]) == 0
    assert "left out: " in (said := capsys.readouterr().err) and "--color gray" in said and "color=" not in said


@pytest.mark.parametrize("words, said", [
    ("--color pink", "expected gray, rgb or none"), ("--page many", "expected a whole number, or channels or none"),
    ("--resize 3,4,5", "expected PIXELS, HEIGHT,WIDTH or none"), ("--invalid black", "expected zero, a number, or none"),
    ("--measure all", "expected image, patch or none"), ("--regions lidar", "expected sonar or none"), ("--max-pixels many", "expected a whole number, or any"),
])
def test_options_that_cannot_be(words, said, trained, capsys):
    with pytest.raises(SystemExit) as stop: main(["predict", str(trained), "x.png", *words.split()])
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("regions, words", [("sonar", ["--regions", "sonar"])])
def test_sides_of_sonar_by_name(regions, words, trained, tmp_path):
    sonar = np.full((64, 150), 180, np.uint8) + noise(64, 150, high=60)
    sonar[:, 70:90] = 10
    Image.fromarray(sonar).save(tmp_path / "x.png")
    load_run(trained).predict(tmp_path / "x.png", tmp_path / "python", progress=False, regions=regions)
    assert main(["predict", str(trained), str(tmp_path / "x.png"), "--out", str(tmp_path / "words"), *words]) == 0
    for out in ("python", "words"): assert (np.asarray(Image.open(tmp_path / out / "masks" / "x.png"))[:, 72:88] == 127).all()


# ---- training

def mixed(folder):
    objects, backgrounds = write_folders(folder)
    Image.fromarray(noise(48, 48)).save(objects / "large.png")
    return objects, backgrounds


def several(folder):
    objects, backgrounds = write_folders(folder)
    for k in range(30): tifffile.imwrite(objects / f"a{k}.tif", np.stack([noise(SIDE, SIDE)] * 5), photometric="minisblack")
    return objects, backgrounds


def floats(folder):
    objects, backgrounds = write_folders(folder)
    for kind in (objects, backgrounds):
        for file in list(kind.iterdir()):
            np.save(file.with_suffix(".npy"), np.asarray(Image.open(file)).astype(np.float32) * 3)
            file.unlink()
    return objects, backgrounds


TRAINING = {
    "sizes": (mixed, "resize=(32, 32) (or crop=)", "'data.resize=[32, 32]' (or data.crop=)", ()),
    "colours": (lambda folder: write_folders(folder, mode="P"), "color='rgb' or color='gray'", "data.color=rgb or data.color=gray", ()),
    "pages": (several, "pages='images', pages='channels'", "data.pages=images, data.pages=channels", ()),
    "floats": (floats, "normalization=('range', low, high)", "'data.normalization=[range, low, high]'", ["data.normalization=unit"]),
}


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("command", ["train", "describe", "cluster"])
def test_training_speaks_of_settings(name, command, tmp_path, capsys):
    write, in_python, in_words, words = TRAINING[name]
    objects, backgrounds = write(tmp_path)
    folder = [] if command == "describe" else ["--folder", str(tmp_path / "run")]
    assert main([command, "--objects", str(objects), "--backgrounds", str(backgrounds), *folder, *words]) == 2
    said = capsys.readouterr().err
    assert in_words in said and in_python not in said, said
    with pytest.raises(ImageSetError) as raised: from_folders(objects, backgrounds)
    assert in_python in str(raised.value)


def test_large_images_are_trained_on_where_that_is_meant(tmp_path, guarded, capsys):
    objects, backgrounds = write_folders(tmp_path)
    guarded(400)
    command = ["describe", "--objects", str(objects), "--backgrounds", str(backgrounds)]
    assert main(command) == 2 and "say data.max_pixels=, how many" in capsys.readouterr().err
    assert main([*command, "data.max_pixels=1024"]) == 0 and main([*command, "data.max_pixels=any"]) == 0


# ---- folders that cannot be written

@pytest.fixture
def blocked(tmp_path):
    "A folder that nobody can make, not even the system's administrator."
    (tmp_path / "file").write_text("here")
    return tmp_path / "file" / "cache"


def test_a_cache_names_the_variable_that_moves_it(blocked, tmp_path, monkeypatch, capsys):
    "Before: [Errno 20] Not a directory."
    monkeypatch.setenv("BGCS_CACHE", str(blocked))
    folders = write_folders(tmp_path)
    with pytest.raises(OSError, match="cache cannot be written .*BGCS_CACHE"): from_folders(*folders, lazy=True).packed()
    settings = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    words = ["--objects", str(folders[0]), "--backgrounds", str(folders[1]), "--folder", str(tmp_path / "run"), "--quiet"]
    assert main(["train", *words, *settings, "data.lazy=true"]) == 2 and "BGCS_CACHE" in capsys.readouterr().err
    assert main(["describe", "shipwrecks", "data.standin=true"]) == 2 and "BGCS_CACHE" in capsys.readouterr().err


def test_a_run_folder_names_the_option_that_moves_it(blocked, tmp_path, capsys):
    folders = write_folders(tmp_path)
    with pytest.raises(OSError, match="run folder: folder="): train(*folders, folder=blocked, settings=TINY, progress=False)
    for option in ("--folder", "--runs"):
        assert main(["train", "--objects", str(folders[0]), "--backgrounds", str(folders[1]), option, str(blocked)]) == 2
        assert "--folder" in capsys.readouterr().err
    assert main(["notebook", __file__.replace(".py", ".ipynb")]) == 2


def test_downloads_name_the_variable_that_moves_them(blocked):
    from bgcs.data.datasets import MNISTOnTextures
    with pytest.raises(OSError, match="BGCS_DATA"): MNISTOnTextures(root=blocked, download=True)


# ---- exact cases of one function

@pytest.mark.parametrize("channels, kind", [(4, np.uint8), (4, np.uint16), (2, np.uint8), (4, bool)])
def test_alpha_of_arrays(channels, kind):
    most = True if kind is bool else np.iinfo(kind).max
    array = np.random.default_rng(0).integers(0, 2 if kind is bool else 200, (channels, 20, 30)).astype(kind)
    array[-1], array[-1, :5] = most, 0
    segmenter = Same(Normalization())
    segmenter.settings = {"channels": channels - 1}
    segmenter.predict = lambda images, flip="none": images[:, :1]
    assert np.isnan(predict_large(segmenter, array, channel_axis=0, tile=8)).sum() == 5 * 30
    if kind is bool: return
    array[-1] = 7  # neither clear nor opaque: a band of its own
    with pytest.raises(ImageSetError, match=f"has {channels} channels"): predict_large(segmenter, array, channel_axis=0, tile=8)


def test_a_masked_array_is_unseen_where_it_is_masked():
    image = np.ma.masked_greater(noise(40, 40), 250)
    mask = predict_large(Same(Normalization("zscore", of="image")), image, tile=16)
    assert (np.isnan(mask) == image.mask).all() and np.nanstd(mask) > 0.05


def test_predictions_are_seen_as_masks_again(trained, tmp_path):
    "Images with NIfTI, GeoTIFF and PNG masks: shown by `plot`, gone on with by their names."
    (tmp_path / "in").mkdir()
    for name in ("NIfTI, packed", "a GeoTIFF", "PNG and .pgw"): CASES[name].write(tmp_path / "in")
    found = load_run(trained).predict(tmp_path / "in", tmp_path / "out", progress=False)
    assert sorted(found.images["mask"]) == ["masks/x.nii.gz", "masks/x.png.png", "masks/x.tif.tif"] or found.images["mask"].nunique() == 3
    assert len(found.plot(3).axes) == 4
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "masks").iterdir()}
    load_run(trained).predict(tmp_path / "in", tmp_path / "out", progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "masks").iterdir()}


def test_on_which_pixel_size_runs_read(trained):
    "A run reads other images as its own: type, pages, number of pixels."
    from dataclasses import replace
    from bgcs.runs.runs import _tiling_of
    from bgcs.runs.settings import Data
    run = load_run(trained)
    options = run.settings.data.options | {"pages": "channels", "dtype": "float32", "max_pixels": 5, "color": "gray"}
    other = replace(run, settings=replace(run.settings, data=Data("folders", options)))
    found = _tiling_of(other, (1, 32, 32))
    assert (found["page"], found["dtype"], found["max_pixels"], found["color"]) == ("channels", "float32", 5, "gray")


def test_set_of_files_by_python(trained, tmp_path):
    "`predict_files` itself, with a segmenter from a file."
    path = CASES["JPEG and .jgw"].write(tmp_path)
    segmenter = Segmenter.load(trained / "model")
    found = predict_files(segmenter, [path], tmp_path / "out", tile=SIDE, threshold=0.0, progress=False)
    assert {"x", "y"} <= set(found.objects) and found.objects.epsg.isna().all() and torch.is_tensor(torch.zeros(1))
