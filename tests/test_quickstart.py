"""The quickstart, run as `make demo` runs it: tiny for every day, in full when asked for."""
import json
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import QUICKSTART, TINY

from bgcs.masks.segment import Segmenter
from bgcs.runs.notebooks import run_notebook

PICTURES = {"images.png", "clusters.png", "plane.png", "composites.png", "test_masks.png", "history.png"}


def test_fewer_than_15_code_cells_each_with_a_paragraph_before():
    cells = nbformat.read(QUICKSTART, as_version=4).cells
    code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
    assert len(code) < 15
    assert cells[code[0] - 1].cell_type == "markdown"


def test_tiny_run_leaves_everything_in_one_folder(tmp_path):
    executed = run_notebook(QUICKSTART, tmp_path / "run", TINY)
    folder = executed.parent
    assert PICTURES <= {p.name for p in (folder / "figures").iterdir()}
    assert len(list((folder / "figures" / "training").glob("masks_*.png"))) == 8  # 24 steps, in at most 10 rounds of as many
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"iou", "ap", "f1", "otsu_iou", "otsu_ap", "otsu_f1"}
    assert all(0 <= value <= 1 for value in metrics.values())
    Segmenter.load(folder / "model")
    outputs = [output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]


SCRIPT = """
import sys
from lightning.pytorch.callbacks import LambdaCallback
from bgcs.data.datasets import digits_on_textures
from bgcs.masks.segment import Segmenter

def begin(trainer, *args):
    if trainer.global_step == 3: print("began", flush=True)

data = digits_on_textures(n=60)
began = LambdaCallback(on_train_batch_end=begin)
segmenter = Segmenter(base_width=4, depth=1)
segmenter.fit(data, data.background_class, steps=100_000, callbacks=[began], progress=False)
segmenter.save(sys.argv[1])
print("masks", tuple(segmenter.predict(data.objects[:3]).shape), flush=True)
"""


@pytest.mark.posix
def test_an_interrupt_leaves_a_usable_segmenter(tmp_path):
    "Ctrl-C in the middle of training ends it; the segmenter predicts and can be saved."
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "train.py", tmp_path / "model"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().strip() == "began"
    run.send_signal(signal.SIGINT)
    out, err = run.communicate()
    assert run.returncode == 0 and "masks (3, 1, 32, 32)" in out and "stopped after" in err, err
    Segmenter.load(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_masks(seed, tmp_path):
    "Full settings, clusters estimated from images alone: IoU at least 0.75 and AP at least 0.90 for each of three seeds."
    start = time.monotonic()
    executed = run_notebook(QUICKSTART, tmp_path, {"random_state": seed})
    seconds = time.monotonic() - start
    metrics = json.loads((executed.parent / "metrics.json").read_text())
    print(f"seed {seed}: {metrics}, {seconds:.0f} s for the whole notebook", file=sys.stderr)
    assert metrics["iou"] >= 0.75 and metrics["ap"] >= 0.90
