"""What tools/bench.py says is so: time is charged where it was spent, and the network's variants give the same numbers."""
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import bench
import lightning as L
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from bench import (
    AS_RUN, PARTS, PLAIN, QUICK, Benchmark, BenchSettings, bench_clusters, bench_images, gpu_table, machine, main,
    network_times, network_variants, outside, speed_ups, stage_rates, step_times, train, watched,
)
from conftest import ROOT
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bgcs.masks.masknet import UNet
from bgcs.masks.segment import Segmenter
from bgcs.objective.terms import Objective
from bgcs.training.learner import kept_memory

TINY = BenchSettings(size=16, width=4, depth=1, images=8, projections=20, steps=3, rounds=2)
OPTIONS = [
    "--size", "16", "--width", "4", "--depth", "1", "--images", "8", "--projections", "20", "--steps", "2",
    "--rounds", "1",
]


@pytest.fixture(scope="module")
def data(): return bench_images(TINY)


# settings and images

@pytest.mark.parametrize("wrong, text", [
    ({"images": 0}, "images=0"), ({"targets": 5}, "no more targets"), ({"clusters": 1}, "at least 2 clusters"),
    ({"targets": 3}, "divided among"), ({"precision": "8"}, "precision='8'"), ({"precision": "16-mixed"}, "needs a GPU"),
    ({"device": "tpu"}, "device='tpu'"), ({"size": 4}, "size=4"), ({"depth": -1}, "depth=-1"),
])
def test_bad_settings(wrong, text):
    with pytest.raises(ValueError, match=text): BenchSettings(**wrong)


def test_images_are_enough_for_any_step():
    data = bench_images(QUICK)
    assert data.shape == (1, 32, 32) and len(data) == 128
    assert bench_clusters(data, 4)[data.presence].bincount().tolist() == [16] * 4
    assert bench_images(replace(QUICK, size=104)).shape == (1, 104, 104)


def test_the_machine_is_named():
    assert {"cpu", "threads", "torch", "bgcs"} <= set(machine()) and machine()["gpu"] is None
    if sys.platform != "win32": assert 50 < bench.peak_memory("cpu") < 1e6


# a step, part by part

class Begun(L.Callback):
    "When steps begin, by other means."
    def __init__(self): self.at = []

    def on_train_batch_start(self, *_): self.at.append(bench.now("cpu"))


OBJECTIVES = {
    "paper": TINY.segmenter().objective, "opening": Objective(opening=1),
    "composites": Objective(opening=0),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_parts_add_up_to_the_step(data, objective):
    begun, segmenter = Begun(), Segmenter(channels=1, base_width=4, depth=1, objective=objective)
    with watched(segmenter) as times: train(TINY, segmenter, data, 8, callbacks=[begun], profiler=times)
    parts = times.parts()
    assert list(parts) == list(PARTS) and len(parts) == 7 and (parts > 0).all(axis=None)
    assert parts.to_numpy().sum() == pytest.approx(times.begun[-1] - times.begun[0])
    for begin, at, end in zip(times.begun, begun.at, times.begun[1:]): assert begin < at < end


class Clock:
    "Stands still but where it is told to go on, so that what is measured doesn't depend on the machine."
    def __init__(self): self.seconds = 0.0

    def __call__(self, device): return self.seconds


def test_time_is_charged_where_it_was_spent(data, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench, "now", clock)

    class Slow(Segmenter):
        def losses(self, *args):
            clock.seconds += 50
            return super().losses(*args)

        def after_step(self):
            clock.seconds += 30
            super().after_step()

    class Pause(L.Callback):
        def on_train_batch_start(self, *_): clock.seconds += 20

    slow = Slow(channels=1, base_width=4, depth=1, objective=TINY.segmenter().objective)
    with watched(slow) as times: train(TINY, slow, data, 6, callbacks=[Pause()], profiler=times)
    spent = {name: 0.0 for name in PARTS} | {"objective": 50.0, "optimiser": 30.0, "rest": 20.0}
    assert times.parts().to_dict("records") == [spent] * 5
    assert "update_parameters" not in vars(slow.averaged)
    assert not slow.net._forward_hooks and not slow.net._forward_pre_hooks


def test_measuring_leaves_the_weights_as_they_would_be(data):
    measured, plain = TINY.segmenter(), train(TINY, TINY.segmenter(), data, 3)
    with watched(measured) as times: train(TINY, measured, data, 3, profiler=times)
    for name, value in plain.state_dict().items(): assert torch.equal(value, measured.state_dict()[name]), name


def test_precision_reaches_the_network(data):
    kinds, segmenter = set(), TINY.segmenter()
    segmenter.net.down[0][0].register_forward_hook(lambda layer, inputs, output: kinds.add(output.dtype))
    train(replace(TINY, precision="bf16-mixed"), segmenter, data, 1)
    assert kinds == {torch.bfloat16}


SECONDS = pd.DataFrame({
    "forward": [2.0, 1.0], "backward": [6.0, 2.0], "objective": [1.0, 0.5], "optimiser": [0.5, 0.25],
    "averaging": [0.25, 0.0], "dealing": [0.25, 0.25], "rest": [0.0, 0.0],
})
TURNS = pd.DataFrame(
    [(PLAIN, 0, 1, 2, 3), (AS_RUN, 0, 1, 1, 2), (PLAIN, 1, 2, 2, 4), (AS_RUN, 1, 0.5, 1.5, 2), (PLAIN, 2, 3, 3, 6),
     (AS_RUN, 2, 1, 1, 2)],
    columns=["network", "round", "forward", "backward", "total"],
)


def test_shares_and_speed_ups():
    assert outside(SECONDS).tolist() == pytest.approx([0.2, 0.25])
    row = speed_ups(TURNS).loc[AS_RUN]
    assert (row["times faster"], row["least"], row["most"], row["forward"]) == (2, 1.5, 3, 1)
    assert (speed_ups(TURNS).loc[PLAIN, ["times faster", "least", "most"]] == 1).all()


def test_tables_of_known_times():
    result = Benchmark(TINY, machine(), pd.Series({"predict": 7.0}), SECONDS, TURNS, 2048.0)
    row = result.step_table().loc["forward"]
    assert (row["ms"], row["least"], row["most"]) == (1500, 1000, 2000) and row["share"] == pytest.approx(0.225)
    assert result.outside == pytest.approx(0.225) and result.speed_up == 2
    assert "Outside the network: 22.5% of a step (20.0% to 25.0%).\nPeak memory: 2,048 MB." in str(result)
    assert len(result.plot().axes[0].patches) == len(PARTS)


# the network, other stages, the GPU's numbers

def test_every_network_takes_its_turn():
    times = network_times(network_variants(TINY), TINY, progress=False)
    turns = times.groupby("network")["round"].apply(list).to_dict()
    assert turns == {name: [0, 1] for name in network_variants(TINY)}
    assert times["network"][0] != times["network"][3]  # another begins each round
    assert (times[["forward", "backward"]] > 0).all(axis=None)


def test_variants_that_are_compared():
    assert list(network_variants(QUICK)) == [PLAIN, AS_RUN, f"{AS_RUN}, bf16-mixed"]
    compiled = replace(QUICK, precision="bf16-mixed", compile=True)
    assert list(network_variants(compiled)) == [PLAIN, AS_RUN, f"{AS_RUN}, compiled"]
    assert len(network_variants(replace(QUICK, compile=True))) == 5


def test_all_of_it_is_json(data):
    parts, segmenter = step_times(TINY, data)
    stages, table = stage_rates(TINY, data, parts, segmenter), gpu_table(TINY, data, ("bf16-mixed",), (False,))
    assert (stages > 0).all() and len(stages) == 8
    assert stages["step: whole"] < stages[["step: forward", "step: objective", "step: backward"]].min()
    assert (table[["step, s", "TFLOP/s", "ratio"]] > 0).all(axis=None)
    assert table["epoch, s"][0] == pytest.approx(70_000 / 16 * table["step, s"][0])
    turns = network_times(network_variants(TINY), TINY, progress=False)
    result = Benchmark(TINY, machine(), stages, parts, turns, None, table)
    found = json.loads(json.dumps(result.to_dict()))
    assert found["gpu"][0]["precision"] == "bf16-mixed" and not found["gpu"][0]["compiled"]
    assert 0 < found["gpu"][0]["in convolutions"] < 1
    assert found["step_ms"].keys() == PARTS.keys() and "On the GPU" in str(result) and "Peak" not in str(result)


def test_convolutions_are_counted():
    layer, images = torch.nn.Conv2d(64, 64, 3), torch.rand(8, 64, 64, 64)
    with profile(activities=[ProfilerActivity.CPU]) as profiler: layer(images)
    everything = 1e-6 * sum(event.self_cpu_time_total for event in profiler.key_averages())
    assert 0.5 < bench.convolution_seconds(profiler, "cpu") / everything <= 1  # of a network that is nothing else
    # a 3×3 convolution has 18 operations a pixel and pair of channels, and twice as many on the way back
    with FlopCounterMode(display=False) as counter: layer(images.requires_grad_()).sum().backward()
    assert counter.get_total_flops() == 3 * 18 * 64 * 64 * 8 * 62 * 62


# the command line

def test_command_line_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *OPTIONS, "--precision", "bf16-mixed"]
    done = subprocess.run([*command, "--out", str(tmp_path / "b.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    asked = {"size": 16, "images": 8, "precision": "bf16-mixed", "device": "cpu"}
    assert found["settings"] | asked == found["settings"]
    rates = found["images_per_second"]
    assert {"read files", "cluster: embed, assign", "step: objective", "predict"} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())
    for text in ("Images per second", "Outside the network", AS_RUN): assert text in done.stdout


@pytest.mark.parametrize("options, text", [
    (["--images", "0"], "images=0"), (["--size", "x"], "invalid int"), (["--precision", "8"], "invalid choice"),
    (["--precision", "16-mixed"], "needs a GPU"), (["--targets", "9"], "no more targets"),
    (["--depth", "-1"], "depth=-1"), (["--out", "nowhere/b.json"], "no folder"), (["--out", "."], "is a folder"),
    (["--speed"], "unrecognized"),
])
def test_bad_options_exit_with_2_before_long_work(options, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error: main(options)
    assert error.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_is_said_so(capsys):
    with pytest.raises(SystemExit) as error: main(["--gpu"])
    assert error.value.code == 2 and "finds no GPU" in capsys.readouterr().err


# the network against one written out

def reference(images, weights, depth):
    "The U-Net, written out, from the weights of a `UNet`."
    def norm(x, name): return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    def block(x, name):
        for i in (0, 3):
            wider = F.pad(x, (1, 1, 1, 1), mode="replicate")
            x = F.relu(norm(F.conv2d(wider, weights[f"{name}.{i}.weight"]), f"{name}.{i + 1}"))
        return x

    h, w = images.shape[2:]
    x, kept = norm(F.pad(images, (0, -w % 2**depth, 0, -h % 2**depth), mode="replicate"), "norm"), []
    for level in range(depth):
        kept.append(block(x, f"down.{level}"))
        x = F.max_pool2d(kept[-1], 2)
    x = block(x, f"down.{depth}")
    for level in reversed(range(depth)):
        narrow = F.conv2d(x, weights[f"narrow.{level}.weight"], weights[f"narrow.{level}.bias"])
        larger = F.interpolate(narrow, size=kept[level].shape[2:], mode="bilinear", align_corners=False)
        x = block(torch.cat([kept[level], larger], 1), f"up.{level}")
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
    assert single.dtype == torch.float32 and torch.allclose(single.double(), expected, atol=1e-4)
    assert torch.allclose(double, expected, atol=1e-10)
    for name, value in net.named_parameters(): assert torch.allclose(value.grad, weights[name].grad, atol=1e-10), name


@pytest.mark.slow
def test_compiled_network_is_measured():
    settings = replace(TINY, compile=True)
    table = speed_ups(network_times(network_variants(settings), settings, progress=False))
    assert f"{AS_RUN}, compiled" in table.index and (table["total"] > 0).all()
