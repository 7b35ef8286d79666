"""Every kind of image file gives back the numbers that went in, and what cannot be read is named."""
import struct
import zlib
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bgcs.data.files import ImageSetError, change_size, channels_first, find_images, image_info, read_image
from bgcs.data.intensity import as_normalization

RNG = np.random.default_rng(0)
GREY8, GREY16 = RNG.integers(0, 256, (20, 30), np.uint8), RNG.integers(0, 65536, (20, 30), np.uint16)
COLOUR8, COLOUR16 = RNG.integers(0, 256, (20, 30, 3), np.uint8), RNG.integers(0, 65536, (20, 30, 3), np.uint16)


def first(array): return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def same(path, expected):
    assert np.array_equal(read_image(path), expected)
    assert read_image(path).dtype == expected.dtype == image_info(path).dtype
    assert (image_info(path).channels, image_info(path).height, image_info(path).width) == expected.shape


@pytest.mark.parametrize("name, array", [("g8.png", GREY8), ("g16.png", GREY16), ("c8.png", COLOUR8), ("g8.bmp", GREY8)])
def test_pillow(name, array, tmp_path):
    Image.fromarray(array).save(tmp_path / name)
    same(tmp_path / name, first(array))


def test_colour_png_of_16_bits(tmp_path):
    (tmp_path / "c16.png").write_bytes(imagecodecs.png_encode(COLOUR16))
    same(tmp_path / "c16.png", first(COLOUR16))


def test_transparency(tmp_path):
    Image.fromarray(np.dstack([COLOUR8, GREY8])).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png").shape == (4, 20, 30)
    assert np.array_equal(read_image(tmp_path / "rgba.png", color="rgb"), first(COLOUR8))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.float32, np.float64])
def test_tiff(dtype, compression, tmp_path):
    values = (RNG.random((20, 30)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "t.tif", values, compression=compression)
    same(tmp_path / "t.tif", values[None])


def test_tiff_of_seven_channels(tmp_path):
    values = RNG.random((7, 20, 30), np.float32)
    tifffile.imwrite(tmp_path / "apart.tif", values, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(tmp_path / "together.tif", values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    np.save(tmp_path / "a.npy", values)
    for name in ("apart.tif", "together.tif", "a.npy"): same(tmp_path / name, values)


def test_tiff_in_which_0_is_white(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", GREY8, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "white1.tif", GREY8 > 99, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "white.tif")[0], 255 - GREY8)
    assert np.array_equal(read_image(tmp_path / "white1.tif")[0], GREY8 <= 99)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY8).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    image, info = read_image(tmp_path / "turned.jpg"), image_info(tmp_path / "turned.jpg")
    assert image.shape == (1, 30, 20) == (1, info.height, info.width)
    assert abs(image[0].astype(int) - np.rot90(GREY8, -1)).mean() < 2


@pytest.mark.parametrize("mode, name", [("P", "palette.png"), ("CMYK", "cmyk.jpg")])
def test_odd_colours(mode, name, tmp_path):
    Image.fromarray(COLOUR8).convert(mode).save(tmp_path / name)
    assert read_image(tmp_path / name, color="rgb").shape == (3, 20, 30)
    assert read_image(tmp_path / name, color="gray").shape == (1, 20, 30)
    with pytest.raises(ImageSetError, match="color='rgb'"): read_image(tmp_path / name)


def test_nifti(tmp_path):
    volume = RNG.integers(-1000, 2000, (20, 30, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    assert image_info(tmp_path / "v.nii.gz").pages == 4
    assert np.array_equal(read_image(tmp_path / "v.nii.gz", page=3)[0], volume[..., 3])
    assert np.array_equal(read_image(tmp_path / "v.nii.gz", page="channels"), volume.transpose(2, 0, 1))


def scan(path, photometric, **scale):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ct = Dataset()
    ct.file_meta, ct.SOPClassUID, ct.SOPInstanceUID = meta, CTImageStorage, meta.MediaStorageSOPInstanceUID
    ct.Rows, ct.Columns, ct.SamplesPerPixel = 20, 30, 1
    ct.BitsAllocated, ct.BitsStored, ct.HighBit, ct.PixelRepresentation = 16, 12, 11, 0
    ct.PhotometricInterpretation, ct.PixelData = photometric, (GREY16 >> 4).tobytes()
    for name, value in scale.items(): setattr(ct, name, value)
    ct.save_as(path, enforce_file_format=True)
    return path


def test_dicom(tmp_path):
    ct = scan(tmp_path / "ct.dcm", "MONOCHROME2", RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(read_image(ct)[0], (GREY16 >> 4).astype(np.float32) - 1024)
    assert image_info(ct).dtype == "float32"
    assert np.array_equal(read_image(scan(tmp_path / "x.dcm", "MONOCHROME1"))[0], 4095 - (GREY16 >> 4))


def test_sizes():
    big = RNG.integers(0, 256, (1, 41, 60), np.uint8)
    assert np.array_equal(change_size(big, crop=(21, 30)), big[:, 10:31, 15:45])
    assert change_size(big, resize=(10, 10)).dtype == np.uint8
    labels = change_size(np.array([[[0, 7], [7, 0]]], np.uint8), resize=(9, 9), nearest=True)
    assert set(np.unique(labels)) == {0, 7}


@pytest.mark.parametrize("shape, several, says", [
    ((8, 9, 8), False, "channel_axis=0"),
    ((5,), False, r"\(h, w\)"),
    ((2, 2), True, r"\(n, h, w\)"),
])
def test_shapes_that_say_nothing_of_channels(shape, several, says):
    with pytest.raises(ImageSetError, match=says): channels_first(np.zeros(shape), several)


def bomb(path: Path):
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def cut(path: Path):
    if path.suffix == ".png": Image.fromarray(COLOUR8).save(path)
    else: tifffile.imwrite(path, GREY16)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize("name, make, says", [
    ("bomb.png", bomb, "decompression bomb"),
    ("objects.npy", lambda f: np.save(f, np.array([{}, []], dtype=object), allow_pickle=True), "never loaded"),
    ("gone.png", lambda f: None, "is not there"),
    ("notes.txt", lambda f: f.write_text("Bring milk."), "known kind"),
    ("notes.png", lambda f: f.write_text("Bring milk."), "not an image"),
    ("empty.png", lambda f: f.touch(), "is empty"),
    ("cut.png", cut, "damaged or cut short"),
    ("cut.tif", cut, "damaged or cut short"),
    ("self.png", lambda f: f.symlink_to(f), "leads to itself"),
])
def test_unreadable(name, make, says, tmp_path):
    "The caller knows the path, so the complaint lacks it."
    make(tmp_path / name)
    with pytest.raises(ImageSetError, match=says) as error: read_image(tmp_path / name)
    assert str(tmp_path) not in str(error.value)


def test_a_link_to_itself_is_listed_so_that_reading_names_it(tmp_path):
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    assert find_images(tmp_path) == ["self.png"]


def test_color_is_checked(tmp_path):
    with pytest.raises(ValueError, match="color='grey' is not known .*'gray'"): read_image(tmp_path / "a.png", color="grey")


@pytest.mark.parametrize("way, says", [
    ("minmax", "normalization='minmax' is not known"),
    (("range", 5, 5), "low below high"),
    ("range", "low below high"),
    (("percentile", 1, 200), "0 to 100"),
    (("zscore", -1), "above 0"),
    (7, "expected a name"),
])
def test_wrong_normalizations(way, says):
    with pytest.raises(ValueError, match=says): as_normalization(way)


def test_a_dicom_that_begins_like_a_tiff_is_a_dicom(tmp_path):
    "pydicom's own CT_small.dcm does."
    pydicom = pytest.importorskip("pydicom")
    source = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    found = bytearray(open(source, "rb").read())
    found[:4] = b"II*\0"
    path = tmp_path / "scan.dcm"
    path.write_bytes(found)
    assert image_info(path).height == 128
