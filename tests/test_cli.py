"""The command line, in processes of its own: from images to masks, stopped and gone on with; mistakes told in one line."""
import json
import re
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from PIL import Image

from bgcs.data.datasets import digits_on_textures
from bgcs.masks.criteria import Verdict, _verdict
from bgcs.masks.segment import Segmenter
from bgcs.runs.cli import _COMMANDS, main
from bgcs.runs.report import read_losses
from bgcs.runs.runs import load_run, train

TINY = {
    "data.set": "digits_on_textures", "data.n": 40, "clusters.n_clusters": 2, "clusters.encoder": "pca",
    "network.base_width": 4, "network.depth": 1, "schedule.steps": 60, "schedule.rounds": 3, "schedule.per_cluster": 4,
    "schedule.n_real": 20, "schedule.choose": False, "trainer.accelerator": "cpu",
}
WORDS = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
CHOOSING = [word for word in WORDS if "choose" not in word]


def bgcs(*words, **kw):
    return subprocess.run([sys.executable, "-m", "bgcs", *map(str, words)], capture_output=True, text=True, **kw)


def typed(capsys, *words):
    "Exit code, and what was said on each channel, of a command line in this process."
    try: code = main(list(map(str, words)))
    except SystemExit as stop: code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    "A run that Ctrl-C stopped after its first round: its folder, exit code, what was said, and the files it left."
    if sys.platform == "win32": pytest.skip("Ctrl-C of another process: not on Windows")
    folder = tmp_path_factory.mktemp("runs") / "first"
    command = [sys.executable, "-m", "bgcs", "train", *WORDS, "--folder", folder]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while (line := run.stdout.readline()) and "round 1" not in line: pass
    run.send_signal(signal.SIGINT)
    out, err = run.communicate()
    return folder, run.returncode, out, err, {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(interrupted):
    "The same run, gone on with to its end."
    return interrupted[0], bgcs("train", "--folder", interrupted[0])


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    "A run of the same settings that was never stopped, trained from Python."
    return train(folder=tmp_path_factory.mktemp("runs") / "second", settings=TINY, progress=False).folder


LEFT = {
    "settings.yaml", "versions.json", "description.txt", "model/segmenter.safetensors",
    "clusterer/clusterer.safetensors", "figures/images.png", "figures/clusters.png", "figures/plane.png",
    "figures/losses.png", "figures/composites.png", "figures/masks.png", "figures/training/masks_001.png",
    "logs/metrics.csv", "metrics.json", "criteria.json", "verdict.json", "report.html",
}


def test_an_interrupt_leaves_a_model_pictures_and_a_report(interrupted):
    folder, code, out, err, files = interrupted
    assert code == 130 and f"bgcs train --folder {folder}" in out and "Traceback" not in err and "\nVerdict: " in out
    assert LEFT <= files and "figures/training/masks_003.png" not in files


def test_the_same_command_goes_on_to_the_end(finished):
    folder, done = finished
    assert done.returncode == 0 and "Finished" in done.stdout and str(folder / "report.html") in done.stdout, done.stderr
    assert "round 1," not in done.stdout and load_run(folder).status["state"] == "finished"
    assert len(list((folder / "figures" / "training").iterdir())) == 3
    metrics = read_losses(folder / "logs" / "metrics.csv")
    assert len(metrics) == 60 and metrics.loss.notna().all() and any((folder / "logs").glob("events.out.tfevents*"))
    versions = {"python", "bgcs", "torch", "lightning", "numpy", "platform", "device", "threads"}
    assert set(json.loads((folder / "versions.json").read_text())) >= versions


def test_it_ends_as_a_run_from_python_that_was_never_stopped(finished, another):
    weights = [Segmenter.load(folder / "model").state_dict() for folder in (finished[0], another)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert (another / "metrics.json").read_text() == (finished[0] / "metrics.json").read_text()


def times(folder): return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_finished_run_says_so_and_is_left_alone(finished, capsys):
    before = times(finished[0])
    code, out, _ = typed(capsys, "train", *WORDS, "--folder", finished[0])
    assert code == 0 and "This run was finished before" in out and before == times(finished[0])
    verdict = load_run(finished[0]).verdict
    assert out.endswith("\n  ".join([f"Verdict: {verdict.word}", *verdict.reasons]) + "\n")


def test_the_verdict_is_told_and_has_no_say_in_the_exit_code(finished, tmp_path, capsys):
    run = load_run(finished[0])
    before = (run.folder / "verdict.json").read_text()
    failed = Verdict("failed", ("masks mark nothing: train longer", "masks are all the same: look"))
    for written, said in ((failed, "Verdict: failed\n  masks mark nothing: train longer\n  masks are all the same: look\n"),
                          (None, "Verdict: not judged\n  verdict.json is missing or damaged; bgcs evaluate writes it anew\n")):
        if written is None: (run.folder / "verdict.json").unlink()
        else: (run.folder / "verdict.json").write_text(json.dumps(written.to_dict()))
        code, out, err = typed(capsys, "train", "--folder", finished[0])
        assert code == 0 and out.endswith(said) and not err
        assert said.splitlines()[1].strip() in str(run)
    code, out, _ = typed(capsys, "evaluate", finished[0])
    assert code == 0 and f"\nVerdict: {json.loads(before)['word']}\n" in out
    assert json.loads((run.folder / "verdict.json").read_text()) == json.loads(before)
    (run.folder / "verdict.json").write_text(before)
    code, out, err = typed(capsys, "evaluate", finished[0], "--data", "random_state=3", "n=4", "--out", tmp_path / "few")
    assert code == 0 and out.endswith("Verdict: not judged\n  there were too few validation images\n"), out + err
    assert not (tmp_path / "few" / "verdict.json").exists()


def test_settings_of_an_earlier_version_go_on(finished, capsys):
    "What are rounds now were called epochs."
    path = finished[0] / "settings.yaml"
    now = path.read_text()
    path.write_text(now.replace("rounds: 3", "epochs: 3"))
    code, out, err = typed(capsys, "train", "--folder", finished[0])
    path.write_text(now)
    assert code == 0 and "This run was finished before" in out, err


def test_evaluate_own_and_other_images(finished, tmp_path, capsys):
    code, out, _ = typed(capsys, "evaluate", finished[0])
    assert code == 0 and f"{json.loads((finished[0] / 'metrics.json').read_text())['iou']:.4f}" in out
    code, out, err = typed(capsys, "evaluate", finished[0], "--data", "random_state=3", "n=30", "--out", tmp_path / "other")
    assert code == 0 and (tmp_path / "other" / "metrics.json").is_file(), err
    assert (tmp_path / "other" / "figures" / "masks.png").is_file()


def test_other_images_get_a_folder_of_their_own(finished):
    run = load_run(finished[0])
    before = (run.folder / "metrics.json").read_text()
    other = run.evaluate({"n": 30, "random_state": 3})
    made, = run.folder.glob("evaluation-*")
    assert json.loads((made / "metrics.json").read_text())["iou"] == other["iou"]
    assert (run.folder / "metrics.json").read_text() == before


def test_predict_images_of_any_size(finished, tmp_path):
    (tmp_path / "surveys").mkdir()
    images = digits_on_textures("test", n=4).objects.images
    wide = (torch.cat(list(images), 2)[0] * 255).byte().numpy()
    Image.fromarray(wide).save(tmp_path / "surveys" / "wide.png")
    done = bgcs("predict", finished[0], tmp_path / "surveys", "--out", tmp_path / "out", "--min-area", 4)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "masks" / "wide.png").size == (128, 32)
    assert "file" in pd.read_csv(tmp_path / "out" / "table.csv")


def test_compare_judges_runs_alike(finished, another, tmp_path):
    done = bgcs("compare", finished[0], another, "--out", tmp_path / "compared")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "compared" / "comparison.csv", index_col="run")
    words = dict(re.findall(r"\n  (first|second)  (usable|doubtful|failed)", done.stdout))
    assert words == {name: _verdict(found).word for name, found in table.iterrows()}
    assert set(words) == {"first", "second"} and len(set(words.values())) == 1  # of twins
    assert set(table.index) == {"first", "second"} and table.score.nunique() == 1 and table.iou.between(0, 1).all()
    assert (tmp_path / "compared" / "comparison.png").is_file()


def test_own_folders_and_a_source_from_file_names(tmp_path, capsys):
    example = digits_on_textures(n=40)
    for i, (image, present) in enumerate(zip(example.images, example.presence)):
        kind = tmp_path / ("with" if present else "without")
        kind.mkdir(exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(kind / f"site{i // 4:02}_{i:03}.png")
    own = ["--objects", tmp_path / "with", "--backgrounds", tmp_path / "without", "data.source=^(site.*)_"]
    code, out, err = typed(capsys, "describe", *own, "--out", tmp_path / "images.png")
    assert code == 0 and "20 sources" in out and (tmp_path / "images.png").is_file(), err
    fast = [word for word in WORDS if not word.startswith("data.")]
    short = ["schedule.steps=4", "schedule.rounds=1", "data.val=0.3", "data.test=0.2"]
    code, out, err = typed(capsys, "train", *own, *fast, *short, "--folder", tmp_path / "run", "--quiet")
    run = load_run(tmp_path / "run")
    assert code == 0 and run.status["state"] == "finished" and run.settings.preset == "quick", err
    assert not (run.folder / "metrics.json").exists()
    assert "duplicates across training" in (run.folder / "description.txt").read_text()


ABSENT = "mps" if torch.cuda.is_available() else "gpu"
NOWHERE = ["--objects", "nowhere", "--backgrounds", "nowhere"]
MISTAKES = {
    "unknown preset": (["train", "digits-quik"], "did you mean 'digits-quick'"),
    "two presets": (["train", "digits", "fashion"], "expected one"),
    "no images": (["train"], "no images are named"),
    "unknown key": (["train", *WORDS, "schedule.step=3"], "did you mean 'schedule.steps'"),
    "an earlier name": (["train", *WORDS, "schedule.epochs=3"], "is now called 'schedule.rounds'"),
    "wrong type": (["train", *WORDS, "schedule.steps=many"], "expected a whole number"),
    "not YAML": (["train", *WORDS, "schedule.steps=[1"], "is not YAML"),
    "missing device": (["train", *WORDS, f"trainer.accelerator={ABSENT}"], "PyTorch sees no such device here"),
    "batch too small": (["train", *WORDS, "schedule.per_cluster=1"], "at least 2 images"),
    "missing data": (["train", "shipwrecks", "data.root=nowhere"], "AI4Shipwrecks.zip"),
    "missing folders": (["train", *NOWHERE], "is not a folder"),
    "missing config": (["train", "--config", "nowhere.yaml"], "is not a file"),
    "more clusters than images": (["train", *WORDS, "clusters.n_clusters=99"], "only 40 background-only images"),
    "too many targets": (["train", *WORDS, "schedule.target_clusters=3"], "expected at most 2"),
    "no run": (["evaluate", "nowhere"], "holds no run"),
    "nothing to compare": (["compare", "nowhere"], "holds no run"),
    "no range": (["sweep", *WORDS], "no range to sweep over"),
    "range the wrong way": (["sweep", *WORDS, "schedule.lr=3..1"], "the lower end first"),
    "bad range": (["sweep", *WORDS, "schedule.lr=a..b"], "is no range"),
    "no notebook": (["notebook", "nowhere.ipynb"], "expected a notebook"),
    "unknown command": (["fly"], "invalid choice"),
    "unknown option": (["train", "digits-quick", "--fast"], "unrecognized arguments: --fast"),
    "no command": ([], "required: COMMAND"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_with_one_message_and_code_2(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, message = MISTAKES[case]
    code, out, err = typed(capsys, *words)
    assert code == 2 and message in err and "Traceback" not in err and "Traceback" not in out
    if case != "more clusters than images": assert not list(tmp_path.iterdir()), "something was written"


def test_mistakes_in_a_real_process_and_with_debug(tmp_path):
    done = bgcs("notebook", "nowhere.ipynb", cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "bgcs notebook: nowhere.ipynb is not a file; expected a notebook\n"
    with pytest.raises(ValueError, match="digits-quik"): main(["train", "digits-quik", "--debug"])


def test_a_folder_of_another_run_and_of_other_files(finished, tmp_path, capsys):
    code, _, err = typed(capsys, "train", *WORDS, "schedule.lr=0.1", "seed=4", "--folder", finished[0])
    assert code == 2 and "holds another run (seed: 0 there, 4 now; schedule.lr: 0.002 there, 0.1 now)" in err
    assert "Choose another folder" in err
    (tmp_path / "thesis.txt").write_text("x")
    code, _, err = typed(capsys, "train", *WORDS, "--folder", tmp_path)
    assert code == 2 and "holds files, and no run" in err and [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_bad_yaml_names_the_file(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("schedule: [")
    code, _, err = typed(capsys, "train", "--config", tmp_path / "bad.yaml")
    assert code == 2 and "bad.yaml is not YAML" in err


def test_clusters_that_cannot_be_compared_are_named_before_training(tmp_path, capsys):
    "Where no object image is sure of its cluster, there is nothing to compare composites with."
    unsure = ["clusters.min_confidence=0.999999", "clusters.n_clusters=8"]
    code, _, err = typed(capsys, "train", *WORDS, *unsure, "--folder", tmp_path / "run", "--quiet")
    assert code == 2 and "No cluster holds both object and background-only images" in err and "min_confidence" in err
    assert load_run(tmp_path / "run").status["stage"] == "training" and not list((tmp_path / "run").glob("checkpoints/*"))


def test_what_fails_in_the_work_gives_code_1_and_keeps_the_traceback(tmp_path, capsys, monkeypatch):
    code, _, err = typed(capsys, "train", *WORDS, "schedule.lr=1e30", "--folder", tmp_path / "diverged", "--quiet")
    assert code == 1 and "batch" in err and "Traceback" not in err
    assert load_run(tmp_path / "diverged").status["state"] == "failed"
    monkeypatch.setattr("bgcs.runs.runs._write_results", lambda *_: {}["nothing"])
    code, _, err = typed(capsys, "train", *WORDS, "schedule.steps=2", "--folder", tmp_path / "bug", "--quiet")
    noted = tmp_path / "bug" / "error.txt"
    assert code == 1 and f"The traceback is in {noted}" in err and "KeyError" in err
    assert "KeyError: 'nothing'" in noted.read_text()


def test_sweep(tmp_path, capsys):
    tried = ["schedule.steps=6", "schedule.rounds=1", "schedule.lr=1e-3..1e-1 log", "network.depth=1|2"]
    folder = tmp_path / "sweep"
    code, out, err = typed(capsys, "sweep", *CHOOSING, *tried, "--trials", "2", "--folder", folder, "--quiet")
    table = pd.read_csv(folder / "trials.csv", index_col="trial")
    assert code == 0 and len(table) == 2 and {"score", "schedule.lr", "network.depth"} <= set(table), err
    assert (folder / "trials.png").is_file() and "\nVerdict: " in out
    for name, depth in table["network.depth"].items(): assert load_run(folder / name).settings.network.depth == depth


def test_a_sweep_without_optuna_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = typed(capsys, "sweep", *CHOOSING, "schedule.lr=1e-3..1e-1", "--folder", tmp_path / "sweep")
    assert code == 2 and "pip install 'bgcs[sweep]'" in err


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_each_command(command, capsys):
    code, out, _ = typed(capsys, command, "--help")
    assert code == 0 and f"bgcs {command}" in out and "example:" in out and _COMMANDS[command].what[1:20] in out


def test_help_is_quick_and_light():
    command = [sys.executable, "-X", "importtime", "-m", "bgcs", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and all(name in done.stdout for name in _COMMANDS)
    assert not {"torch", "lightning", "numpy", "pandas"} & loaded


def test_presets_are_listed_with_sources(capsys):
    code, out, _ = typed(capsys, "presets")
    assert code == 0 and "shipwrecks-quick" in out
    code, out, _ = typed(capsys, "presets", "birds")
    assert code == 0 and "configs/experiment/cub_segmentation.yaml" in out and "schedule.passes" in out


@pytest.mark.slow
def test_two_processes_leave_one_run(tmp_path):
    two = ["schedule.steps=4", "schedule.rounds=1", "trainer.devices=2"]
    done = bgcs("train", *WORDS, *two, "--runs", tmp_path)
    runs = list(tmp_path.iterdir())
    assert done.returncode == 0 and len(runs) == 1 and load_run(runs[0]).status["state"] == "finished", done.stderr
    assert done.stdout.count("Finished") == 1


# ---- out of a run: surveys, other programs, a page

@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    rasterio = pytest.importorskip("rasterio")
    image = digits_on_textures(n=8).images[:8, 0].reshape(2, 4, 32, 32).permute(0, 2, 1, 3).reshape(1, 64, 128)
    path = tmp_path_factory.mktemp("mosaic") / "mosaic.tif"
    place = rasterio.transform.from_origin(400_000, 5_000_000, 1, 1)
    with rasterio.open(path, "w", "GTiff", 128, 64, 1, "EPSG:32633", place, "uint8") as file:
        file.write((255 * image).byte().numpy())
    return path


def test_a_survey_in_parts(finished, mosaic, tmp_path, capsys):
    import rasterio
    command = ["survey", finished[0], mosaic, "--overlap", 0, "--threshold", 0.3, "--probabilities", "uint16"]
    for rank in range(2):
        code, out, err = typed(capsys, *command, "--out", tmp_path / "parts", "--part", f"{rank}/2")
        assert code == 0, err
    assert typed(capsys, *command, "--out", tmp_path / "whole")[0] == 0
    parts, whole = (tmp_path / name / "mask.tif" for name in ("parts", "whole"))
    with rasterio.open(parts) as a, rasterio.open(whole) as b:
        assert (a.read() == b.read()).all() and a.crs == "EPSG:32633" and a.shape == (64, 128)
    with rasterio.open(tmp_path / "parts" / "probability.tif") as file: assert file.dtypes == ("uint16",)
    code, out, err = typed(capsys, "export", tmp_path / "whole", tmp_path / "objects.geojson", "--format", "geojson")
    assert code == 0 and json.loads((tmp_path / "objects.geojson").read_text())["features"], err


@pytest.mark.parametrize("words, said", [
    (("--part", "2/2"), "'2/2'; expected RANK/WORLD"), (("--part", "one"), "'one'; expected RANK/WORLD"),
    (("--threshold", "3"), "--threshold 3.0; expected 0 to 1"), (("--tile", "none"), "invalid int value: 'none'"),
])
def test_wrong_words_of_a_survey(words, said, finished, mosaic, tmp_path, capsys):
    code, out, err = typed(capsys, "survey", finished[0], mosaic, "--out", tmp_path / "out", *words)
    assert code == 2 and said in err and not (tmp_path / "out" / "mask.tif").exists()


def test_masks_and_model_for_other_programs(finished, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i, image in enumerate(digits_on_textures(n=8).objects.images[:2, 0]):
        Image.fromarray((255 * image).byte().numpy()).save(tmp_path / "in" / f"{i}.png")
    assert typed(capsys, "predict", finished[0], tmp_path / "in", "--out", tmp_path / "found", "--threshold", 0.1)[0] == 0
    code, out, err = typed(capsys, "export", tmp_path / "found", tmp_path / "objects.json", "--min-area", 3)
    assert code == 0 and str(tmp_path / "objects.json") in out, err
    told = json.loads((tmp_path / "objects.json").read_text())
    assert [image["file_name"] for image in told["images"]] == ["0.png", "1.png"] and told["annotations"]
    code, _, err = typed(capsys, "export", tmp_path / "found", tmp_path / "objects.json")
    assert code == 2 and "objects.json" in err and "say --overwrite" in err
    assert typed(capsys, "onnx", finished[0], tmp_path / "model.onnx", "--script")[0] == 0
    script = [sys.executable, tmp_path / "model.py", tmp_path / "model.onnx", tmp_path / "in", tmp_path / "alone"]
    assert subprocess.run(script).returncode == 0 and sorted(p.name for p in (tmp_path / "alone").iterdir()) == ["0.png", "1.png"]
    code, out, err = typed(capsys, "push", finished[0], "me/digits", "--out", tmp_path / "page")
    assert code == 0 and {"README.md", "segmenter.safetensors"} <= {p.name for p in (tmp_path / "page").iterdir()}, err


def test_logs_of_sonar(tmp_path, capsys):
    (tmp_path / "bad.xtf").write_bytes(b"no log")
    code, _, err = typed(capsys, "sonar", tmp_path / "bad.xtf", "--out", tmp_path / "lines")
    assert code == 2 and "bad.xtf is no XTF file" in err
