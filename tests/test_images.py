"""Image sets: the table of arrays, folders, lists, tables and HDF5 files that are refused, and what is left of those that are mended."""
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from bgcs.data.files import ImageSetError
from bgcs.data.images import from_arrays, from_dataset, from_files, from_folders, from_hdf5, from_table

RNG = np.random.default_rng(0)


def noise(*shape): return RNG.random(shape, np.float32)


TWO = noise(2, 8, 8)
ARRAYS = [
    ("no background-only images", (TWO, TWO[:0]), {}),
    ("no object images", (TWO[:0], TWO), {}),
    ("1×8×8 and background-only images 3×8×8", (TWO, noise(2, 3, 8, 8)), {}),
    ("expected (2, 1, 8, 8)", (TWO, TWO), {"masks": noise(3, 8, 8)}),
    ("one kind of image only", (TWO, TWO), {"object_source": [0, 1]}),
    ("expected (2,)", (TWO, TWO), {"object_source": [0], "background_source": [0, 1]}),
    ("may not mean the same", (TWO, (255 * TWO).astype(np.uint8)), {}),
    ("expected [0, 1]", (255 * TWO, 255 * TWO), {}),
    ("(n, h, w)", (TWO[0], TWO[0]), {}),
    ("differ in shape", (np.array([np.zeros((3, 3)), np.zeros((4, 4))], dtype=object), TWO), {}),
    ("expected real numbers", (TWO.astype(complex), TWO), {}),
    ("channel_axis=", (noise(2, 8, 8, 8), noise(2, 8, 8, 8)), {}),
    ("on_bad='ignore' is not known", (TWO, TWO), {"on_bad": "ignore"}),
]


@pytest.mark.parametrize("says, arrays, options", ARRAYS, ids=[case[0] for case in ARRAYS])
def test_arrays_that_make_no_set(says, arrays, options):
    with pytest.raises(ValueError, match=re.escape(says)): from_arrays(*arrays, **options)


@pytest.mark.parametrize("shape, expected", [((8, 9, 3), (3, 8, 9)), ((3, 8, 9), (3, 8, 9)), ((32, 32, 7), (7, 32, 32))])
def test_layouts(shape, expected):
    data = from_arrays(noise(2, *shape), torch.from_numpy(noise(3, *shape)))
    assert data.shape == expected and len(data) == 5


def test_masks_of_arrays():
    masks = from_arrays(TWO, TWO, masks=np.stack([np.eye(8) * 255] * 2)).masks
    assert masks.dtype == torch.bool and masks[:2].sum() == 16 and not masks[2:].any()


def test_broken_arrays():
    broken = noise(4, 8, 8)
    broken[1, 2, 2], broken[3, 0, 0] = np.nan, np.inf
    what = r"(?s)2 of 6 images cannot be used.*background-only images\[1\] holds 1 values that are NaN"
    with pytest.raises(ImageSetError, match=what): from_arrays(TWO, broken)
    columns = {"masks": np.ones((2, 8, 8)), "object_source": [0, 1], "background_source": [2, 3, 4, 5]}
    with pytest.warns(UserWarning, match="left out"): some = from_arrays(TWO, broken, **columns, on_bad="skip")
    assert len(some) == len(some.masks) == 4 and some.source.tolist() == [0, 1, 2, 4] and len(some.skipped) == 2


@pytest.fixture
def folders(tmp_path):
    for kind in ("with", "without"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            image = RNG.integers(0, 256, (40, 48), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / kind / f"line{i // 2}_{i:04}.png")
    (tmp_path / "masks").mkdir()
    for file in (tmp_path / "with").iterdir():
        Image.fromarray(np.eye(40, 48, dtype=np.uint8)).save(tmp_path / "masks" / file.name)
    return tmp_path


def test_crop(folders): assert from_folders(folders / "with", folders / "without", crop=(32, 32)).shape == (1, 32, 32)


def test_names_that_both_folders_hold_are_told_apart(folders):
    same = from_folders(folders / "with", folders / "with" / ".." / "without")
    assert same.names[0] == "with/line0_0000.png" and same.names[6] == "without/line0_0000.png"


@pytest.mark.parametrize("objects, says", [
    ("empty", "holds no image"),
    ("nowhere", "is not a folder"),
    ("without", "named both as object images and as background-only images"),
])
def test_folders_that_make_no_set(objects, says, folders):
    (folders / "empty").mkdir()
    with pytest.raises(ImageSetError, match=says): from_folders(folders / objects, folders / "without")


def test_masks_that_are_missing_or_of_another_size(folders):
    three, mask = (folders / "with", folders / "without", folders / "masks"), folders / "masks" / "line0_0000.png"
    mask.unlink()
    with pytest.raises(ImageSetError, match="1 object images have no mask of the same name"): from_folders(*three)
    Image.fromarray(np.eye(10, dtype=np.uint8)).save(mask)
    with pytest.raises(ImageSetError, match="line0_0000.png is 10×10, and its image 40×48"): from_folders(*three)


@pytest.fixture
def stacks(tmp_path):
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for file in files:
        tifffile.imwrite(file, RNG.integers(0, 255, (3, 30, 40), dtype=np.uint8), photometric="minisblack")
    return files


def test_pages(stacks):
    slices = from_files(stacks, [1, 0], pages="images")
    assert len(slices) == 6 and slices.names[4].endswith("b.tif (page 1)")
    assert from_files(stacks, [1, 0], pages="channels").shape == (3, 30, 40)
    assert from_files(stacks, [1, 0], pages=2).shape == (1, 30, 40)


@pytest.mark.parametrize("says, presence, options", [
    ("pages='images'", [1, 0], {}),
    ("pages='all'; expected 'images', 'channels' or a number", [1, 0], {"pages": "all"}),
    ("presence values are not binary", [1, 2], {"pages": 0}),
    ("a.tif: presence is 'maybe'", ["maybe", "0"], {"pages": 0}),
    ("2 files and 3 entries of source", [1, 0], {"pages": 0, "source": [1, 2, 3]}),
    ("on_bad='ignore'", [1, 0], {"pages": 0, "on_bad": "ignore"}),
    ("resize=(0, 5)", [1, 0], {"pages": 0, "resize": (0, 5)}),
])
def test_lists_that_make_no_set(says, presence, options, stacks):
    with pytest.raises(ValueError, match=re.escape(says)): from_files(stacks, presence, **options)


def test_an_empty_list():
    with pytest.raises(ImageSetError, match="There are no files to read"): from_files([], [])


NAMES = [f"line{i // 2}_{i:04}.png" for i in range(6)]
FILES = [f"with/{name}" for name in NAMES] + [f"without/{name}" for name in NAMES]
TABLE = pd.DataFrame({"file": FILES, "presence": ["yes"] * 6 + ["no"] * 6})
WITH_MASKS = TABLE.assign(mask=[f"masks/{name}" for name in NAMES] + [None] * 6)


def test_tables(folders):
    by_folders = from_folders(folders / "with", folders / "without", folders / "masks")
    assert torch.equal(from_table(TABLE.assign(presence=TABLE.presence == "yes"), folders).images, by_folders.images)
    assert torch.equal(from_table(WITH_MASKS, folders).masks, by_folders.masks)
    assert from_table(WITH_MASKS.assign(mask=None), folders).masks is None


@pytest.mark.parametrize("says, table, options", [
    ("no column 'label'", TABLE, {"presence": "label"}),
    ("row 2: ", TABLE.assign(file=TABLE.file.where(TABLE.index != 1, "gone.png")), {}),
    ("row 2: no file named", TABLE.assign(file=TABLE.file.where(TABLE.index != 1, None)), {}),
    ("row 2: no file named", TABLE.assign(file=TABLE.file.where(TABLE.index != 1, None)), {"on_bad": "skip"}),
    ("or twice", pd.concat([TABLE, TABLE[:1]]), {}),
    ("1 object images have no mask, where others have", WITH_MASKS.assign(mask=WITH_MASKS["mask"].where(TABLE.index != 2, None)), {}),
    ("The table has no rows", TABLE[:0], {}),
])
def test_tables_that_make_no_set(says, table, options, folders):
    with pytest.raises(ImageSetError, match=says): from_table(table, folders, **options)


@pytest.fixture
def hdf5(tmp_path):
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        file["amplitude"], file["debris"] = 9000 * noise(12, 40, 48), np.arange(12) < 6
        file["line"], file["marks"] = np.arange(12), np.zeros((12, 40, 40))
    return tmp_path / "survey.h5"


@pytest.mark.parametrize("says, names, options", [
    ("holds no data set 'images'", (), {}),
    ("(n, h, w)", ("line", "debris"), {}),
    ("not binary", ("amplitude", "line"), {"normalization": "zscore"}),
    ("expected [0, 1]", ("amplitude", "debris"), {}),
    ("expected [0, 1]", ("amplitude", "debris"), {"lazy": True}),
    ("12 masks of 1×40×40 for 12 images of 1×40×48", ("amplitude", "debris"), {"masks": "marks"}),
])
def test_hdf5_that_makes_no_set(says, names, options, hdf5, tmp_path):
    with pytest.raises(ImageSetError, match=re.escape(says)): from_hdf5(hdf5, *names, **options).packed(tmp_path / "cache")


def test_hdf5_that_is_cut_short(hdf5):
    hdf5.write_bytes(hdf5.read_bytes()[:5000])
    with pytest.raises(ImageSetError, match="damaged or cut short"): from_hdf5(hdf5)


def test_data_sets_of_torchvisions_kind():
    def shows(target): return target == 0
    pairs = [(Image.fromarray(RNG.integers(0, 256, (32, 32), dtype=np.uint8)), k % 3) for k in range(12)]
    made = from_dataset(pairs, presence=shows, source=lambda target: target)
    assert int(made.presence.sum()) == 4 and sorted(made.source.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    pairs[5] = Image.new("L", (40, 32)), 0
    forms = re.escape("Images of the data set differ: (1, 32, 32) uint8, (1, 32, 40) uint8")
    with pytest.raises(ImageSetError, match=forms): from_dataset(pairs, presence=shows)


@pytest.mark.parametrize("n, columns, pictures", [(20, 10, 30), (4, 10, 8), (7, 3, 18), (1, 1, 2)])
def test_rows_of_a_plot_hold_one_kind_each(n, columns, pictures):
    data = from_arrays(noise(9, 8, 8), noise(30, 8, 8))
    shown = [ax.images[0].get_array() for ax in data.plot(n, columns).axes]
    columns = min(columns, n)
    rows_of_objects = -(-min(n, 9) // columns)
    assert len(shown) == pictures and pictures % columns == 0
    assert np.allclose(shown[0], data.images[0, 0])
    assert np.allclose(shown[columns * rows_of_objects], data.images[9, 0])
    assert sum((image == 1).all() for image in shown) == pictures - min(n, 9) - n  # blanks that fill a row


def test_a_plot_of_one_kind():
    data = from_arrays(noise(9, 8, 8), noise(9, 8, 8))
    assert len(data.objects.plot(6).axes) == 6 and len(data.backgrounds.plot(6, columns=2).axes) == 6
