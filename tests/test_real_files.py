"""Files as people really have them: case, what became of it before, and what becomes of it now.

Each case is written by a real writer, read by `read_image`, opened as a set, and described on the command line. What is unseen must be
where it is expected, must not count in what is measured for normalisation, and is no part of a patch or of a predicted mask.
"""
import io
import os
import re
import struct
import subprocess
import sys
from importlib.util import find_spec

import h5py
import imagecodecs
import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, generate_uid

from bgcs.data.files import SUFFIXES, ImageSetError, find_images, image_info, read_image
from bgcs.data.images import from_arrays, from_folders, from_hdf5
from bgcs.data.intensity import as_normalization
from bgcs.data.patches import cut_patches
from bgcs.masks.predict import predict_large
from bgcs.runs.cli import main

SIZE = 48
UNSEEN = np.zeros((SIZE, SIZE), bool)  # the corner that a survey doesn't reach, and a hole
UNSEEN[:12, :30] = UNSEEN[30:33, 40:44] = True


def grey(k): return np.random.default_rng(k).integers(30, 200, (SIZE, SIZE), dtype=np.uint8)
def colours(k, n=3): return np.random.default_rng(k).integers(30, 200, (SIZE, SIZE, n), dtype=np.uint8)
def first(array): return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def told(text): return {"extratags": [(42113, "s", 0, text, True)]}


def nodata(dtype, value, text, unseen=UNSEEN):
    "A TIFF in whose tag 42113 stands the number that means no data."
    def write(stem, k):
        values = np.where(UNSEEN, np.array(value, dtype), grey(k).astype(dtype))
        tifffile.imwrite(f"{stem}.tif", values, **told(text))
        return f"{stem}.tif", first(values), unseen
    return write


def black(stem, k):
    "Black is no data in a photograph, and a pixel without red is not black."
    values = np.where(UNSEEN[..., None], 0, colours(k)).astype(np.uint8)
    values[40, 5, 0] = 0
    tifffile.imwrite(f"{stem}.tif", values, photometric="rgb", **told("0"))
    return f"{stem}.tif", first(values), UNSEEN


def bands(stem, k):
    "One of seven bands lacks data: nothing of such a pixel is used."
    values = np.repeat(grey(k)[None].astype(np.int16), 7, 0)
    values[3][UNSEEN] = -9999
    tifffile.imwrite(f"{stem}.tif", values, photometric="minisblack", planarconfig="separate", **told("-9999"))
    return f"{stem}.tif", values, UNSEEN


def laid_out(n=3, mask=True, overviews=(), thumbnail=False, deep_mask=False, plain=None):
    "A TIFF with pages that only accompany the image."
    def write(stem, k):
        values = grey(k) if n == 1 else colours(k, n)
        seen = (255 * ~UNSEEN).astype(np.uint8) if deep_mask else ~UNSEEN
        kind = {"photometric": "rgb" if n > 2 else "minisblack", "metadata": plain}
        if n == 4: kind["extrasamples"] = ["unspecified"]
        with tifffile.TiffWriter(f"{stem}.tif") as file:
            if thumbnail: file.write(values[::5, ::5], subfiletype=1, **kind)
            file.write(values, **kind)
            if mask: file.write(seen, subfiletype=1 if deep_mask else 4, photometric="minisblack" if deep_mask else "mask", metadata=plain)
            for by in overviews: file.write(values[::by, ::by], subfiletype=1, **kind)
            for by in overviews if mask else (): file.write(seen[::by, ::by], subfiletype=5, photometric="mask", metadata=plain)
        if deep_mask:  # which tifffile doesn't write
            with tifffile.TiffFile(f"{stem}.tif", mode="r+") as file: file.pages[1].tags["NewSubfileType"].overwrite(4)
        return f"{stem}.tif", first(values), UNSEEN if mask else None
    return write


def by_gdal(n=3, mask=True, overviews=(), inside=True, dtype=np.uint8, lacking=None, driver="GTiff"):
    "The same by GDAL, whose way it is."
    def write(stem, k):
        rasterio = pytest.importorskip("rasterio")
        values = first(grey(k) if n == 1 else colours(k, n)).astype(dtype)
        suffix = {"GTiff": "tif", "PNG": "png"}[driver]
        if lacking is not None: values[:, UNSEEN] = lacking
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
            form = {"driver": driver, "count": n, "height": SIZE, "width": SIZE, "dtype": values.dtype, "nodata": lacking,
                    "transform": rasterio.transform.from_origin(500, 900, 2, 2)}
            with rasterio.open(f"{stem}.{suffix}", "w", **form) as file:
                file.write(values)
                if mask: file.write_mask(~UNSEEN)
            if overviews:
                with rasterio.open(f"{stem}.{suffix}", "r+") as file: file.build_overviews(overviews)
        return f"{stem}.{suffix}", values, UNSEEN if mask or lacking is not None else None
    return write


def mask_beside(suffix):
    def write(stem, k):
        Image.fromarray(grey(k)).save(f"{stem}{suffix}") if suffix != ".tif" else tifffile.imwrite(f"{stem}.tif", grey(k))
        tifffile.imwrite(f"{stem}{suffix}.msk", (255 * ~UNSEEN).astype(np.uint8))
        values = np.asarray(Image.open(f"{stem}{suffix}"))
        return f"{stem}{suffix}", first(values), UNSEEN
    return write


def number_beside(stem, k):
    values = np.where(UNSEEN, 7, grey(k)).astype(np.uint8)
    Image.fromarray(values).save(f"{stem}.png")
    with open(f"{stem}.png.aux.xml", "w") as file:
        file.write('<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>')
    return f"{stem}.png", first(values), UNSEEN


def palette(stem, k):
    table = np.random.default_rng(9).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(f"{stem}.tif", grey(k), photometric="palette", colormap=table * 257)
    return f"{stem}.tif", table[:, grey(k)].astype(np.uint8), None


def pillow(suffix, values=grey, **options):
    def write(stem, k):
        Image.fromarray(values(k)).save(f"{stem}{suffix}", **options)
        with Image.open(f"{stem}{suffix}") as file: back = np.asarray(file.convert("L" if values is grey else "RGB"))
        if options.get("lossless", True): assert np.array_equal(back, values(k))
        return f"{stem}{suffix}", first(back), None
    return write


def written(suffix, encode):
    "Files whose bytes are made here; `encode` gives them and the numbers they must give."
    def write(stem, k):
        content, values = encode(k)
        with open(f"{stem}{suffix}", "wb") as file: file.write(content)
        return f"{stem}{suffix}", first(values), None
    return write


def netpbm(k, colour):
    values = (colours(k) if colour else grey(k)).astype(np.uint16) * 16 + 3
    return b"P%d\n# by a camera of 12 bits\n%d %d\n4095\n" % (6 if colour else 5, SIZE, SIZE) + values.astype(">u2").tobytes(), values


def deep_jp2(k):
    values = colours(k).astype(np.uint16) * 200 + 7
    return imagecodecs.jpeg2k_encode(values, level=0, codecformat="jp2"), values


def scan(values, syntax=ExplicitVRLittleEndian, **elements):
    "A DICOM of these numbers."
    image, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid(), syntax
    image.file_meta, image.SOPClassUID, image.SOPInstanceUID = meta, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = *values.shape[:2], 1, "MONOCHROME2"
    image.BitsAllocated = 8 * values.dtype.itemsize
    if values.dtype.kind == "f":
        name = {4: "FloatPixelData", 8: "DoubleFloatPixelData"}[values.dtype.itemsize]
        setattr(image, name, values.tobytes())
    else:
        image.BitsStored, image.HighBit, image.PixelRepresentation = image.BitsAllocated, image.BitsAllocated - 1, 0
        image.PixelData = values.tobytes()
    for name, value in elements.items(): setattr(image, name, value)
    return image


def dicom(suffix, dtype=np.uint16, **elements):
    def write(stem, k):
        scan(grey(k).astype(dtype), **elements).save_as(f"{stem}{suffix}", enforce_file_format=True)
        return f"{stem}{suffix}", first(grey(k).astype(dtype)), None
    return write


def bare(suffix, implicit):
    "Without preamble and without the group of the file's own facts."
    def write(stem, k):
        image = scan(grey(k))
        del image.file_meta
        image.save_as(f"{stem}{suffix}", implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        return f"{stem}{suffix}", first(grey(k)), None
    return write


def dicom_palette(stem, k):
    tables = np.random.default_rng(3).integers(0, 65536, (3, 256), np.uint16)
    found = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in zip(("Red", "Green", "Blue"), tables):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        found[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    scan(grey(k), **found).save_as(f"{stem}.dcm", enforce_file_format=True)
    return f"{stem}.dcm", tables[:, grey(k)], None


def compressed(syntax, encode):
    def write(stem, k):
        image = scan(grey(k), syntax)
        image.PixelData = encapsulate([encode(grey(k))])
        image["PixelData"].is_undefined_length = True
        image.save_as(f"{stem}.dcm", enforce_file_format=True)
        return f"{stem}.dcm", first(grey(k)), None
    return write


def jp2(values):
    out = io.BytesIO()
    Image.fromarray(values).save(out, "JPEG2000", irreversible=False)
    return out.getvalue()


def renamed(inner, suffix):
    "A file whose name says another kind."
    def write(stem, k):
        path, values, unseen = inner(stem, k)
        os.rename(path, f"{stem}{suffix}")
        return f"{stem}{suffix}", values, unseen
    return write


def nifti_colours(stem, k):
    values = colours(k).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), f"{stem}.nii.gz")
    return f"{stem}.nii.gz", first(colours(k)), None


LOWEST = np.finfo(np.float32).min
CASES = {  # case: (what it was before, who writes it); now it gives the numbers that went in, and hides what is unseen
    "nodata -9999, int16": ("-9999 among the numbers", nodata(np.int16, -9999, "-9999")),
    "nodata 0, uint8": ("0 among the numbers", nodata(np.uint8, 0, "0")),
    "nodata 255.0, uint8": ("255 among the numbers", nodata(np.uint8, 255, "255.0")),
    "nodata -9999, uint8, which can't hold it": ("as it is", nodata(np.uint8, 77, "-9999", None)),
    "nodata n/a, which is no number": ("as it is", nodata(np.uint8, 77, "n/a", None)),
    "nodata -3.4e38": ("-3.4e38 among the numbers", nodata(np.float32, LOWEST, "-3.4e38")),
    "nodata -3.4028234663852886e+38": ("-3.4e38 among the numbers", nodata(np.float32, LOWEST, "-3.4028234663852886e+38")),
    "nodata -3.4028234663852886e+38, float64": ("-3.4e38 among the numbers", nodata(np.float64, LOWEST, "-3.40282346638529e+38")),
    "nodata -1.79769313486232e+308": ("-1.8e308 among the numbers", nodata(np.float64, np.finfo(float).min, "-1.79769313486232e+308")),
    "nodata 1e20": ("1e20 among the numbers", nodata(np.float32, 1e20, "1e+20")),
    "nodata 0.1": ("0.1 among the numbers", nodata(np.float32, 0.1, "0.1")),
    "nodata nan": ("refused: NaN", nodata(np.float32, np.nan, "nan")),
    "nodata -1.#QNAN, as Windows wrote it": ("refused: NaN", nodata(np.float32, np.nan, "-1.#QNAN")),
    "nodata 65535, uint16": ("65535 among the numbers", nodata(np.uint16, 65535, "65535")),
    "nodata 0 of a photograph": ("black among the colours", black),
    "nodata in one of seven bands": ("-9999 among the numbers", bands),
    "nodata in .aux.xml": ("7 among the numbers", number_beside),
    "mask inside": ("refused: 2 pages", laid_out()),
    "mask and overviews, each with masks": ("refused: 2 pages", laid_out(overviews=(2, 4))),
    "four bands and a mask": ("refused: 2 pages", laid_out(4)),
    "overviews by 4": ("read, by new versions of tifffile", laid_out(mask=False, overviews=(4,))),
    "overviews by 8": ("refused: 2 pages", laid_out(mask=False, overviews=(8,))),
    "overviews by 2 and 12, in tifffile's own layout": ("refused: 2 pages", laid_out(mask=False, overviews=(2, 12), plain={})),
    "grey, mask of 8 bits": ("refused: 2 pages", laid_out(1, deep_mask=True)),
    "grey, mask, overviews by 3": ("refused: 2 pages", laid_out(1, overviews=(3,))),
    "thumbnail first": ("refused: 2 pages", laid_out(mask=False, thumbnail=True)),
    "thumbnail, mask, overviews": ("refused: 3 pages", laid_out(thumbnail=True, overviews=(2, 4))),
    "GDAL: mask": ("refused: 2 pages", by_gdal()),
    "GDAL: mask and overviews each with masks": ("refused: 2 pages", by_gdal(overviews=[2, 4])),
    "GDAL: four bands and a mask": ("refused: 2 pages", by_gdal(4)),
    "GDAL: four bands, mask, overviews": ("refused: 2 pages", by_gdal(4, overviews=[2])),
    "GDAL: overviews by 4": ("read, by new versions of tifffile", by_gdal(mask=False, overviews=[4])),
    "GDAL: overviews by 5 and 16, grey": ("refused: 2 pages", by_gdal(1, mask=False, overviews=[5, 16])),
    "GDAL: grey, uint16, mask, overviews by 4": ("refused: 2 pages", by_gdal(1, overviews=[4], dtype=np.uint16)),
    "GDAL: mask beside": ("unseen pixels as they are", by_gdal(inside=False)),
    "GDAL: lowest float32": ("-3.4e38 among the numbers", by_gdal(1, mask=False, dtype=np.float32, lacking=float(LOWEST))),
    "GDAL: nodata of a PNG": ("0 among the numbers", by_gdal(1, mask=False, lacking=0, driver="PNG")),
    ".tif.msk": ("unseen pixels as they are", mask_beside(".tif")),
    ".png.msk": ("unseen pixels as they are", mask_beside(".png")),
    ".jpg.msk": ("unseen pixels as they are", mask_beside(".jpg")),
    "palette TIFF": ("indices", palette),
    ".webp": ("passed over", pillow(".webp", colours, lossless=True)),
    ".gif": ("passed over", pillow(".gif")),
    ".jfif": ("passed over", pillow(".jfif", colours, lossless=False)),
    ".jpe": ("passed over", pillow(".jpe", lossless=False)),
    ".pgm": ("passed over", pillow(".pgm")),
    ".ppm": ("passed over", pillow(".ppm", colours)),
    ".pgm of 12 bits": ("passed over", written(".pgm", lambda k: netpbm(k, False))),
    ".ppm of 12 bits": ("passed over", written(".ppm", lambda k: netpbm(k, True))),
    ".jp2": ("passed over", pillow(".jp2", irreversible=False)),
    ".j2k": ("passed over", pillow(".j2k", colours, irreversible=False)),
    ".jp2, colours of 16 bits": ("passed over", written(".jp2", deep_jp2)),
    ".tga": ("passed over", pillow(".tga", colours)),
    ".pcx": ("passed over", pillow(".pcx")),
    ".sgi": ("passed over", pillow(".sgi", colours)),
    ".dib": ("passed over", pillow(".dib", colours)),
    "PNG named .tif": ("refused: damaged", renamed(pillow(".png"), ".tif")),
    "JPEG named .png": ("read", renamed(pillow(".jpg", lossless=False), ".png")),
    "TIFF of 32 bits named .png": ("read", renamed(nodata(np.float32, 5, "5"), ".png")),
    "DICOM without suffix": ("passed over", dicom("")),
    "DICOM named by numbers": ("passed over", dicom(".840.113.1")),
    "DICOM without preamble": ("refused: damaged", bare(".dcm", True)),
    "DICOM without preamble or suffix": ("passed over", bare("", True)),
    "DICOM without preamble or suffix, explicit types": ("passed over", bare("", False)),
    "DICOM of floats": ("refused: damaged", dicom(".dcm", np.float32)),
    "DICOM of double floats": ("refused: damaged", dicom(".dcm", np.float64)),
    "DICOM with a palette": ("indices", dicom_palette),
    "DICOM, JPEG 2000": ("read", compressed(JPEG2000Lossless, jp2)),
    "NIfTI of colours": ("a traceback", nifti_colours),
}


def hidden(image): return np.ma.getmaskarray(image).any(0) if np.ma.is_masked(image) else None


def in_unit(values, unseen):
    "Normalised from the 1st to the 99th percentile of what is seen."
    seen = values if unseen is None else values[:, ~unseen]
    low, high = np.percentile(seen.astype(float), (1, 99))
    return ((values.astype(float) - low) / (high - low)).clip(0, 1)


@pytest.fixture
def written_folders(tmp_path):
    def write(case):
        folders = tmp_path / "with", tmp_path / "without"
        made = []
        for k in range(12):
            folder = folders[k >= 6]
            folder.mkdir(exist_ok=True)
            made.append(CASES[case][1](str(folder / f"IM{k}"), k))
        return folders, made
    return write


def same(values, expected, unseen):
    assert values.dtype == expected.dtype and values.shape == expected.shape
    seen = np.ones(expected.shape[1:], bool) if unseen is None else ~unseen
    assert np.array_equal(np.ma.getdata(values)[:, seen], expected[:, seen])
    assert (hidden(values) is None) if unseen is None else np.array_equal(hidden(values), unseen)


@pytest.mark.parametrize("case", CASES)
def test_case(case, written_folders, tmp_path, monkeypatch, capsys):
    "The numbers that went in, from Python; unseen pixels hidden, in the packed cache too; and described on the command line."
    monkeypatch.setenv("BGCS_CACHE", str(tmp_path / "cache"))
    folders, made = written_folders(case)
    path, values, unseen = made[0]
    image, info = read_image(path), image_info(path)
    same(image, values, unseen)
    assert (info.channels, info.height, info.width, info.dtype, info.pages) == (*values.shape, str(values.dtype), 1)
    if unseen is not None: assert np.isin(image.data[:, unseen], values[:, ~unseen]).all()  # beneath is what is seen nearby
    expected = np.stack([in_unit(values, unseen) for _, values, unseen in made])
    seen = np.ones((SIZE, SIZE), bool) if unseen is None else ~unseen
    for lazy in (False, True):
        data = from_folders(*folders, normalization="percentile", lazy=lazy).packed()
        order = np.argsort([name.split("IM")[1].split(".")[0].zfill(2) for name in data.names])
        assert np.allclose(np.asarray(data.images[:])[order][..., seen], expected[..., seen], atol=1e-6)
    code = main(["describe", "--objects", str(folders[0]), "--backgrounds", str(folders[1]), "data.normalization=percentile"])
    out, err = capsys.readouterr()
    assert code == 0 and "6 object images, 6 background-only images of 48×48" in out and "Traceback" not in err, err


class Bright:
    "What is bright, as a function from images to masks."
    normalization_ = as_normalization("percentile")
    def __call__(self, images): return images[:, :1]


@pytest.mark.parametrize("case", [case for case in CASES if re.search("nodata|mask|msk", case) and "as it is" not in CASES[case][0]])
def test_what_is_unseen_is_no_part_of_patches_or_masks(case, tmp_path):
    path, values, unseen = CASES[case][1](str(tmp_path / "IM1"), 1)
    mask = predict_large(Bright(), read_image(path), tile=16, progress=False)
    assert np.array_equal(np.isnan(mask), np.zeros_like(UNSEEN) if unseen is None else unseen)
    marks = np.zeros((SIZE, SIZE), np.uint8)
    marks[20:24, 4:8] = 1
    data = cut_patches([path], 8, [marks], stride=4, normalization="percentile", progress=False)
    tops, lefts = data.places[:, :2].T
    assert len(data) > 40 and (unseen is None or not any(unseen[t:t + 8, l:l + 8].any() for t, l in zip(tops, lefts)))
    some = cut_patches([path], 16, [marks], stride=8, max_invalid=0.9, normalization="percentile", progress=False)
    assert some.images.isfinite().all() and data.images.isfinite().all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run trained for a moment on grey TIFFs with nodata."
    folder, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache")
    for k in range(16):
        kind = folder / ("with" if k % 2 else "without")
        kind.mkdir(exist_ok=True)
        CASES["nodata 0, uint8"][1](str(kind / f"IM{k}"), k)
    words = ["clusters.n_clusters=2", "clusters.encoder=pca", "network.base_width=4", "network.depth=1", "schedule.steps=4",
             "schedule.rounds=1", "schedule.per_cluster=2", "schedule.n_real=4", "schedule.choose=false", "trainer.accelerator=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BGCS_CACHE", str(cache))
        code = main(["train", "--quiet", "--objects", str(folder / "with"), "--backgrounds", str(folder / "without"),
                     "--folder", str(folder / "run"), *words])
    assert code == 0
    return folder / "run"


PREDICTED = [case for case in CASES if re.search("nodata 0, u|255.0|DICOM without pre|grey|msk|aux|^.gif|^.pgm$|n/a", case)]


@pytest.mark.parametrize("case", PREDICTED)
def test_predicted_on_the_command_line(case, run, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    path, values, unseen = CASES[case][1](str(tmp_path / "images" / "IM1"), 1)
    code = main(["predict", str(run), str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    row = pd.read_csv(tmp_path / "out" / "images.csv").iloc[0]
    assert (row.height, row.width) == (SIZE, SIZE) and np.isclose(row.unseen_share, 0 if unseen is None else unseen.mean())


def volume(k): return np.random.default_rng(k).integers(1, 900, (12, 10, 4)).astype(np.int16)


PLACE = np.array([[2.0, 0, 0, -30], [0, 2, 0, 8], [0, 0, 5, 1], [0, 0, 0, 1]])  # of the images, in millimetres


def stored_as(codes, low=(0, 0, 0), high=(12, 10, 4)):
    "A way of storing a mask: its axes, and which part of the image it reaches over."
    def write(path, values):
        part = tuple(map(slice, low, high))
        place = PLACE.copy()
        place[:3, 3] = (PLACE @ [*low, 1])[:3]
        mask = nibabel.Nifti1Image(values[part], place)
        wanted = nibabel.orientations.axcodes2ornt(codes)
        nibabel.save(mask.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(place), wanted)), path)
    return write


def in_place(place):
    def write(path, values): nibabel.save(nibabel.Nifti1Image(values, place), path)
    return write


def unplaced(path, values):
    "No code says where the mask lies, so it is taken as stored."
    mask = nibabel.Nifti1Image(values, np.diag([9, 9, 9, 1]))
    mask.set_sform(None, 0), mask.set_qform(None, 0)
    nibabel.save(mask, path)


ALIGNED = {  # how a mask is stored whose image is stored right, anterior, superior; all but the first gave IoU 0, or were refused by size
    "as the image": stored_as("RAS"), "left": stored_as("LAS"), "left, posterior": stored_as("LPS"), "upside down": stored_as("RAI"),
    "rows and columns swapped": stored_as("ARS"), "slices first": stored_as("SRA"), "all turned": stored_as("ILP"),
    "cropped": stored_as("RAS", (2, 1, 0), (9, 10, 3)), "cropped and turned": stored_as("PSL", (2, 1, 0), (9, 10, 3)),
    "rounded affine": in_place(PLACE + 1e-4), "without a place": unplaced,
}
UNALIGNED = {
    "other voxels": (in_place(PLACE @ np.diag([1.5, 1.5, 1, 1])), ["lies on another grid in space", "voxels of 3×3×5 mm", "2×2×5 mm", "Resample"]),
    "half a voxel aside": (in_place(PLACE + np.eye(4, k=3)), ["lies on another grid in space"]),
    "at an angle": (in_place(PLACE @ np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])), ["lies on another grid"]),
    "elsewhere": (in_place(PLACE + 400 * np.eye(4, k=3)), ["lies beside its image in space"]),
}


@pytest.fixture
def scans(tmp_path):
    "Volumes of which slices are images; the mask of each is what exceeds 450."
    for k in range(6):
        folder = tmp_path / ("with" if k < 4 else "without")
        folder.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume(k), PLACE), folder / f"{k}.nii.gz")
    (tmp_path / "masks").mkdir()
    def opened(write, **options):
        for k in range(4): write(tmp_path / "masks" / f"{k}.nii.gz", (volume(k) > 450).astype(np.uint8))
        return from_folders(tmp_path / "with", tmp_path / "without", tmp_path / "masks", pages="images", normalization="percentile", **options)
    return opened


@pytest.mark.parametrize("stored", ALIGNED)
def test_masks_lie_on_their_images_in_space(stored, scans):
    data = scans(ALIGNED[stored])
    images = np.concatenate([volume(k).transpose(2, 0, 1) for k in range(6)])
    expected = (images > 450) & (np.arange(24) < 16)[:, None, None]
    if "cropped" in stored:
        inside = np.zeros((12, 10, 4), bool)
        inside[2:9, 1:10, :3] = True
        expected &= np.tile(inside.transpose(2, 0, 1), (6, 1, 1))
    assert np.array_equal(data.masks[:, 0], expected) and data.masks.any()
    assert np.allclose(data.info(0).affine, PLACE)


@pytest.mark.parametrize("stored", UNALIGNED)
def test_masks_on_another_grid_are_refused(stored, scans, tmp_path, capsys):
    write, texts = UNALIGNED[stored]
    with pytest.raises(ImageSetError, match=says(*texts)): scans(write)
    code = main(["describe", "--objects", str(tmp_path / "with"), "--backgrounds", str(tmp_path / "without"), "--masks",
                 str(tmp_path / "masks"), "data.pages=images", "data.normalization=percentile"])
    assert code == 2 and re.search(says(*texts), capsys.readouterr().err)


def says(*texts): return "(?s)" + ".*".join(map(re.escape, texts))


def sgilog(path):
    tifffile.imwrite(path, grey(0).astype(np.float32))
    with tifffile.TiffFile(path, mode="r+") as file: file.pages[0].tags["Compression"].overwrite(34676)


def lossless_jpeg(path):
    image = scan(grey(0), JPEGLosslessSV1)
    image.PixelData = encapsulate([imagecodecs.ljpeg_encode(grey(0))])
    image["PixelData"].is_undefined_length = True
    image.save_as(path, enforce_file_format=True)


def all_lacking(path): tifffile.imwrite(path, np.full((SIZE, SIZE), -9999, np.int16), **told("-9999"))


def other_mask(path):
    tifffile.imwrite(path, grey(0))
    tifffile.imwrite(f"{path}.msk", grey(0)[:20])


def animation(path):
    frames = [Image.fromarray(grey(k)) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


REFUSED = {  # file: (what was said before, who writes it, what is said now)
    "sgilog.tif": ("damaged or cut short … Copy it again", sgilog, ["is compressed by SGILOG, which is not read. Save it with another compression"]),
    "lossless.dcm": ("damaged or cut short … Copy it again", lossless_jpeg,
                     ["is compressed (JPEG Lossless", "no decoder for that is installed: pip install 'bgcs[dicom]'"]),
    "lacking.tif": ("-9999 everywhere", all_lacking, ["shows nothing: all of its pixels are marked as no data. Leave it out"]),
    "beside.tif": ("read", other_mask, ["is 48×48, and the mask beside it, beside.tif.msk, 20×48"]),
    "film.gif": ("passed over", animation, ["has 3 pages", "the number of one page"]),
    "folder.dcm": ("damaged or cut short", lambda path: os.mkdir(path), ["holds no image"]),
    "empty.jp2": ("passed over", lambda path: open(path, "w").close(), ["is empty (0 bytes)"]),
    "notes.gif": ("passed over", lambda path: open(path, "w").write("Milk."), ["is not an image, whatever its name says"]),
    "notes.tif": ("damaged or cut short", lambda path: open(path, "w").write("Milk."), ["is not an image, whatever its name says"]),
    "notes.dcm": ("damaged or cut short", lambda path: open(path, "w").write("Milk."), ["holds no DICOM image"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path, capsys):
    "In the same words from Python and on the command line."
    _, write, texts = REFUSED[name]
    if name == "lossless.dcm" and find_spec("gdcm"): pytest.skip("the decoder is installed")
    for folder in ("with", "without"): (tmp_path / folder).mkdir()
    write(str(tmp_path / "with" / name))
    Image.fromarray(grey(1)).save(tmp_path / "without" / "a.png")
    with pytest.raises(ImageSetError, match=says(*texts)): from_folders(tmp_path / "with", tmp_path / "without")
    code = main(["describe", "--objects", str(tmp_path / "with"), "--backgrounds", str(tmp_path / "without")])
    assert code == 2 and re.search(says(*texts), capsys.readouterr().err)


def test_lossless_jpeg_with_the_decoders_of_the_extra(tmp_path):
    pytest.importorskip("gdcm")
    lossless_jpeg(tmp_path / "a.dcm")
    assert np.array_equal(read_image(tmp_path / "a.dcm")[0], grey(0))


def test_frames_of_an_animation_are_pages(tmp_path):
    animation(tmp_path / "film.gif")
    assert image_info(tmp_path / "film.gif").pages == 3
    for k in range(3): assert np.array_equal(read_image(tmp_path / "film.gif", page=k)[0], grey(k))


def test_a_palette_is_colours_of_an_image_and_labels_of_a_mask(tmp_path):
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[5:9, 5:9], labels[20:22, 20:30] = 1, 7
    table = np.zeros((3, 256), np.uint16)
    table[:, [1, 7]] = [[65535, 0], [0, 65535], [0, 0]]
    tifffile.imwrite(tmp_path / "m.tif", labels, photometric="palette", colormap=table)
    assert np.array_equal(read_image(tmp_path / "m.tif", color="index")[0], labels)
    assert read_image(tmp_path / "m.tif")[:, 5, 5].tolist() == [255, 0, 0] and read_image(tmp_path / "m.tif", color="gray").shape[0] == 1
    for folder in ("with", "without", "masks"): (tmp_path / folder).mkdir()
    Image.fromarray(grey(0)).save(tmp_path / "with" / "m.png"), Image.fromarray(grey(1)).save(tmp_path / "without" / "n.png")
    os.rename(tmp_path / "m.tif", tmp_path / "masks" / "m.tif")
    folders = tmp_path / "with", tmp_path / "without", tmp_path / "masks"
    assert np.array_equal(from_folders(*folders).masks[0, 0], labels > 0)
    assert np.array_equal(from_folders(*folders, mask_labels=[7]).masks[0, 0], labels == 7)


@pytest.mark.parametrize("lacking", [0, 255])
def test_what_a_mask_doesnt_say_is_no_object(lacking, tmp_path):
    "Of a label image, the number that means no data marks nothing, and hides nothing of what is marked beside it."
    labels = np.where(UNSEEN, lacking, 0).astype(np.uint8)
    labels[20:25, 20:25] = 1
    tifffile.imwrite(tmp_path / "m.tif", labels, **told(str(lacking)))
    assert np.array_equal(read_image(tmp_path / "m.tif", color="index")[0], labels == 1)


def test_masked_arrays_are_unseen_where_they_are_masked():
    images = np.ma.masked_array(np.stack([grey(k) for k in range(12)]).astype(np.float32), False)
    images[:, UNSEEN] = -9999
    images[:, UNSEEN] = np.ma.masked
    data = from_arrays(images[:6], images[6:], normalization="percentile")
    for k in range(12): assert np.allclose(data.images[k][:, ~UNSEEN], in_unit(grey(k)[None], UNSEEN)[:, ~UNSEEN], atol=1e-6)
    assert np.array_equal(np.isnan(predict_large(Bright(), images[0], tile=16, progress=False)), UNSEEN)


def test_a_changed_mask_beside_an_image_makes_the_cache_anew(written_folders, tmp_path):
    folders, made = written_folders(".png.msk")
    def hidden_now():
        data = from_folders(*folders, lazy=True).packed(tmp_path / "cache")
        return [np.ma.getmaskarray(data.images.raw([k])).any() for k in range(len(data))]
    assert all(hidden_now())
    os.remove(made[0][0] + ".msk")
    assert sum(hidden_now()) == 11


def test_files_passed_over_are_counted_and_named(tmp_path, capsys):
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
        for k in range(6): Image.fromarray(grey(k + (folder == "with") * 10)).save(tmp_path / folder / f"{k}.png")
    for name in ("a.heic", "b.heic", "c.xcf", "notes.txt", "0.pgw", "README", "x.png.aux.xml"): (tmp_path / "with" / name).write_text("?")
    words = ["3 files are of no kind that is read, and passed over: 2 .heic (a.heic), 1 .xcf (c.xcf)"]
    with pytest.warns(UserWarning, match=says(*words)): from_folders(tmp_path / "with", tmp_path / "without")
    main(["describe", "--objects", str(tmp_path / "with"), "--backgrounds", str(tmp_path / "without")])
    assert re.search(says(*words), capsys.readouterr().err)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.heic").touch()
    with pytest.raises(ImageSetError, match=says("holds no image", "1 file is of no kind that is read", "a.heic")): find_images(tmp_path / "other")


LEFT_OUT = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF", "TIFF"}  # programs, and headers without pixels; TIFF is tifffile's


def test_what_pillow_reads_is_read():
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in LEFT_OUT}
    assert known <= set(SUFFIXES)


def hdf5(path, **compression):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.stack([grey(k) for k in range(12)]), **compression)
        file["presence"] = np.arange(12) < 6
    return path


def test_hdf5_filters_are_named(tmp_path):
    "LZ4 of the package hdf5plugin; the number of the filter is written into a file that was compressed otherwise."
    content = hdf5(tmp_path / "a.h5", chunks=(1, SIZE, SIZE), shuffle=True).read_bytes()
    at = content.index(b"shuffle\0") - 8
    assert struct.unpack("<H", content[at:at + 2])[0] == 2
    (tmp_path / "a.h5").write_bytes(content[:at] + struct.pack("<H", 32099) + content[at + 2:])
    with pytest.raises(ImageSetError, match=says("is compressed by HDF5 filters that are not installed", "hdf5plugin")): from_hdf5(tmp_path / "a.h5")


@pytest.mark.posix
def test_a_locked_hdf5_file_says_so(tmp_path):
    path = hdf5(tmp_path / "a.h5")
    write = f"import h5py, time; f = h5py.File({str(path)!r}, 'a'); print('open', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", write], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(ImageSetError, match=says("a.h5 is locked: another program has it open for writing. Close it there")): from_hdf5(path)
    finally: other.kill(), other.wait()
