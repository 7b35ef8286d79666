"""Small files of each format, and what may become of them on a bad disk: bytes flipped, cut, doubled, headers swapped.

As a program it reads mutants by the library, one after the other, and says for each what became of it. A limit on memory holds, and a
timer ends the process where one file takes too long; who started it sees then which it was.
"""
import io
import logging
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import h5py
import imagecodecs
import nibabel
import numpy as np
import tifffile
from PIL import Image
from test_real_files import jp2, laid_out, scan

from bgcs.data.files import ImageSetError, _check_pixels, image_info, read_image
from bgcs.data.images import from_hdf5

SECONDS, BYTES = 2, 2 ** 30  # that a file may take
RNG = np.random.default_rng(0)
GREY, COLOURS = RNG.integers(0, 256, (24, 30), np.uint8), RNG.integers(0, 256, (24, 30, 3), np.uint8)


def saved(kind, array=COLOURS, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def tiff(array=GREY, **options):
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def kept(folder, name, write):
    "What writes only to a named file."
    write(folder / name)
    return (folder / name).read_bytes()


def layered(path): laid_out(overviews=(2, 4), thumbnail=True)(str(path)[:-4], 0)


def hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.stack([GREY] * 4), chunks=(1, 24, 30), compression="gzip")
        file["presence"] = np.arange(4) < 2


def samples(folder):
    "A small file of each format, by the name that a file of it has."
    array = io.BytesIO()
    np.save(array, GREY.astype(np.float32))
    nodata = [(42113, "s", 0, "-9999", True)]
    return {
        "a.png": saved("PNG"), "b.png": imagecodecs.png_encode(COLOURS.astype(np.uint16) * 9), "c.png": saved("PNG", GREY, transparency=3),
        "a.jpg": saved("JPEG"), "a.bmp": saved("BMP"), "a.gif": saved("GIF"), "a.webp": saved("WEBP"), "b.webp": saved("WEBP", lossless=True),
        "a.jp2": jp2(GREY), "b.jp2": imagecodecs.jpeg2k_encode(COLOURS.astype(np.uint16) * 99, level=0, codecformat="jp2"),
        "a.pgm": b"P5 30 24 4095\n" + (GREY.astype(">u2") * 16).tobytes(), "a.ppm": saved("PPM"), "a.tga": saved("TGA"), "a.pcx": saved("PCX", GREY),
        "a.avif": saved("AVIF"), "a.npy": array.getvalue(),
        "a.tif": tiff(), "b.tif": tiff(GREY.astype(np.int16), compression="lzw", extratags=nodata), "c.tif": tiff(COLOURS, compression="zlib", tile=(16, 16)),
        "d.tif": tiff(GREY, photometric="palette", colormap=RNG.integers(0, 65536, (3, 256), np.uint16)), "e.tif": tiff(COLOURS, compression="jpeg"),
        "f.tif": tiff(np.stack([GREY] * 3), imagej=True), "g.tif": kept(folder, "g.tif", layered), "h.tif": tiff(COLOURS, bigtiff=True, ome=True),
        "a.dcm": kept(folder, "a.dcm", lambda path: scan(GREY).save_as(path, enforce_file_format=True)),
        "b.dcm": kept(folder, "b.dcm", lambda path: scan(GREY.astype(np.float32)).save_as(path, enforce_file_format=True)),
        "a.nii": kept(folder, "a.nii", lambda path: nibabel.save(nibabel.Nifti1Image(np.stack([GREY] * 2, -1), np.eye(4)), path)),
        "a.nii.gz": kept(folder, "a.nii.gz", lambda path: nibabel.save(nibabel.Nifti1Image(np.stack([GREY] * 2, -1), np.eye(4)), path)),
        "a.h5": kept(folder, "a.h5", hdf5),
    }


def mutant(content, others, rng):
    "One of many ways to harm a file; most of them near its head, where it says how it is to be read."
    harmed, kind = bytearray(content), rng.integers(7)
    def place(): return int(min(rng.integers(len(content)), rng.integers(len(content)) if rng.random() < 0.5 else rng.integers(400)))
    if kind == 0: return bytes(harmed[:place()])
    if kind == 1:  # the head of another
        other = others[rng.integers(len(others))]
        n = int(rng.integers(2, 200))
        return other[:n] + content[n:]
    if kind == 2:  # a piece doubled, or left out
        a, n = place(), int(rng.integers(1, 64))
        return content[:a] + content[a:a + n] * int(rng.choice([0, 2, 50])) + content[a + n:]
    for _ in range(int(rng.choice([1, 1, 2, 5, 20]))):
        a = place()
        if kind == 3: harmed[a] ^= 1 << int(rng.integers(8))
        elif kind == 4: harmed[a] = int(rng.integers(256))
        elif kind == 5: harmed[a:a + 4] = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"][rng.integers(4)]
        else: harmed[a:a + 2] = [b"\xff\xff", b"\0\0", b"\0\x80", b"\1\0"][rng.integers(4)]
    return bytes(harmed[:len(content)])


def read(path):
    "What became of a file: 'read', or 'refused'. Anything else is a fault, and raised."
    try:
        if path.suffix == ".h5": from_hdf5(path, normalization="percentile", progress=False)
        else:
            info = image_info(path)
            image = read_image(path, page=None if info.pages == 1 else info.pages - 1)
            _check_pixels(image)
        return "read"
    except ImageSetError as error:
        told = str(error)
        assert "there is memory for" not in told and "nable to allocate" not in told, f"wanted more memory: {told}"
        assert "\n" not in told or path.suffix == ".h5", f"of many lines: {told}"
        return "refused"


def main(folder, seed, start, stop, report):
    "Read mutants; a line of the report for each, written before and after."
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    files = samples(folder)
    contents = list(files.values())
    for name, content in files.items():
        (folder / f"x.{name}").write_bytes(content)
        assert read(folder / f"x.{name}") == "read", name
    with open("/proc/self/statm") as file: already = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (already + BYTES, already + BYTES))
    with open(report, "a", buffering=1) as lines:
        for k in range(start, stop):
            rng = np.random.default_rng((seed, k))
            name = list(files)[k % len(files)]
            path = folder / f"mutant.{name}"
            path.write_bytes(mutant(files[name], contents, rng))
            lines.write(f"{k} {name} ")
            lines.flush()
            signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)  # which ends the process
            began = time.process_time()
            try: said = read(path)
            except BaseException as error: said = f"FAULT {type(error).__name__}: {str(error)[:300]!r}"
            took = time.process_time() - began
            signal.setitimer(signal.ITIMER_REAL, 0)
            lines.write(f"{said} {took:.3f}\n")


if __name__ == "__main__":
    folder, seed, start, stop, report = sys.argv[1:]
    main(Path(folder), int(seed), int(start), int(stop), report)
