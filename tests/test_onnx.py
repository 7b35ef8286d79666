"""Networks of every method as ONNX files: the same masks at any size, in the numbers of the instrument, also without torch."""
import inspect
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import bgcs.outputs.onnx
from bgcs.data.images import ImageSet
from bgcs.data.intensity import Normalization
from bgcs.masks.masknet import UNet
from bgcs.masks.method import METHODS, method_class
from bgcs.masks.predict import predict_files
from bgcs.masks.segment import Segmenter
from bgcs.methods.anomaly import GaussianDetector
from bgcs.methods.cut import SpectralCut
from bgcs.methods.presence import PresenceMap
from bgcs.methods.sam import Refinement
from bgcs.methods.supervised import Supervised
from bgcs.objective.batches import Batches
from bgcs.outputs.onnx import SCRIPT, export_onnx

SHAPES = ((1, 33, 47), (2, 32, 32), (3, 20, 50), (1, 5, 31), (1, 96, 70))
NETWORKS = [name for name in METHODS if name != "cut"]


SMALL = {"base_width": 4, "depth": 1, "copies": 2}  # settings of those methods that have them, for short tests


def squares(channels):
    "Sixty small images: noise of two kinds, with a bright square in every other."
    images = torch.rand(60, channels, 18, 26, generator=torch.Generator().manual_seed(0)) * 0.4
    kinds = torch.arange(60) // 2 % 2
    images[kinds == 1] = images[kinds == 1].round(decimals=1)
    images[::2, :, 5:12, 8:16] += 0.5
    return ImageSet(images, torch.arange(60) % 2 == 0), kinds


@torch.no_grad()
def spread(model):
    "Of a network that has hardly learned, masks that are not the same grey all over."
    for part in filter(lambda part: isinstance(part, UNet), model.eval().modules()):
        channels = part.norm.num_features - len(getattr(part, "distances", ()))
        logits = part(torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(0)))
        scale = 2 / logits.std()
        part.head.weight.mul_(scale)
        part.head.bias.sub_(logits.median()).mul_(scale)
    return model


def trained(name, channels):
    kind, (data, clusters) = method_class(name), squares(channels)
    taken = inspect.signature(kind).parameters
    model = kind(channels, **{key: value for key, value in SMALL.items() if key in taken})
    given = {"steps": 3, "rounds": 1} if kind.default_steps else {}
    if "masks" in kind.needs: given["masks"] = {i: (data.images[i, :1] > 0.5)[0].byte() for i in range(0, 20, 2)}
    if name == "divergence": given["batches"] = Batches(4, 20)
    model.fit(data, clusters, held_out=None, progress=False, **given)
    model.threshold_ = 0.37
    return spread(model)


def light(channels=1, normalization=Normalization()):
    "Two convolutions, whose masks go from 0 to 1."
    model = Supervised(channels, base_width=4, depth=0)
    generator = torch.Generator().manual_seed(0)
    model.normalization_, model.threshold_ = normalization, 0.5
    with torch.no_grad():
        for _ in range(30): model.net(torch.rand(4, channels, 20, 20, generator=generator))  # statistics of its layers
    return spread(model)


def run(path, images): return onnxruntime.InferenceSession(path).run(None, {"images": np.asarray(images, np.float32)})[0]


def said(path):
    found = onnx.load(path)
    return {entry.key: json.loads(entry.value) for entry in found.metadata_props}


def assert_same(path, model, channels, shapes=SHAPES):
    generator, widest = torch.Generator().manual_seed(1), 0
    for n, h, w in shapes:
        images = torch.rand(n, channels, h, w, generator=generator)
        ours, theirs = model.predict(images).numpy(), run(path, images)
        assert theirs.shape == (n, 1, h, w) and np.abs(ours - theirs).max() < 1e-4
        widest = max(widest, ours.std())
    assert widest > 0.01  # of masks that are one value everywhere, agreement would say nothing


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_masks_at_any_size(name, tmp_path):
    channels = 1 if NETWORKS.index(name) % 2 else 3
    model = trained(name, channels)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert_same(path, model, channels)
    found = said(path)
    assert found["method"] == name and found["threshold"] == 0.37 and found["card"] == model.card_ and model.card_["images"]
    assert found["channels"] == channels and found["input"] == "unit" and found["normalization"] == {"name": "unit"}
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_other_number_of_channels(tmp_path):
    "The segmenter's default network, deeper than those above, in grey."
    model = Segmenter(1).eval()
    model.averaged.module.see_backgrounds(squares(1)[0].backgrounds.images)
    with torch.no_grad():
        for _ in range(10): model.averaged.module.train()(squares(1)[0].images[:8])
    spread(model)
    assert_same(export_onnx(model, tmp_path / "m.onnx"), model, 1, (*SHAPES, (1, 300, 411)))


def test_a_file_names_its_operators_and_no_place_of_this_machine(tmp_path):
    path = export_onnx(light(3), tmp_path / "m.onnx", opset=20)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", 20)] and said(path)["opset"] == 20
    assert b".py" not in path.read_bytes() and not any(t.external_data for t in proto.graph.initializer)
    assert_same(path, light(3), 3)


def test_groups_of_places(tmp_path):
    "Slots of places, which an exporter that follows one image counts wrongly."
    grouped = Refinement(1, base_width=4, depth=1, groups=(3,))
    with torch.no_grad():
        for slots in grouped.net.down[-1][-1].slots: nn.init.normal_(slots.tell.weight)
        for _ in range(10): grouped.net(squares(1)[0].images[:8])
    spread(grouped)
    assert_same(export_onnx(grouped, tmp_path / "m.onnx"), grouped, 1)


NORMALIZATIONS = [
    Normalization("range", 100, 3000), Normalization("percentile", of="image"), Normalization("mean-clip", clip=3), Normalization("zscore", clip=2),
]


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=str)
def test_raw_numbers_go_in(normalization, tmp_path):
    model = light(normalization=normalization)
    path = export_onnx(model, tmp_path / "m.onnx")
    raw = np.random.default_rng(0).gamma(2, 400, (3, 1, 37, 42)).astype(np.uint16)
    raw[1] //= 9
    raw[2] = 700
    ours = model.predict(normalization(raw)).numpy()
    assert np.abs(run(path, raw) - ours).max() < 1e-4 and ours[:2].std() > 0.01
    found = said(path)
    assert found["input"] == "raw" and Normalization.from_dict(found["normalization"]) == normalization
    assert found["normalization"].get("of") == normalization.of


def halved(image): return image / 2


@pytest.mark.parametrize("normalization", [Normalization("function", function=halved), Normalization("range", 0, 9)], ids=str)
def test_images_that_were_normalised_go_in(normalization, tmp_path):
    model = light(normalization=normalization)
    path = export_onnx(model, tmp_path / "m.onnx", normalize=False)
    assert said(path)["input"] == "normalized" and said(path)["normalization"] == normalization.to_dict()
    assert_same(path, model, 1, SHAPES[:2])
    with pytest.raises(ValueError, match="no script for normalised images"): export_onnx(model, tmp_path / "n.onnx", normalize=False, script=True)
    assert not (tmp_path / "n.onnx").exists()


# ---- without torch

WITHOUT = "import runpy, sys; sys.modules |= {'torch': None, 'bgcs': None}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run_script(script, *given): return subprocess.run([sys.executable, "-c", WITHOUT, *map(str, (script, *given))], capture_output=True, text=True)


def noise(shape, top, seed, dtype): return np.random.default_rng(seed).integers(0, top + 1, shape).astype(dtype)


def survey(folder, channels):
    "Pictures of 8 and 16 bits, in a folder below, turned by their EXIF, and of other colours than the model's."
    (folder / "deep").mkdir(parents=True)
    colours = () if channels == 1 else (3,)
    Image.fromarray(noise((40, 61, *colours), 255, 0, np.uint8)).save(folder / "a.png")
    Image.fromarray(noise((33, 47, *colours), 255, 1, np.uint8)).save(folder / "deep" / "b.tif")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(noise((30, 50, *colours), 255, 2, np.uint8)).save(folder / "c.jpg", exif=turned, quality=95)
    if channels == 1: Image.fromarray(noise((36, 36), 65535, 3, np.uint16)).save(folder / "d.png")
    (folder / "notes.txt").write_text("no image")


@pytest.mark.parametrize("channels, normalization", [(1, Normalization()), (3, Normalization()), (1, Normalization("zscore", clip=2))], ids=str)
def test_the_script_predicts_as_predict_files_does(channels, normalization, tmp_path):
    model = light(channels, normalization)
    survey(tmp_path / "in", channels)
    path = export_onnx(model, tmp_path / "m.onnx", script=True)
    script = path.with_suffix(".py")
    assert script.read_text(encoding="utf-8") == SCRIPT and len([line for line in SCRIPT.splitlines() if line.strip()]) <= 20
    done = run_script(script, path, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stdout and "notes.txt" in done.stdout
    found = predict_files(model, tmp_path / "in", tmp_path / "ours", progress=False)
    assert len(found.images) == len(list((tmp_path / "out").rglob("*.png"))) == (4 if channels == 1 else 3)
    for mask in found.images["mask"]:
        ours = np.asarray(Image.open(tmp_path / "ours" / mask))
        theirs = np.asarray(Image.open(tmp_path / "out" / mask.removeprefix("masks/")))
        soft = np.asarray(Image.open(tmp_path / "ours" / mask.replace("masks", "soft"))) / 65534
        sure = np.abs(soft - model.threshold_) > 2e-4
        assert ours.shape == theirs.shape and (ours == theirs)[sure].all() and sure.mean() > 0.99 and 0 < theirs.mean() < 255
    again = run_script(script, path, tmp_path / "in", tmp_path / "out")
    assert again.returncode and "is there already" in again.stderr


def test_the_script_really_runs_without_torch(tmp_path):
    (tmp_path / "s.py").write_text("import torch")
    assert "ModuleNotFoundError" in run_script(tmp_path / "s.py").stderr


def test_a_script_of_others_is_not_replaced(tmp_path):
    (tmp_path / "m.py").write_text("mine")
    with pytest.raises(ValueError, match="is another script"): export_onnx(light(), tmp_path / "m.onnx", script=True)
    assert (tmp_path / "m.py").read_text() == "mine" and not (tmp_path / "m.onnx").exists()
    with pytest.raises(ValueError, match="no script for 2 channels, only for 1 or 3"): export_onnx(light(2), tmp_path / "n.onnx", script=True)


# ---- what cannot be exported

@pytest.mark.parametrize("model, error, text", [
    (SpectralCut(channels=1), ValueError, "eigenproblem"),
    (PresenceMap(channels=1, readout="gradcam"), ValueError, "readout='direct'"),
    (GaussianDetector(), Exception, "has not been fitted"),
    (UNet(), TypeError, "model is of type UNet; expected a trained segmenter"),
])
def test_what_has_no_graph_is_refused(model, error, text, tmp_path):
    with pytest.raises(error, match=text): export_onnx(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("path, given, text", [
    ("m.pt", {}, "expected the name of a file such as 'model.onnx'"), ("folder.onnx", {}, "expected the name of a file"),
    ("m.onnx", {"opset": 11}, "opset=11; expected a whole number, at least 18"),
])
def test_wrong_settings(path, given, text, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=text): export_onnx(light(), tmp_path / path, **given)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'bgcs\[onnx\]'"): export_onnx(light(), tmp_path / "m.onnx")


def test_too_many_weights_for_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bgcs.outputs.onnx, "_MOST", 100)
    with pytest.raises(ValueError, match="weights take more than 2 GB"): export_onnx(light(), tmp_path / "m.onnx")


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    model, graph = light(), bgcs.outputs.onnx._graph
    (tmp_path / "m.onnx").write_bytes(b"older")
    monkeypatch.setattr(bgcs.outputs.onnx, "_graph", lambda model: nn.Sequential(graph(model), nn.Hardtanh(0, 0.6)))
    with pytest.raises(RuntimeError, match="masks of onnxruntime differ by"): export_onnx(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"older"
