"""Every kind of bad image file: the complaint that names it, and what `on_bad='skip'` leaves.

Each case adds something to a sound set of six object images and six background-only images, by folders. The table says what is added, what
the one error must say, and how many images are left out when asked to skip.
"""
import os
import re
import struct
import zlib

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays, from_folders, from_hdf5, from_table
from bgcs.masks.segment import Segmenter

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 32, 40), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)


def says(*texts):
    "A pattern for `pytest.raises`: these texts, in this order."
    return "(?s)" + ".*".join(map(re.escape, texts))


def png(path, array):
    Image.fromarray(array).save(path)
    return path


def tiff(path, array):
    tifffile.imwrite(path, array, photometric="minisblack")
    return path


def cut(path, size): path.write_bytes(path.read_bytes()[:size])


def bomb(path):
    "A PNG of a few bytes whose header declares 3,600 million pixels."
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def npy(path, value):
    array = RNG.random((32, 40)).astype(np.float32)
    array[3, 5] = value
    np.save(path, array)


def pickled(path): np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def three(folder):
    for name in ("x.png", "y z.png", "größe.tif"): (folder / name).touch()


CASES = {  # what is added to the folder `without`; what the error says, in this order; how many images are left out
    "truncated PNG": (lambda f: cut(png(f / "bad.png", NOISE[0]), 300), ["bad.png", "damaged or cut short", "Copy it again"], 1),
    "truncated JPEG": (lambda f: cut(png(f / "bad.jpg", NOISE[0]), 600), ["bad.jpg", "damaged or cut short"], 1),
    "truncated TIFF": (lambda f: cut(tiff(f / "bad.tif", NOISE[0]), 600), ["bad.tif", "damaged or cut short"], 1),
    "zero bytes": (lambda f: (f / "bad.png").touch(), ["bad.png is empty (0 bytes)"], 1),
    "text named .png": (lambda f: (f / "bad.png").write_text("Milk."), ["bad.png is not an image, whatever its name says"], 1),
    "text named .npy": (lambda f: (f / "bad.npy").write_text("Milk."), ["bad.npy"], 1),
    "pickled .npy": (lambda f: pickled(f / "bad.npy"), ["bad.npy holds Python objects, which are never loaded"], 1),
    "decompression bomb": (lambda f: bomb(f / "bad.png"), ["bad.png declares", "decompression bomb"], 1),
    "one pixel": (lambda f: png(f / "bad.png", NOISE[0, :1, :1]), ["bad.png is 1×1 pixels; expected at least 4 a side"], 1),
    "NaN": (lambda f: npy(f / "bad.npy", np.nan), ["bad.npy holds 1 values that are NaN or infinite"], 1),
    "infinity": (lambda f: npy(f / "bad.npy", np.inf), ["bad.npy holds 1 values that are NaN or infinite"], 1),
    "an object image of one value": (lambda f: png(f.parent / "with" / "bad.png", np.full((32, 40), 7, np.uint8)), ["bad.png is 7 everywhere"], 1),
    "mixed sizes": (lambda f: png(f / "bad.png", NOISE[0, :20]), ["1 channel, 20×40, uint8: 1 images", "resize=(32, 40)", "crop="], 1),
    "mixed channels": (lambda f: png(f / "bad.png", COLOUR), ["3 channels, 32×40, uint8: 1 images", "color='gray'"], 1),
    "mixed types": (lambda f: png(f / "bad.png", NOISE[0].astype(np.uint16) * 100), ["uint16: 1 images", "dtype='float32'"], 1),
    "palette": (lambda f: Image.fromarray(COLOUR).convert("P").save(f / "bad.png"),
                ["bad.png has a colour palette. Say color='rgb' or color='gray'"], 1),
    "CMYK JPEG": (lambda f: Image.fromarray(COLOUR).convert("CMYK").save(f / "bad.jpg"),
                  ["bad.jpg has colours in CMYK. Say color='rgb'"], 1),
    "several pages": (lambda f: tiff(f / "bad.tif", NOISE[:5]), ["bad.tif has 5 pages. Say pages='images'"], 1),
    "link to itself": (lambda f: (f / "bad.png").symlink_to(f / "bad.png"), ["bad.png is a symbolic link that leads to itself"], 1),
    "link to nothing": (lambda f: (f / "bad.png").symlink_to(f / "gone"), ["bad.png is not there"], 1),
    "folder loop": (lambda f: (f / "below").symlink_to(f), ["below/ is a symbolic link that leads back to a folder above it"], 1),
    "three at once": (three, ["3 of 15 images", "größe.tif", "x.png", "y z.png"], 3),
}


@pytest.fixture
def folders(tmp_path):
    for k, kind in enumerate(("with", "without")):
        (tmp_path / kind).mkdir()
        for i in range(6): png(tmp_path / kind / f"image {i} é.png", NOISE[6 * k + i])
    return tmp_path / "with", tmp_path / "without"


def open_all(folders, **options): return from_folders(*folders, normalization="percentile", **options)


@pytest.mark.parametrize("lazy", [False, True], ids=["at once", "lazily"])
@pytest.mark.parametrize("case", CASES)
def test_bad_file(case, lazy, folders, tmp_path):
    make, texts, left_out = CASES[case]
    make(folders[1])
    with pytest.raises(ImageSetError, match=says(*texts)): open_all(folders, lazy=lazy).packed(tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/images.npy"))  # nothing half-done stays
    with pytest.warns(UserWarning, match=f"{left_out} images"):
        kept = open_all(folders, lazy=lazy, on_bad="skip").packed(tmp_path / "cache")
    assert len(kept) == 12 and len(kept.skipped) == left_out and kept.images[:].shape == (12, 1, 32, 40)
    assert len(kept.objects) == len(kept.backgrounds) == 6


def cluster(data): BackgroundClusterer(2).fit(data)
def segment(data): Segmenter().fit(data, np.zeros(13))


@pytest.mark.parametrize("train", [cluster, segment])
def test_bad_file_before_training(train, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("BGCS_CACHE", str(tmp_path / "cache"))
    def no_training(*args, **kw): raise AssertionError("training began")
    monkeypatch.setattr("lightning.Trainer.fit", no_training)
    (folders[1] / "bad.png").write_text("no")
    with pytest.raises(ImageSetError, match="bad.png is not an image"): train(open_all(folders, lazy=True))


@pytest.mark.posix
def test_unreadable_permissions(folders, tmp_path):
    png(folders[1] / "bad.png", NOISE[0]).chmod(0)
    with unprivileged(tmp_path):
        with pytest.raises(ImageSetError, match="bad.png may not be read by this user"): open_all(folders)
        with pytest.warns(UserWarning, match="1 images"): assert len(open_all(folders, on_bad="skip")) == 12


class unprivileged:
    "Where the tests run as root, whom no permission stops, they become nobody for a while."
    def __init__(self, folder): self.folder = folder

    def __enter__(self):
        self.root = os.geteuid() == 0
        if self.root:
            for path in (self.folder, *self.folder.parents[:3]):
                if str(path).startswith(str(self.folder.parents[2])): os.chmod(path, 0o755)
            os.seteuid(65534)

    def __exit__(self, *_):
        if self.root: os.seteuid(0)


def test_accepted(folders):
    "EXIF orientation is applied; names may hold spaces and letters of any language."
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(NOISE[0])).save(folders[1] / "turned ü.jpg", exif=exif, quality=100)
    data = open_all(folders)
    assert data.shape == (1, 32, 40) and len(data) == 13
    assert abs(data.images[list(data.names).index("without/turned ü.jpg")] - data.images[0]).mean() < 0.02


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_1_or_255(value, folders, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(6): png(masks / f"image {i} é.png", np.eye(32, 40, dtype=np.uint8) * value)
    assert open_all(folders, mask_folder=masks).masks.sum() == 6 * 32
    png(masks / "image 2 é.png", np.eye(30, dtype=np.uint8))
    with pytest.raises(ImageSetError, match="masks/image 2 é.png is 30×30, and its image 32×40"): open_all(folders, mask_folder=masks)
    with pytest.warns(UserWarning): assert len(open_all(folders, mask_folder=masks, on_bad="skip").objects) == 5


def rows_of(folders):
    files = [f"{folder.name}/{file.name}" for folder in folders for file in folder.iterdir()]
    return pd.DataFrame({"file": sorted(files), "presence": [1] * 6 + [0] * 6})


def with_a_gap(rows): return pd.concat([rows, pd.DataFrame({"file": ["without/gone.png"], "presence": [0]})])
def with_doubt(rows): return rows.assign(presence=rows.presence.astype(object).where(rows.index != 3, "perhaps"))


@pytest.mark.parametrize("change, texts", [
    (with_a_gap, ["1 files of the table are not in", "row 13", "gone.png"]),
    (with_doubt, ["1 presence values are not binary", "image 3 é.png: presence is 'perhaps'"]),
    (lambda rows: rows.assign(presence=2), ["presence is '2'"]),
    (lambda rows: rows.assign(presence=0), ["no object images"]),
    (lambda rows: rows[["file"]], ["no column 'presence'"]),
])
def test_tables(change, texts, folders, tmp_path):
    rows = rows_of(folders)
    assert len(from_table(rows, tmp_path)) == 12
    with pytest.raises(ImageSetError, match=says(*texts)): from_table(change(rows), tmp_path)


@pytest.mark.parametrize("change, kept", [(with_a_gap, 12), (with_doubt, 11)])
def test_tables_of_which_some_rows_are_left_out(change, kept, folders, tmp_path):
    with pytest.warns(UserWarning): assert len(from_table(change(rows_of(folders)), tmp_path, on_bad="skip")) == kept


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(ImageSetError, match="t.csv cannot be read as CSV"): from_table(tmp_path / "t.csv", tmp_path)


def write_hdf5(path, images=NOISE, presence=np.arange(12) < 6):
    with h5py.File(path, "w") as file: file["images"], file["presence"] = images, presence
    return path


def test_hdf5(tmp_path):
    good = write_hdf5(tmp_path / "good.h5")
    assert len(from_hdf5(good)) == 12
    with pytest.raises(ImageSetError, match="holds no data set 'pictures'; it holds 'images', 'presence'"): from_hdf5(good, "pictures")
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:good.stat().st_size // 2])
    with pytest.raises(ImageSetError, match=says("cut.h5", "damaged or cut short", "Copy it again")): from_hdf5(tmp_path / "cut.h5")
    five = write_hdf5(tmp_path / "five.h5", presence=np.ones(5))
    with pytest.raises(ImageSetError, match=says("shape (5,); expected (12,)")): from_hdf5(five)
    seven = write_hdf5(tmp_path / "seven.h5", presence=np.where(np.arange(12) == 3, 7, np.arange(12) < 6))
    with pytest.raises(ImageSetError, match=says("presence[3]: presence is '7'")): from_hdf5(seven)
    with pytest.warns(UserWarning): assert len(from_hdf5(seven, on_bad="skip")) == 11


def test_hdf5_that_points_at_other_files(tmp_path):
    good = write_hdf5(tmp_path / "good.h5")
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["images"], file["presence"] = h5py.ExternalLink("good.h5", "images"), np.arange(12) < 6
    with pytest.raises(ImageSetError, match=says("is a link to another file (good.h5), which is not followed")):
        from_hdf5(tmp_path / "links.h5")
    with h5py.File(tmp_path / "group.h5", "w") as file: file["all"] = h5py.ExternalLink("good.h5", "/")
    with pytest.raises(ImageSetError, match="is a link to another file"): from_hdf5(tmp_path / "group.h5", "all/images", "all/presence")
    layout = h5py.VirtualLayout((12, 32, 40), np.uint8)
    layout[:] = h5py.VirtualSource(str(good), "images", (12, 32, 40))
    with h5py.File(tmp_path / "virtual.h5", "w") as file: file.create_virtual_dataset("images", layout)
    with pytest.raises(ImageSetError, match="keeps its values in other files, which are not read"): from_hdf5(tmp_path / "virtual.h5")


@pytest.mark.parametrize("lazy", [False, True], ids=["at once", "lazily"])
def test_hdf5_with_bad_images(lazy, tmp_path):
    floats = RNG.random((12, 32, 40))
    floats[4, 0, 0], floats[3], floats[7] = np.nan, 0.3, 0.3  # the eighth is a background, which may be blank
    broken = write_hdf5(tmp_path / "nan.h5", floats)
    texts = "2 of 12 images", "images[3] is 0.3 everywhere", "images[4] holds 1 values that are NaN"
    with pytest.raises(ImageSetError, match=says(*texts)): from_hdf5(broken, lazy=lazy).packed(tmp_path / "cache")
    with pytest.warns(UserWarning): kept = from_hdf5(broken, on_bad="skip", lazy=lazy).packed(tmp_path / "cache")
    assert len(kept) == 10


def test_scale_is_never_guessed():
    with pytest.raises(ImageSetError, match=says("floats from", "expected [0, 1]", "normalization=")):
        from_arrays(255 * RNG.random((3, 9, 9)), 255 * RNG.random((3, 9, 9)))
    with pytest.raises(ImageSetError, match="int64, whose range no instrument fills"): from_arrays(NOISE.astype(np.int64), NOISE.astype(np.int64))
