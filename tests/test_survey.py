"""Images larger than memory: the same mask as of the whole image, in little memory, however often it is interrupted and by however many processes."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bgcs.data.files import ImageSetError, read_image
from bgcs.data.intensity import Normalization
from bgcs.masks import survey as module
from bgcs.masks.predict import predict_large
from bgcs.masks.segment import Segmenter
from bgcs.masks.survey import _as_part, _percentiles, _Resampling, join_survey, plot_survey, predict_survey

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_300_000, 0.5, 0.5)}
predict = partial(predict_survey, tile=32, probabilities="float32", progress=False, part=None)


def model(channels=1, seed=0, normalization=Normalization(), base_width=4, depth=1):
    "A segmenter with weights drawn, not learned: its masks are as good as any for moving files about."
    segmenter = Segmenter(channels, base_width=base_width, depth=depth, random_state=seed).eval()
    segmenter.normalization_ = normalization
    net = segmenter.averaged.module
    with torch.no_grad():
        net.head.weight.mul_(500)
        some = torch.rand(8, channels, 32, 32, generator=torch.Generator().manual_seed(0))
        net.head.bias.sub_(net(some).median())  # half of a mask is object
    return segmenter


def noise(*shape, seed=0, dtype=np.uint8):
    "Smooth noise, so that tiles differ from each other."
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (*shape[:-2], -(-shape[-2] // 16), -(-shape[-1] // 16)))
    values = np.kron(coarse, np.ones((16, 16)))[..., :shape[-2], :shape[-1]] + rng.integers(1, 50, shape)
    return values.astype(dtype)


def write(path, image, nodata=None, mask=None, place=PLACE, **options):
    image = image[None] if image.ndim == 2 else image
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, tiled=True, compress="deflate", **shape, **place, **options) as file:
        file.write(image)
        if mask is not None: file.write_mask(mask)
    return path


def read(path):
    with rasterio.open(path) as file: return file.read(1)


@pytest.fixture
def low(monkeypatch):
    "Strips of 64 rows, and windows of a few tiles, so that small images have borders of all kinds."
    monkeypatch.setattr(module, "_strip_height", lambda width: 64)
    whole = module._windows_of
    monkeypatch.setattr(module, "_windows_of", lambda image, new: whole(image, new, 16_000 * image.source.dtype.itemsize))


def check_same(path, segmenter, out, image=None, **tiling):
    "A survey is what `predict_large` gives of the whole image, pixel by pixel."
    survey = predict(segmenter, path, out, **tiling)
    whole = predict_large(segmenter, read_image(path) if image is None else image, channel_axis=0, progress=False, **{"tile": 32} | tiling)
    found = read(survey.probability)
    assert np.array_equal(np.isnan(found), np.isnan(whole))
    assert np.nanmax(np.abs(found - whole)) <= 1e-5
    marks = read(survey.mask)
    assert np.array_equal(marks == 255, np.isnan(whole))
    sure = np.abs(whole - segmenter.threshold_) > 1e-5
    assert np.array_equal(marks[sure] == 1, whole[sure] >= segmenter.threshold_)
    return whole


# ---- the same as of the whole image

@pytest.mark.parametrize("tiling", [{}, {"overlap": 0}, {"overlap": 0.75}, {"overlap": 0.3, "blend": "mean"}, {"tile": 100}, {"resize": 16}, {"resize": 24, "overlap": 0.25}, {"resize": 48}, {"invalid": 60}], ids=str)
def test_mask_is_that_of_the_whole_image(tmp_path, low, tiling):
    path = write(tmp_path / "image.tif", noise(301, 403))
    whole = check_same(path, model(), tmp_path / "out", **tiling)
    assert np.nanstd(whole) > 0.03


@pytest.mark.parametrize("shape", [(7, 200), (200, 7), (20, 20), (64, 64), (65, 129), (1, 1), (63, 31)], ids=str)
@pytest.mark.parametrize("resize", [None, 20])
def test_images_of_any_size(tmp_path, low, shape, resize):
    check_same(write(tmp_path / "image.tif", noise(*shape)), model(), tmp_path / "out", resize=resize)


@pytest.mark.parametrize("resize", [None, 13, 45])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_unseen_areas(tmp_path, low, resize, dtype):
    "Irregular areas without data, of which tiles show a part, and wide ones of which they show nothing."
    image, rng = noise(300, 400, dtype=dtype), np.random.default_rng(1)
    unseen = np.kron(rng.random((19, 25)) < 0.4, np.ones((16, 16)))[:300, :400] > 0
    unseen[100:260, 30:200] = True
    unseen |= rng.random(unseen.shape) < 0.02
    image[unseen] = 0
    if dtype == "float32": image[unseen], image[~unseen] = np.nan, image[~unseen] / 255
    path = write(tmp_path / "image.tif", image, nodata=None if dtype == "float32" else 0)
    whole = check_same(path, model(), tmp_path / "out", resize=resize, image=np.ma.masked_array(image, unseen)[None])
    assert np.array_equal(np.isnan(whole), unseen)


@pytest.mark.parametrize("measure", ["image", "patch"])
@pytest.mark.parametrize("resize", [None, 20])
@pytest.mark.parametrize("name", ["percentile", "zscore", "mean-clip", "unit"])
def test_normalised_by_image_or_patch(tmp_path, low, name, resize, measure):
    image = noise(230, 300, dtype=np.uint16) * 40
    image[40:90, 100:190] = 0
    path = write(tmp_path / "image.tif", image, nodata=0)
    check_same(path, model(normalization=Normalization(name)), tmp_path / "out", measure=measure, resize=resize)


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_measured_on_any_type(tmp_path, low, dtype):
    image = (noise(150, 210).astype(np.float64) * 7.3 - 300).astype(dtype)
    check_same(write(tmp_path / "image.tif", image), model(normalization=Normalization("percentile", of="image")), tmp_path / "out")


def test_flips_are_averaged(tmp_path, low):
    path, segmenter = write(tmp_path / "image.tif", noise(100, 90)), model()
    found = read(predict(segmenter, path, tmp_path / "out", flip="both").probability)
    assert np.abs(found - predict_large(segmenter, noise(100, 90), tile=32, flip="both", progress=False)).max() <= 1e-5


def test_large_strips(tmp_path):
    "Strips and windows as they are, at borders of strips."
    check_same(write(tmp_path / "image.tif", noise(1100, 700)), model(), tmp_path / "out", overlap=0.25)


@pytest.mark.parametrize("sizes", [(100, 37), (37, 100), (1000, 999), (10, 10)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resampling_is_that_of_torch(sizes, dtype):
    n, into = sizes
    values = np.random.default_rng(0).random((1, n, 8)).astype(dtype)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None], size=(into, 8), mode="bilinear", antialias=True)[0].numpy()
    down, same = _Resampling(n, into, dtype), _Resampling(8, 8, dtype)
    start, stop = into // 3, into - into // 4
    low, high = down.needs(start, stop)
    part = down.part(same.part(values[:, low:high], 2, 0, 8, 0), 1, start, stop, low)
    assert np.abs(part - expected[:, start:stop]).max() < (2e-6 if dtype is np.float32 else 1e-12)


def test_percentiles_of_hard_values():
    values = np.array([-np.inf, -3.5, -0.0, 0.0, 1e-30, 7, 7, 7, 1e30], np.float32)[1:]
    for percents in [(0, 100), (1, 99), (50, 51)]:
        assert np.allclose(_percentiles(lambda: iter(np.array_split(values, 3)), percents, "float32"), np.percentile(values.astype(np.float64), percents), rtol=1e-12)
    assert _percentiles(lambda: iter([]), (1, 99), "uint8") is None


# ---- what is written

def test_georeference_and_layout(tmp_path):
    image = noise(700, 1300)
    path = write(tmp_path / "image.tif", image, nodata=255)
    survey = predict_survey(model(), path, tmp_path / "out", tile=32, overlap=0, progress=False, part=None)
    whole = predict_large(model(), image, tile=32, overlap=0, progress=False)
    with rasterio.open(survey.probability) as file:
        assert (file.crs.to_epsg(), file.transform, file.shape) == (32633, PLACE["transform"], (700, 1300))
        assert file.profile["tiled"] and file.profile["compress"] == "deflate" and file.block_shapes == [(512, 512)]
        assert file.overviews(1) == [2, 4] and file.nodata == 255 and file.dtypes == ("uint8",)
        stored = file.read(1) * file.scales[0] + file.offsets[0]
        near = np.abs(whole - 0.5) < 0.5 / 254 + 1e-5  # the threshold, across which nothing is rounded
        assert np.abs(stored - whole)[~near].max() <= 0.5 / 254 + 1e-5 and np.abs(stored - whole).max() <= 1 / 254 + 1e-5
        assert near.any() and ((stored >= 0.5) == (whole >= 0.5))[np.abs(whole - 0.5) > 1e-5].all()
        assert file.tags()["bgcs_model"] and "probability" in file.descriptions[0]
        small = file.read(1, out_shape=(175, 325)) * file.scales[0]
        assert np.abs(small - whole.reshape(175, 4, 325, 4).mean((1, 3))).max() < 0.02
    with rasterio.open(survey.mask) as file:
        assert file.nodata == 255 and file.overviews(1) and set(np.unique(file.read(1))) == {0, 1} and file.scales == (1.0,)
        assert file.transform == PLACE["transform"]
    assert not (tmp_path / "out" / "strips").exists() and not list((tmp_path / "out").glob(".*.part"))
    assert survey.is_complete and survey.left == 0 and "700×1300 pixels: probability.tif and mask.tif are in" in str(survey)


@pytest.mark.parametrize("kind, steps", [("uint8", 254), ("uint16", 65534)])
def test_scaled_probabilities(tmp_path, low, kind, steps):
    image = noise(90, 120)
    image[:20] = 7
    path, segmenter = write(tmp_path / "image.tif", image, nodata=7), model()
    survey = predict(segmenter, path, tmp_path / "out", probabilities=kind)
    whole = predict_large(segmenter, np.ma.masked_equal(image, 7), tile=32, progress=False)
    with rasterio.open(survey.probability) as file:
        found = file.read(1, masked=True) * file.scales[0]
        assert file.nodata == steps + 1 and np.array_equal(found.mask, np.isnan(whole))
        stored, exact = found.compressed(), whole[~found.mask]
        assert np.abs(stored - exact)[np.abs(exact - 0.5) > 0.5 / steps + 1e-5].max() <= 0.5 / steps + 1e-5
        assert np.abs(stored - exact).max() <= 1 / steps + 1e-5


def test_ground_control_points_and_rotation(tmp_path):
    points = [GroundControlPoint(row, column, 500_000 + column, 5_000_000 - row, 0) for row in (0, 90) for column in (0, 80)]
    path = write(tmp_path / "points.tif", noise(90, 80), place={"gcps": points, "crs": "EPSG:32633"})
    with rasterio.open(predict(model(), path, tmp_path / "a").mask) as file:
        found, system = file.gcps
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points] and system.to_epsg() == 32633
    turned = rasterio.Affine(0.3, 0.4, 500_000, 0.4, -0.3, 5_000_000)
    path = write(tmp_path / "turned.tif", noise(90, 80), place={"transform": turned, "crs": "EPSG:4326"})
    with rasterio.open(predict(model(), path, tmp_path / "b").probability) as file: assert file.transform == turned and file.crs.to_epsg() == 4326
    path = write(tmp_path / "none.tif", noise(90, 80), place={})
    with rasterio.open(predict(model(), path, tmp_path / "c").probability) as file: assert file.crs is None and file.transform.is_identity


def test_alpha_masks_and_bands(tmp_path, low):
    colours, segmenter = noise(3, 90, 120), model(3)
    hidden = np.zeros((90, 120), bool)
    hidden[10:40, 50:90] = True
    expected = np.ma.masked_array(colours, np.broadcast_to(hidden, colours.shape))
    alpha = np.where(hidden, 0, 255).astype(np.uint8)[None]
    path = write(tmp_path / "alpha.tif", np.concatenate([colours, alpha]), photometric="rgb", alpha="yes")
    check_same(path, segmenter, tmp_path / "a", image=expected)
    check_same(write(tmp_path / "mask.tif", colours, mask=~hidden), segmenter, tmp_path / "b", image=expected)
    five = np.concatenate([noise(2, 90, 120, seed=5), colours])
    path = write(tmp_path / "five.tif", five)
    survey = predict(segmenter, path, tmp_path / "c", bands=[3, 4, 5])
    assert np.nanmax(np.abs(read(survey.probability) - predict_large(segmenter, colours, channel_axis=0, tile=32, progress=False))) <= 1e-5
    with pytest.raises(ImageSetError, match=r"five.tif by bands 1, 2, 3, 4, 5 has 5 channels, and the segmenter takes 3.*say bands="):
        predict(segmenter, path, tmp_path / "d")
    grey = predict(model(), write(tmp_path / "rgb.tif", colours, photometric="rgb"), tmp_path / "e", color="gray")
    with rasterio.open(tmp_path / "rgb.tif") as file: assert file.count == 3
    whole = predict_large(model(), read_image(tmp_path / "rgb.tif", color="gray"), tile=32, progress=False)
    assert np.nanmax(np.abs(read(grey.probability) - whole)) <= 1e-5


def test_nodata_of_photographs_and_of_others(tmp_path, low):
    "Black in one channel of a photograph is a colour; no data in one band of other images is no data."
    colours = noise(3, 70, 90)
    colours[0, 10:30, 10:30] = 0
    colours[:, 40:60, 40:60] = 0
    check_same(write(tmp_path / "photograph.tif", colours, nodata=0), model(3), tmp_path / "a")
    check_same(write(tmp_path / "spectral.tif", colours.astype(np.uint16) * 200, nodata=0), model(3), tmp_path / "b")
    assert np.isnan(read(tmp_path / "a" / "probability.tif")).sum() == 400 and np.isnan(read(tmp_path / "b" / "probability.tif")).sum() == 800


def test_virtual_rasters_and_other_formats(tmp_path, low):
    "A VRT of two files side by side, and lossless JPEG 2000."
    image, segmenter = noise(100, 160), model()
    write(tmp_path / "left.tif", image[:, :80], place={"crs": "EPSG:32633", "transform": from_origin(0, 100, 1, 1)})
    write(tmp_path / "right.tif", image[:, 80:], place={"crs": "EPSG:32633", "transform": from_origin(80, 100, 1, 1)})
    band = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="80" ySize="100"/><DstRect xOff="{x}" yOff="0" xSize="80" ySize="100"/></SimpleSource>'
        for name, x in (("left", 0), ("right", 80)))
    (tmp_path / "both.vrt").write_text(
        f'<VRTDataset rasterXSize="160" rasterYSize="100"><SRS>EPSG:32633</SRS><GeoTransform>0, 1, 0, 100, 0, -1</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1">{band}</VRTRasterBand></VRTDataset>')
    whole = predict_large(segmenter, image, tile=32, progress=False)
    survey = predict(segmenter, tmp_path / "both.vrt", tmp_path / "a")
    assert np.abs(read(survey.probability) - whole).max() <= 1e-5
    with rasterio.open(survey.mask) as file: assert file.crs.to_epsg() == 32633
    options = {"driver": "JP2OpenJPEG", "height": 100, "width": 160, "count": 1, "dtype": "uint8", "quality": 100, "reversible": "yes"}
    with rasterio.open(tmp_path / "image.jp2", "w", **options) as file: file.write(image, 1)
    assert np.abs(read(predict(segmenter, tmp_path / "image.jp2", tmp_path / "b").probability) - whole).max() <= 1e-5


# ---- interrupted, and gone on with

CHILD = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from test_survey import *
    segmenter, forward = model(), Segmenter.forward
    def slow(self, images): time.sleep({delay}); return forward(self, images)
    Segmenter.forward = slow
    module._strip_height = lambda width: 64
    print("go", flush=True)
    print(predict(segmenter, {source!r}, {out!r}, part={part!r}), flush=True)
""")


def child(source, out, part=None, delay=0.0, env=()):
    code = CHILD.format(tests=str(Path(__file__).parent), source=str(source), out=str(out), part=part, delay=delay)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env))


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.posix
def test_goes_on_after_being_killed(tmp_path, low):
    path, out = write(tmp_path / "image.tif", noise(640, 300)), tmp_path / "out"
    process = child(path, out, delay=0.2)
    wait_for(lambda: len(list(out.glob("strips/strip-*.npz"))) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("strips/strip-*.npz")}
    assert 3 <= len(done) < 10
    kept = {}
    work = module._Work.strips
    def watch(self, numbers, bar):
        kept.update({p.name: p.stat().st_mtime_ns for p in out.glob("strips/strip-*.npz")}, numbers=list(numbers))
        return work(self, numbers, bar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Work, "strips", watch)
        check_same(path, model(), out)
    assert kept.pop("numbers") == [n for n in range(10) if f"strip-{n:06}.npz" not in done] and kept == done


def test_goes_on_from_scattered_strips(tmp_path, low):
    path, out = write(tmp_path / "image.tif", noise(640, 90)), tmp_path / "out"
    for part in ((1, 5), (3, 5)):
        survey = predict(model(), path, out, part=part)
        assert not survey.is_complete and f"part {part[0]} of 5" in str(survey)
    assert survey.left == 6 and "6 of 10 strips are not predicted yet" in str(survey)
    with pytest.raises(ValueError, match=r"6 of 10 strips of .* are not predicted yet \(0, 1, 4, 5, 8 and 1 more\); call predict_survey"): join_survey(out, progress=False)
    with pytest.raises(ValueError, match="not predicted yet, in .* Call predict_survey with the same settings first"): plot_survey(out)
    check_same(path, model(), out)


def test_interrupted_while_joining(tmp_path, low, monkeypatch):
    path, out = write(tmp_path / "image.tif", noise(200, 90)), tmp_path / "out"
    def fail(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", fail)
        with pytest.raises(KeyboardInterrupt): predict(model(), path, out)
    (out / ".mask.tif.1.part").write_bytes(b"of a process that was killed")
    assert len(list(out.glob("strips/*.npz"))) == 4 and not (out / "mask.tif").exists()
    assert join_survey(out, progress=False).is_complete and sorted(p.name for p in out.glob("*.tif")) == ["mask.tif", "probability.tif"]
    assert not list(out.glob(".*.part")) and not (out / "strips").exists()
    times = [p.stat().st_mtime_ns for p in out.glob("*.tif")]
    check_same(path, model(), out)
    assert join_survey(out).is_complete and times == [p.stat().st_mtime_ns for p in out.glob("*.tif")]


def test_what_was_not_written_is_noticed(tmp_path, low, monkeypatch):
    path, out = write(tmp_path / "image.tif", noise(200, 90)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module.zlib, "crc32", iter(range(100)).__next__ if False else lambda values, calls=[]: calls.append(0) or len(calls))
        with pytest.raises(OSError, match="does not hold what was written to it: is the disk full.*the strips are still there"): predict(model(), path, out)
    assert len(list(out.glob("strips/*.npz"))) == 4 and join_survey(out).is_complete


def test_damaged_strip_is_named(tmp_path, low):
    path, out = write(tmp_path / "image.tif", noise(200, 90)), tmp_path / "out"
    predict(model(), path, out, part=(0, 2))
    strip = out / "strips" / "strip-000001.npz"
    content = strip.read_bytes()
    for damaged in (content[:100], b"", content[:-200] + bytes(100) + content[-100:]):
        strip.write_bytes(damaged)
        with pytest.raises(ValueError, match="strip-000001.npz is damaged .* Remove it, and call predict_survey again"): predict(model(), path, out)
    strip.unlink()
    check_same(path, model(), out)


# ---- shared by processes

@pytest.mark.posix
def test_two_processes_share_a_survey(tmp_path, low):
    path, out = write(tmp_path / "image.tif", noise(500, 200)), tmp_path / "out"
    both = [child(path, out, "auto", 0.01, {"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("probability.tif and mask.tif are in" in text for text, _ in said)
    check_same(path, model(), out)


@pytest.mark.posix
def test_a_crash_leaves_the_work_of_others(tmp_path, low):
    path, out = write(tmp_path / "image.tif", noise(640, 200)), tmp_path / "out"
    slow = child(path, out, (1, 2), 1.0)
    wait_for((out / ".part-1-of-2.lock").exists, slow)
    assert "not predicted yet" in str(predict(model(), path, out, part=(0, 2)))
    with pytest.raises(ValueError, match="another process is predicting part 1 of 2"): predict(model(), path, out, part=(1, 2))
    slow.kill()
    slow.wait()
    assert {f"strip-{n:06}.npz" for n in range(5)} <= {p.name for p in out.glob("strips/*.npz")}
    check_same(path, model(), out)


def test_slurm_arrays(tmp_path, low, monkeypatch):
    path, out = write(tmp_path / "image.tif", noise(256, 60)), tmp_path / "out"
    for name, value in {"COUNT": "2", "MIN": "1", "MAX": "2", "STEP": "1"}.items(): monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with pytest.warns(UserWarning, match="part 0 of 2 of .*if each task has a survey of its own, say part=None"): survey = predict(model(), path, out, part="auto")
    assert not survey.is_complete and survey.part == (0, 2)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert predict(model(), path, out, part="auto").is_complete
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    with pytest.raises(ValueError, match=r"task 7 of a SLURM array of 2 has numbers that don't follow each other; say part=\(rank, world\)"): predict(model(), path, tmp_path / "b", part="auto")
    for wrong in (3, (2, 2), (-1, 2), "all", (0.5, 2), (0, 1, 2)):
        with pytest.raises(ValueError, match="expected .rank, world. with 0 <= rank < world"): _as_part(wrong)


# ---- what cannot be done

def test_bad_sources(tmp_path):
    run, out = partial(predict, model()), tmp_path / "out"
    with pytest.raises(ImageSetError, match="none.tif is not there"): run(tmp_path / "none.tif", out)
    with pytest.raises(ImageSetError, match="is a folder; expected one image. predict_files takes folders"): run(tmp_path, out)
    (tmp_path / "text.tif").write_text("no raster at all")
    with pytest.raises(ImageSetError, match="text.tif is no image that rasterio opens, or it is damaged"): run(tmp_path / "text.tif", out)
    with pytest.raises(ImageSetError, match="source is a ndarray; expected the path of an image. predict_large takes arrays"): run(noise(50, 50), out)
    path = write(tmp_path / "image.tif", noise(90, 100))
    for bands in (0, [1, 2], [], [2]):
        with pytest.raises(ImageSetError, match="bands=.*image.tif has bands 1 to 1; expected some of these"): run(path, out, bands=bands)
    with pytest.raises(ImageSetError, match="has 1 channel, and the segmenter takes 3"): predict(model(3), path, out)
    write(tmp_path / "complex.tif", noise(50, 50).astype(np.complex64))
    with pytest.raises(ImageSetError, match="holds values of type complex64; expected real numbers"): run(tmp_path / "complex.tif", out)
    write(tmp_path / "floats.tif", noise(90, 100).astype(np.float32))
    with pytest.raises(ImageSetError, match=r"floats.tif values are floats from .*expected \[0, 1\]"): run(tmp_path / "floats.tif", out)
    with rasterio.open(tmp_path / "palette.tif", "w", driver="GTiff", height=9, width=9, count=1, dtype="uint8", photometric="palette") as file:
        file.write(np.ones((1, 9, 9), np.uint8))
        file.write_colormap(1, {1: (255, 0, 0, 255)})
    with pytest.raises(ImageSetError, match="has a colour palette"): run(tmp_path / "palette.tif", out)
    assert not out.exists()


def test_damaged_source_is_named_and_what_is_done_is_kept(tmp_path, low):
    path = write(tmp_path / "image.tif", noise(640, 100), blockysize=64, blockxsize=64)
    content = bytearray(path.read_bytes())
    with rasterio.open(path) as file: offset = int(file.get_tag_item("BLOCK_OFFSET_0_8", "TIFF", bidx=1))
    content[offset:offset + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(ImageSetError, match=r"image.tif cannot be read in rows \d+ to \d+, columns 0 to \d+, so it is damaged"): predict(model(), path, tmp_path / "out")
    assert len(list((tmp_path / "out" / "strips").glob("*.npz"))) >= 6


def test_bad_settings(tmp_path):
    path, out = write(tmp_path / "image.tif", noise(90, 100)), tmp_path / "out"
    with pytest.raises(ValueError, match="Say tile=, the side in pixels"): predict(model(), path, out, tile=None)
    with pytest.raises(ValueError, match="tile=2; expected a whole number of pixels"): predict(model(), path, out, tile=2)
    with pytest.raises(ValueError, match="probabilities='float16' is opened by GDAL 3.11 and later only"): predict(model(), path, out, probabilities="float16")
    with pytest.raises(ValueError, match="probabilities='uint32' is not known"): predict(model(), path, out, probabilities="uint32")
    with pytest.raises(ValueError, match="threshold=2; expected 0 to 1"): predict(model(), path, out, threshold=2)
    with pytest.raises(ValueError, match="batch_size=0"): predict(model(), path, out, batch_size=0)
    with pytest.raises(ValueError, match="has not been fitted"): predict(Segmenter(), path, out)
    with pytest.raises(ValueError, match="resume=False is for one process"): predict(model(), path, out, resume=False, part=(0, 2))
    with pytest.raises(ValueError, match="color='blue' is not known"): predict(model(), path, out, color="blue")
    def whole(image): return image / 255
    with pytest.raises(ValueError, match="a function of the whole image, which is never in memory; say measure='patch'"):
        predict(model(normalization=Normalization("function", function=whole, of="image")), path, out)
    assert not out.exists()
    image = noise(90, 100)
    image[:] = 3
    empty = write(tmp_path / "empty.tif", image, nodata=3)
    with pytest.raises(ImageSetError, match="shows nothing: all of it is unseen"): predict(model(normalization=Normalization("percentile")), empty, tmp_path / "b", measure="image")
    assert (read(predict(model(), empty, tmp_path / "c").mask) == 255).all()


def test_outputs_are_never_mixed(tmp_path):
    path, out = write(tmp_path / "image.tif", noise(90, 100)), tmp_path / "out"
    predict(model(), path, out)
    for other in (dict(overlap=0.25), dict(threshold=0.9), dict(probabilities="uint8"), dict(flip="both"), dict(bands=[1], invalid="zero")):
        with pytest.raises(ValueError, match="holds predictions of another model or other settings"): predict(model(), path, out, **other)
    with pytest.raises(ValueError, match="What differs:\n.*model"): predict(model(seed=1), path, out)
    with pytest.raises(ValueError, match="What differs:\n.*images"): predict(model(), write(tmp_path / "other.tif", noise(90, 100)), out)
    with pytest.raises(ValueError, match="holds predictions already"): predict(model(), path, out, resume=False)
    write(path, noise(90, 100, seed=1))
    with pytest.raises(ValueError, match="What differs:\n.*state"): predict(model(), path, out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"): predict(model(), path, mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(NotADirectoryError, match="it is a file"): predict(model(), path, mine / "thesis.tex")
    with pytest.raises(ValueError, match="holds no survey: settings.json is missing"): join_survey(mine)
    (mine / "settings.json").write_text(json.dumps({"format": "another"}))
    with pytest.raises(ValueError, match="describes no survey, or is damaged"): join_survey(mine)


def test_says_how_to_get_rasterio(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImageSetError, match=r"needs the package rasterio: pip install 'bgcs\[geo\]'"): predict(model(), tmp_path / "image.tif", tmp_path / "out")


def test_picture(tmp_path):
    image = noise(700, 900)
    image[:100] = 0
    survey = predict(model(), write(tmp_path / "image.tif", image, nodata=0), tmp_path / "out")
    figure = survey.plot(longest=300)
    picture, values = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert picture.shape == (233, 300, 3) and values.shape == (233, 300) and np.ma.getmaskarray(values)[:30].all()


# ---- memory

MEMORY = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from test_survey import *
    begun = time.time()
    predict_survey(model(base_width=1, depth=0), {source!r}, {out!r}, tile={tile}, overlap={overlap}, progress=False, part=None)
    peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    print(peak * 1024, time.time() - begun)
""")


def large(path, side, seen=None):
    "A large GeoTIFF, made of one piece over and over; blocks that are not seen are not written."
    piece = noise(512, 512)
    options = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "tiled": True, "blockxsize": 512, "blockysize": 512}
    with rasterio.open(path, "w", compress="deflate", zlevel=1, nodata=0, sparse_ok=True, bigtiff="if_safer", **options, **PLACE) as file:
        for top in range(0, side, 512):
            for left in range(0, side, 512):
                if seen is not None and not seen(top, left): continue
                h, w = min(512, side - top), min(512, side - left)
                file.write(piece[:h, :w], 1, window=((top, top + h), (left, left + w)))
    return path


def memory_of(source, out, tile, overlap):
    code = MEMORY.format(tests=str(Path(__file__).parent), source=str(source), out=str(out), tile=tile, overlap=overlap)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    bytes_used, seconds = map(float, done.stdout.split()[-2:])
    return bytes_used, seconds


@pytest.mark.linux
def test_memory_is_bounded(tmp_path):
    "Of an image of 5,000 pixels a side, most of it unseen; Python with PyTorch takes 0.6 GB by itself."
    def some(top, left): return (top // 512 + left // 512) % 4 == 0
    source = large(tmp_path / "large.tif", 5000, some)
    used, _ = memory_of(source, tmp_path / "out", 128, 0)
    assert used < 1.5e9
    with rasterio.open(tmp_path / "out" / "mask.tif") as file:
        assert file.shape == (5000, 5000) and file.overviews(1) == [2, 4, 8, 16]
        marks = file.read(1)
    with rasterio.open(source) as file: assert np.array_equal(marks == 255, file.read(1) == 0)
    assert {0, 1} < set(np.unique(marks))


@pytest.mark.slow
@pytest.mark.linux
def test_forty_thousand_pixels_a_side(tmp_path):
    source = large(tmp_path / "large.tif", 40_000)
    used, seconds = memory_of(source, tmp_path / "out", 128, 0)
    print(f"{used / 1e9:.2f} GB, {seconds:.0f} s")
    assert used < 1.5e9
    with rasterio.open(tmp_path / "out" / "mask.tif") as file:
        assert file.shape == (40_000, 40_000) and file.overviews(1)[-1] == 128 and file.transform == PLACE["transform"]
        top, left = 19_968, 30_208  # a corner of blocks, far inside
        whole = predict_large(model(base_width=1, depth=0), np.tile(noise(512, 512), (3, 3)), tile=128, overlap=0, progress=False)
        expected, found = whole[512:1024, 512:1024], file.read(1, window=((top, top + 512), (left, left + 512)))
        assert np.array_equal(found[np.abs(expected - 0.5) > 1e-5] == 1, expected[np.abs(expected - 0.5) > 1e-5] >= 0.5)
