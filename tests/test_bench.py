"""What the benchmark says is so: parts add up, time is charged where it was spent, the network's variants give the same numbers; the command line in a process of its own."""
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from bgcs.runs.bench import AS_RUN, PARTS, PLAIN, QUICK, Benchmark, BenchSettings, bench_clusters, bench_images, gpu_table, machine, main, network_times, network_variants, outside, speed_ups, stage_rates, step_times, watched
from bgcs.masks.masknet import UNet
from bgcs.training.learner import kept_memory
from bgcs.masks.segment import Segmenter
from bgcs.objective.terms import Objective

TINY = BenchSettings(size=16, width=4, depth=1, images=8, projections=20, steps=3, rounds=2)
OPTIONS = ["--size", "16", "--width", "4", "--depth", "1", "--images", "8", "--projections", "20", "--steps", "2", "--rounds", "1"]


@pytest.fixture(scope="module")
def data(): return bench_images(TINY)


class Clock(L.Callback):
    "When steps begin, by other means."
    def __init__(self): self.begun = []
    def on_train_batch_start(self, *_): self.begun.append(time.perf_counter())


@pytest.mark.parametrize("objective", [TINY.segmenter().objective, Objective(opening=0), Objective(opening=1)], ids=["paper", "recomposition", "mosaics"])
def test_parts_add_up_to_the_step(data, objective):
    clock, segmenter = Clock(), Segmenter(base_width=4, depth=1, objective=objective)
    with watched(segmenter) as times:
        segmenter.fit(data, bench_clusters(data, 4), steps=8, epochs=1, per_cluster=2, n_real=2, held_out=None, progress=False, accelerator="cpu", callbacks=[clock], profiler=times)
    parts = times.parts()
    assert list(parts) == list(PARTS) and len(parts) == 7 and (parts > 0).all(axis=None)
    assert parts[1:].sum(axis=1).median() == pytest.approx(np.median(np.diff(clock.begun)[1:]), rel=0.2)
    assert parts.to_numpy().sum() == pytest.approx(times.begun[-1] - times.begun[0])


def test_measuring_leaves_the_weights_as_they_would_be(data):
    settings = dict(steps=3, epochs=1, per_cluster=2, n_real=2, held_out=None, progress=False, accelerator="cpu")
    measured, plain = TINY.segmenter(), TINY.segmenter().fit(data, bench_clusters(data, 4), **settings)
    with watched(measured) as times: measured.fit(data, bench_clusters(data, 4), profiler=times, **settings)
    for name, value in plain.state_dict().items(): assert torch.equal(value, measured.state_dict()[name]), name


def test_precision_reaches_the_network(data):
    kinds, segmenter = set(), TINY.segmenter()
    segmenter.net.down[0][0].register_forward_hook(lambda layer, inputs, output: kinds.add(output.dtype))
    segmenter.fit(data, bench_clusters(data, 4), steps=1, epochs=1, per_cluster=2, n_real=2, held_out=None, progress=False, accelerator="cpu", precision="bf16-mixed")
    assert kinds == {torch.bfloat16}


def test_shares_and_speed_ups():
    parts = pd.DataFrame({"forward": [2.0, 1.0], "backward": [6.0, 2.0], "objective": [1.0, 0.5], "optimiser": [0.5, 0.25], "averaging": [0.25, 0.0], "dealing": [0.25, 0.25], "rest": [0.0, 0.0]})
    assert outside(parts).tolist() == pytest.approx([0.2, 0.25])
    times = pd.DataFrame([(PLAIN, 0, 1, 2, 3), (AS_RUN, 0, 1, 1, 2), (PLAIN, 1, 2, 2, 4), (AS_RUN, 1, 0.5, 1.5, 2), (PLAIN, 2, 3, 3, 6), (AS_RUN, 2, 1, 1, 2)], columns=["network", "round", "forward", "backward", "total"])
    row = speed_ups(times).loc[AS_RUN]
    assert (row["times faster"], row["least"], row["most"], row["forward"]) == (2, 1.5, 3, 1) and (speed_ups(times).loc[PLAIN, ["times faster", "least", "most"]] == 1).all()


def test_every_network_takes_its_turn():
    times = network_times(network_variants(TINY), TINY, progress=False)
    assert times.groupby("network")["round"].apply(list).to_dict() == {name: [0, 1] for name in network_variants(TINY)}
    assert times["network"][0] != times["network"][3]  # another begins each round


def test_all_of_it_is_json(data):
    parts, segmenter = step_times(TINY, data)
    table = gpu_table(TINY, data, ("bf16-mixed",), (False,))
    result = Benchmark(TINY, machine(), stage_rates(TINY, data, parts, segmenter), parts, network_times(network_variants(TINY), TINY, progress=False), None, table)
    found = json.loads(json.dumps(result.to_dict()))
    assert found["gpu"][0]["precision"] == "bf16-mixed" and not found["gpu"][0]["compiled"] and 0 < found["gpu"][0]["in convolutions"] < 1
    assert found["step_ms"].keys() == PARTS.keys() and "On the GPU" in str(result) and "Peak" not in str(result)


def test_command_line_in_a_process_of_its_own(tmp_path):
    done = subprocess.run([sys.executable, "-m", "bgcs.runs.bench", *OPTIONS, "--precision", "bf16-mixed", "--out", str(tmp_path / "b.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["settings"] | {"size": 16, "images": 8, "precision": "bf16-mixed", "device": "cpu"} == found["settings"] and found["peak_memory_mb"] > 50
    assert all(rate > 0 for rate in found["images_per_second"].values()) and {"read files", "cluster: embed, assign", "step: objective", "predict"} <= found["images_per_second"].keys()
    for text in ("Images per second", "Outside the network", "Peak memory", AS_RUN): assert text in done.stdout


@pytest.mark.parametrize("options, text", [(["--images", "0"], "images=0"), (["--size", "x"], "invalid int"), (["--precision", "8"], "invalid choice"), (["--precision", "16-mixed"], "needs a GPU"), (["--targets", "9"], "no more targets"),
                                           (["--depth", "-1"], "depth=-1"), (["--out", "nowhere/b.json"], "no folder"), (["--out", "."], "is a folder"), (["--speed"], "unrecognized")])
def test_bad_options_exit_with_2_before_long_work(options, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error: main(options)
    assert error.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_is_said_so(capsys):
    with pytest.raises(SystemExit) as error: main(["--gpu"])
    assert error.value.code == 2 and "finds no GPU" in capsys.readouterr().err


def reference(images, weights, depth):
    "The U-Net, written out, from the weights of a `UNet`."
    def norm(x, name): return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)
    def block(x, name):
        for i in (0, 3): x = F.relu(norm(F.conv2d(x, weights[f"{name}.{i}.weight"], padding=1), f"{name}.{i + 1}"))
        return x
    h, w = images.shape[2:]
    x, kept = norm(F.pad(images, (0, -w % 2**depth, 0, -h % 2**depth), mode="replicate"), "norm"), []
    for level in range(depth):
        kept.append(block(x, f"down.{level}"))
        x = F.max_pool2d(kept[-1], 2)
    x = block(x, f"down.{depth}")
    for level in reversed(range(depth)): x = block(torch.cat([kept[level], F.conv_transpose2d(x, weights[f"widen.{level}.weight"], weights[f"widen.{level}.bias"], stride=2)], 1), f"up.{level}")
    return F.conv2d(x, weights["head.weight"], weights["head.bias"])[..., :h, :w]


@pytest.mark.parametrize("channels, size", [(1, (32, 32)), (3, (17, 30))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("keep", [kept_memory, nullcontext])
def test_network_is_the_same_however_it_is_run(channels, size, layout, keep):
    torch.manual_seed(0)
    net, images = UNet(channels, 8, 3), torch.rand(4, channels, *size)
    weights = {name: value.detach().double().requires_grad_() for name, value in net.named_parameters()}
    expected = reference(images.double(), weights, 3)
    expected.square().mean().backward()
    with keep():
        single = net.to(memory_format=layout)(images.contiguous(memory_format=layout))
        double = net.double()(images.double().contiguous(memory_format=layout))
        double.square().mean().backward()
    assert single.dtype == torch.float32 and torch.allclose(single.double(), expected, atol=1e-4) and torch.allclose(double, expected, atol=1e-10)
    for name, value in net.named_parameters(): assert torch.allclose(value.grad, weights[name].grad, atol=1e-10), name


@pytest.mark.slow
def test_compiled_network_is_measured():
    settings = replace(TINY, compile=True)
    table = speed_ups(network_times(network_variants(settings), settings, progress=False))
    assert f"{AS_RUN}, compiled" in table.index and (table["total"] > 0).all()
