"""How fast bgcs is on this machine: `python tools/bench.py`; `--help` lists the settings.

Images per second of each stage, what a training step is spent on, and the network beside a plain one.
What is measured, and how, is explained in nbs/benchmarks/speed.ipynb. Let nothing else run meanwhile.
"""
from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.profilers import Profiler
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from bgcs import __version__
from bgcs.backgrounds.cluster import BackgroundClusterer
from bgcs.data.datasets import digits_on_textures
from bgcs.data.images import ImageSet, from_arrays, from_folders
from bgcs.masks.masknet import UNet
from bgcs.masks.segment import Segmenter
from bgcs.objective.batches import Batches, TransplantImages, Transplants
from bgcs.objective.terms import Objective
from bgcs.training.learner import kept_memory

# Settings

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names
DEVICES = ("cpu", "cuda")
COUNTS = ("size", "width", "images", "targets", "clusters", "projections", "steps", "rounds")  # at least 1 each

NO_GPU = (
    "device='cuda', but PyTorch finds no GPU here; leave --gpu out to measure the CPU, "
    "or install a PyTorch that was built for your GPU and driver"
)
BAD_TARGETS = (
    "expected at least 2 clusters, no more targets than clusters, "
    "and images that can be divided among the targets"
)


@dataclass(frozen=True)
class BenchSettings:
    "What is measured; the step is that of the paper unless asked for otherwise."
    size: int = 64  # side of the images in pixels
    width: int = 64  # features of the U-Net at full size
    depth: int = 4  # halvings of the U-Net
    images: int = 64  # object images of a step that go through the network, and as many background-only ones
    targets: int = 1  # target clusters of a step, among which its images are divided
    clusters: int = 4  # in the set
    projections: int = 1000  # directions of the divergence
    precision: str = "32-true"  # of the network: '32-true', 'bf16-mixed' or '16-mixed'
    compile: bool = False  # also measure the network compiled, which takes a minute or more to begin
    steps: int = 4  # training steps that are measured, after two that are not
    rounds: int = 3  # times that the networks take turns
    device: str = "cpu"  # or 'cuda'

    def __post_init__(self):
        for name in COUNTS:
            value = getattr(self, name)
            if value < 1: raise ValueError(f"{name}={value}; expected at least 1")
        if self.size < 8 or self.depth < 0:
            raise ValueError(f"size={self.size} and depth={self.depth}; expected at least 8 and 0")
        if self.clusters < 2 or self.targets > self.clusters or self.images % self.targets:
            given = f"clusters={self.clusters}, targets={self.targets} and images={self.images}"
            raise ValueError(f"{given}; {BAD_TARGETS}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}; expected one of {list(PRECISIONS)}")
        if self.device not in DEVICES: raise ValueError(f"device={self.device!r}; expected 'cpu' or 'cuda'")
        if self.device == "cuda" and not torch.cuda.is_available(): raise ValueError(NO_GPU)
        if self.device == "cpu" and self.precision == "16-mixed":
            raise ValueError("precision='16-mixed' needs a GPU; on a CPU take 'bf16-mixed'")

    @property
    def each(self) -> int:
        "Composites, and real object images, of each target cluster."
        return self.images // self.targets

    @property
    def accelerator(self) -> str:
        "Lightning's name of the device."
        return "gpu" if self.device == "cuda" else "cpu"

    @property
    def batches(self) -> Batches:
        "What a step takes."
        return Batches(per_cluster=self.each, n_real=self.each, target_clusters=self.targets)

    def segmenter(self) -> Segmenter:
        "With the paper's objective."
        paper = Objective(
            divergence="energy-sliced", n_projections=self.projections, temperature="paper",
            patch_size=0, opening=0, opening_weight=0, recomposition_weight=0,
        )
        return Segmenter(channels=1, base_width=self.width, depth=self.depth, distances=False, objective=paper)


QUICK = BenchSettings(size=32, width=16, depth=3, images=16, projections=100, steps=10, rounds=5)


# Images: digits on textures, so that no download is needed

def bench_images(settings: BenchSettings) -> ImageSet:
    "Enough images for a step of any target cluster."
    n = max(64, settings.each * settings.clusters)
    data = digits_on_textures(n=n, image_size=min(settings.size, 100))
    images = F.interpolate(data.images, (settings.size,) * 2, mode="bilinear")
    return from_arrays(images[data.presence], images[~data.presence])


def bench_clusters(data: ImageSet, n_clusters: int) -> torch.Tensor:
    "Clusters `(len(data),)`, dealt in turn to object images and to background-only ones: any will do."
    clusters = torch.empty(len(data), dtype=torch.long)
    for part in (data.presence, ~data.presence): clusters[part] = torch.arange(int(part.sum())) % n_clusters
    return clusters


def train(settings: BenchSettings, segmenter: Segmenter, data: ImageSet, steps: int, **options) -> Segmenter:
    "Train as `Segmenter.fit` does, with nothing held out."
    clusters = bench_clusters(data, settings.clusters)
    options = {"progress": False, "accelerator": settings.accelerator, "precision": settings.precision} | options
    return segmenter.fit(data, clusters, steps=steps, rounds=1, batches=settings.batches, held_out=None, **options)


# The machine: a number without it says little

def processor() -> str:
    "Its name, as far as the system tells."
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text().splitlines():
            if line.startswith("model name"): return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine(device: str = "cpu") -> dict:
    "Processor, threads and versions."
    on_gpu = device == "cuda"
    return {
        "cpu": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "bgcs": __version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "numpy": np.__version__,
    }


def now(device: str) -> float:
    "Seconds, once the device has done what it was asked to."
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def seconds_of(f, device: str) -> float:
    "How long a function without arguments takes."
    begin = now(device)
    f()
    return now(device) - begin


def peak_memory(device: str) -> float | None:
    "The most that was ever used, in MB: by the process; on a GPU, by tensors. None where the system doesn't say."
    if device == "cuda": return torch.cuda.max_memory_allocated() / 2**20
    try: import resource
    except ImportError: return None  # Windows
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# A training step, part by part

PARTS = {
    "forward": "forward of the network",
    "backward": "backward of the network",
    "objective": "composites, background loss, divergence; there and back",
    "optimiser": "Adam, and a check of the gradients",
    "averaging": "running average of the weights",
    "dealing": "batches: dealt, fetched, moved to the device",
    "rest": "Lightning, logging, callbacks",
}
ACTIONS = {  # what Lightning's names of actions contain, and the part they belong to
    "network forward": "forward", "network backward": "backward", "averaging": "averaging",
    "training_step": "objective", ".backward": "objective",
    "optimizer_step": "optimiser", "zero_grad": "optimiser", "lr_scheduler_step": "optimiser",
    "train_dataloader_next": "dealing", "batch_to_device": "dealing", "batch_transfer": "dealing",
}
WARM_UP = 2  # steps that are not measured


def part_of(action: str) -> str:
    "The part of a step that an action belongs to."
    return next((part for name, part in ACTIONS.items() if name in action), "rest")


class StepTimes(Profiler):
    "A Lightning profiler: seconds of each training step, by what they went into."
    def __init__(self, device: str = "cpu"):
        super().__init__()
        self.device = device  # waited for whenever the time is taken
        self.begun, self.rows = [], []  # when steps began, and their parts
        self.open = []  # actions under way: name, begin, seconds of the actions within

    def start(self, action_name):
        if action_name.endswith("on_after_backward") and self.open and self.open[-1][0] == "network backward":
            self.stop("network backward")
        # A second forward pass in a step has its gradient within the first one's.
        if action_name in (name for name, *_ in self.open): return
        begin = now(self.device)
        if "train_dataloader_next" in action_name:
            self.begun.append(begin)
            self.rows.append(defaultdict(float))
        self.open.append([action_name, begin, 0.0])

    def stop(self, action_name):
        name, begin, within = self.open.pop()
        took = now(self.device) - begin
        if self.open: self.open[-1][2] += took
        if self.rows: self.rows[-1][part_of(name)] += took - within

    def parts(self) -> pd.DataFrame:
        "Seconds by part, a row a step; the last step, whose end is not known, is left out."
        steps = np.diff(self.begun)
        table = pd.DataFrame(self.rows[:-1], columns=list(PARTS)).fillna(0.0)
        return table.assign(rest=steps - table.drop(columns="rest").sum(axis=1))


@contextmanager
def watched(segmenter: Segmenter, device: str = "cpu"):
    "A `StepTimes` for `Segmenter.fit(profiler=…)`; the network and the average of its weights tell it what they do."
    times = StepTimes(device)
    average = segmenter.averaged.update_parameters

    def before(net, images): times.start("network forward")

    def after(net, images, logits):
        times.stop("network forward")
        if logits.requires_grad: logits.register_hook(lambda gradient: times.start("network backward"))

    def averaging(net):
        with times.profile("averaging"): average(net)

    hooks = [segmenter.net.register_forward_pre_hook(before), segmenter.net.register_forward_hook(after)]
    segmenter.averaged.update_parameters = averaging
    try: yield times
    finally:
        for hook in hooks: hook.remove()
        del segmenter.averaged.update_parameters


def step_times(
    settings: BenchSettings,
    data: ImageSet,  # as `bench_images` gives it
    compile: bool = False,  # the network; hooks don't reach into it then, so its time is charged to the objective
    progress: bool = False,  # show a bar
) -> tuple[pd.DataFrame, Segmenter]:  # seconds by part, a row a step; and what was trained
    "Train by `Segmenter.fit`, and measure each step."
    segmenter, steps = settings.segmenter(), WARM_UP + settings.steps + 1
    with watched(segmenter, settings.device) as times:
        train(settings, segmenter, data, steps, progress=progress, compile=compile, profiler=times)
    return times.parts()[WARM_UP:].reset_index(drop=True), segmenter


def outside(parts: pd.DataFrame) -> pd.Series:
    "Share of each step that is neither the forward nor the backward pass of the network, in [0, 1]."
    return 1 - parts[["forward", "backward"]].sum(axis=1) / parts.sum(axis=1)


def plot_parts(parts: pd.DataFrame, size: tuple[float, float] = (5.5, 2.2)):
    "A figure: median of each part of a step; the network's in another colour."
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=size)
    ms = 1000 * parts.median()[::-1]
    share = parts.div(parts.sum(axis=1), axis=0).median()[::-1]
    colors = ["tab:blue" if name in ("forward", "backward") else "tab:orange" for name in ms.index]
    labels = [f" {value:,.1f} ms, {part:.1%}" for value, part in zip(ms, share)]
    ax.bar_label(ax.barh(ms.index, ms, color=colors), labels, fontsize=8)
    ax.set(xscale="log", xlabel="ms", xlim=(ms.min() / 2, ms.max() * 30))
    ax.spines[["top", "right"]].set_visible(False)
    plt.close(fig)
    return fig


# The network beside a plain one

@dataclass(frozen=True)
class Variant:
    "A way to run the network."
    channels_last: bool = True  # memory layout of images and weights
    kept: bool = True  # memory, see `kept_memory`
    precision: str = "32-true"  # see `PRECISIONS`
    compile: bool = False  # by `torch.compile`


PLAIN, AS_RUN = "plain float32", "as run here"


def network_variants(settings: BenchSettings) -> dict[str, Variant]:
    "A plain network; one as it is run here; the same in bfloat16; and compiled where that is asked for."
    ours = Variant(precision=settings.precision)
    variants = {PLAIN: Variant(False, False), AS_RUN: ours}
    if settings.precision == "32-true": variants[f"{AS_RUN}, bf16-mixed"] = replace(ours, precision="bf16-mixed")
    if not settings.compile: return variants
    compiled = {f"{name}, compiled": replace(way, compile=True) for name, way in variants.items() if name != PLAIN}
    return variants | compiled


def network_pass(net, images, variant: Variant):
    "A function that makes a forward and a backward pass, and gives the seconds of both."
    device, dtype = images.device.type, PRECISIONS[variant.precision]
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    net, images = copy.deepcopy(net).to(memory_format=layout), images.contiguous(memory_format=layout)
    run = torch.compile(net.forward) if variant.compile else net

    def both():
        net.zero_grad(set_to_none=True)
        begin = now(device)
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None): logits = run(images).float()
        middle = now(device)
        logits.square().mean().backward()
        return middle - begin, now(device) - middle

    return both


def network_times(variants: dict[str, Variant], settings: BenchSettings, progress: bool = True) -> pd.DataFrame:
    "Forward and backward pass of each way to run the network, in turns: 'network', 'round', and seconds."
    torch.manual_seed(0)
    net = UNet(1, settings.width, settings.depth).to(settings.device)
    images = torch.rand(2 * settings.images, 1, settings.size, settings.size, device=settings.device)
    passes = {name: network_pass(net, images, variant) for name, variant in variants.items()}
    names, rows = list(variants), []
    for turn in tqdm(range(settings.rounds), desc="Networks take turns", disable=not progress, leave=False):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            with kept_memory() if variants[name].kept else nullcontext():
                passes[name]()  # compiles; fills the memory
                forward, backward = passes[name]()
            times = {"forward": forward, "backward": backward, "total": forward + backward}
            rows.append({"network": name, "round": turn} | times)
    return pd.DataFrame(rows)


def speed_ups(times: pd.DataFrame) -> pd.DataFrame:
    "Medians of `network_times`, and how many times faster than the plain network: median, least and most over rounds."
    total = times.pivot(index="round", columns="network", values="total")
    faster = total.rdiv(total[PLAIN], axis=0)
    table = times.groupby("network", sort=False)[["forward", "backward", "total"]].median()
    return table.assign(**{"times faster": faster.median(), "least": faster.min(), "most": faster.max()})


# Other stages

def images_per_second(f, n: int, repeats: int = 3, device: str = "cpu") -> float:
    "Of a function without arguments that goes through `n` images: the median, after a call that is not measured."
    f()
    return n / float(np.median([seconds_of(f, device) for _ in range(repeats)]))


def write_images(data: ImageSet, folder: Path) -> None:
    "As PNG files."
    folder.mkdir()
    for i, image in enumerate(data.images[:, 0]):
        Image.fromarray((255 * image).round().byte().numpy()).save(folder / f"{i}.png")


def load_rates(data: ImageSet) -> dict[str, float]:
    "Images per second from PNG files, and in batches of 256 from the cache that is made of them."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_images(data.objects, folder / "objects")
        write_images(data.backgrounds, folder / "backgrounds")
        files = from_folders(folder / "objects", folder / "backgrounds", lazy=True, progress=False)
        read = images_per_second(lambda: files.loaded(progress=False), len(data))
        packed = files.packed(folder / "cache", progress=False)

        def all_batches():
            for batch in packed.batches(256): batch["images"].sum()

        return {"read files": read, "read cache": images_per_second(all_batches, len(data))}


def stage_rates(
    settings: BenchSettings,
    data: ImageSet,  # as `bench_images` gives it
    parts: pd.DataFrame,  # seconds of steps, as `step_times` gives them
    segmenter: Segmenter,  # that predicts
) -> pd.Series:  # images per second, by stage
    "From files to masks; a training step counts all images that go through the network."
    device, n = settings.device, 2 * settings.images
    clusterer = BackgroundClusterer(settings.clusters, epochs=1, progress=False, accelerator=settings.accelerator)
    clusterer.fit(data)
    if device == "cuda": segmenter.cuda()
    seconds, images = parts.median(), data.images[:n]
    rates = load_rates(data)
    rates["cluster: embed, assign"] = images_per_second(lambda: clusterer.predict(data), len(data), device=device)
    for name in ("forward", "objective", "backward"): rates[f"step: {name}"] = n / seconds[name]
    rates["step: whole"] = n / parts.sum(axis=1).median()
    rates["predict"] = images_per_second(lambda: segmenter.predict(images), len(images), device=device)
    return pd.Series(rates, name="images per second")


# On a GPU

def matmul_rate(device: str = "cuda", precision: str = "32-true", n: int = 8192) -> float:
    "TFLOP/s of a product of `(n, n)` matrices, the best of ten."
    dtype = PRECISIONS[precision] or torch.float32
    a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2e-12 * n**3 / min(seconds_of(lambda: a @ b, device) for _ in range(10))


def one_batch(settings: BenchSettings, data: ImageSet) -> dict[str, torch.Tensor]:
    "A batch as training deals it, on the device."
    clusters = bench_clusters(data, settings.clusters)
    dealt = Transplants(clusters[data.presence], clusters[~data.presence], settings.batches)(0)
    return {name: value.to(settings.device) for name, value in TransplantImages(data)[dealt].items()}


def step_flops(segmenter: Segmenter, batch: dict[str, torch.Tensor]) -> int:
    "Floating-point operations of a step, there and back, in products and convolutions."
    with FlopCounterMode(display=False) as counter:
        segmenter.train().losses(batch, *segmenter.draws(0))["loss"].backward()
    segmenter.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def convolution_seconds(profiler: torch.profiler.profile, device: str = "cuda") -> float:
    "Seconds that convolutions took, there and back: of their kernels, on a GPU. The profiler has been stopped."
    total = 0.0
    for event in profiler.key_averages():
        # kernels are charged to the operator that launched them
        if event.device_type != torch.autograd.DeviceType.CPU: continue
        if not event.key.startswith("aten::") or "conv" not in event.key: continue
        total += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    return 1e-6 * total


class ConvolutionShare(L.Callback):
    "Profiles some training steps; `share` of their time is spent in convolutions."
    def __init__(self, device: str = "cuda", start: int = 3, steps: int = 3):
        self.device, self.start, self.steps = device, start, steps
        self.share = self.profiler = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx != self.start: return
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self.device == "cuda": activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(activities=activities)
        self.profiler.start()
        self.begin = now(self.device)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx != self.start + self.steps - 1: return
        whole = now(self.device) - self.begin
        self.profiler.stop()
        self.share = convolution_seconds(self.profiler, self.device) / whole


def whole_steps(settings: BenchSettings, data: ImageSet, compile: bool) -> tuple[float, float]:
    "Median seconds of a step, and the share of convolutions, each in a training of its own: profiling slows."
    seconds = step_times(settings, data, compile)[0].sum(axis=1).median()
    profiled = ConvolutionShare(settings.device)
    steps = profiled.start + profiled.steps
    train(settings, settings.segmenter(), data, steps, compile=compile, callbacks=[profiled])
    return seconds, profiled.share


def gpu_table(
    settings: BenchSettings,
    data: ImageSet,
    precisions=("32-true", "bf16-mixed"),
    compiled=(False, True),
    epoch: int = 70_000,  # images of an epoch, as in the paper
) -> pd.DataFrame:  # a row for each precision, compiled or not
    "Seconds of a step and of an epoch, TFLOP/s, and the share of convolutions."
    side = 8192 if settings.device == "cuda" else 1024
    rates = {precision: matmul_rate(settings.device, precision, side) for precision in precisions}
    flops = step_flops(settings.segmenter().to(settings.device), one_batch(settings, data))
    rows = []
    for precision in precisions:
        for compile in compiled:
            seconds, share = whole_steps(replace(settings, precision=precision), data, compile)
            rate = 1e-12 * flops / seconds
            rows.append({
                "precision": precision,
                "compiled": compile,
                "step, s": seconds,
                "epoch, s": seconds * epoch / (2 * settings.images),
                "TFLOP/s": rate,
                "matrix product, TFLOP/s": rates[precision],
                "ratio": rate / rates[precision],
                "in convolutions": share,
            })
    return pd.DataFrame(rows)


# Everything

@dataclass
class Benchmark:
    "What was measured; `benchmark` makes it."
    settings: BenchSettings
    machine: dict  # see `machine`
    stages: pd.Series  # images per second, see `stage_rates`
    parts: pd.DataFrame  # seconds, see `step_times`
    turns: pd.DataFrame  # seconds, see `network_times`
    peak_memory: float | None  # MB, after training and before the other measurements
    gpu: pd.DataFrame | None = None  # see `gpu_table`

    @property
    def outside(self) -> float:
        "Share of a step outside the network, median over steps."
        return float(outside(self.parts).median())

    @property
    def speed_up(self) -> float:
        "How many times faster than the plain network the network is as it is run here."
        return float(speed_ups(self.turns).loc[AS_RUN, "times faster"])

    def step_table(self) -> pd.DataFrame:
        "Milliseconds and share of each part of a step: median, least and most."
        ms, share = 1000 * self.parts, self.parts.div(self.parts.sum(axis=1), axis=0)
        columns = {"ms": ms.median(), "least": ms.min(), "most": ms.max(), "share": share.median()}
        return pd.DataFrame(columns | {"what": pd.Series(PARTS)}).loc[list(PARTS)]

    def plot(self):
        "The parts of a step."
        return plot_parts(self.parts)

    def to_dict(self) -> dict:
        "All of it, for JSON."
        return {
            "settings": asdict(self.settings),
            "machine": self.machine,
            "images_per_second": self.stages.to_dict(),
            "step_ms": self.step_table().drop(columns="what").to_dict("index"),
            "outside_network": self.outside,
            "network_seconds": speed_ups(self.turns).to_dict("index"),
            "speed_up": self.speed_up,
            "peak_memory_mb": self.peak_memory,
            "gpu": None if self.gpu is None else self.gpu.to_dict("records"),
        }

    def _heading(self) -> str:
        on, s = self.machine, self.settings
        device = on["gpu"] or on["cpu"]
        network = f"U-Net of width {s.width} and depth {s.depth}, {s.projections} directions, {s.precision}"
        return (
            f"{device}, {on['threads']} threads; torch {on['torch']}, bgcs {on['bgcs']}\n"
            f"{s.images} + {s.images} images of {s.size}×{s.size}, {network}"
        )

    def _shares(self) -> str:
        share = outside(self.parts)
        least, most = share.min(), share.max()
        said = f"Outside the network: {self.outside:.1%} of a step ({least:.1%} to {most:.1%})."
        if self.peak_memory is not None: said += f"\nPeak memory: {self.peak_memory:,.0f} MB."
        return said

    def __str__(self):
        step = self.step_table().to_string(float_format="{:.3f}".format)
        networks = speed_ups(self.turns).to_string(float_format="{:.2f}".format)
        parts = [
            self._heading(),
            "Images per second\n" + self.stages.to_string(float_format="{:,.0f}".format),
            "A training step\n" + step + "\n" + self._shares(),
            "The network, forward and backward\n" + networks,
        ]
        if self.gpu is not None:
            parts.append("On the GPU\n" + self.gpu.to_string(index=False, float_format="{:.3f}".format))
        return "\n\n".join(parts)


def benchmark(settings: BenchSettings = BenchSettings(), progress: bool = True) -> Benchmark:
    "Measure all of it on this machine: with the default settings about four minutes, on two cores."
    on_gpu = settings.device == "cuda"
    with tqdm(total=4 + on_gpu, disable=not progress, leave=False) as bar:
        def stage(name, f, *args):
            bar.set_description(name)
            result = f(*args)
            bar.update()
            return result

        data = stage("Making images", bench_images, settings)
        parts, segmenter = stage("Training", step_times, settings, data, False, progress)
        peak = peak_memory(settings.device)
        ways = network_variants(settings)
        turns = stage("The network, plainly and otherwise", network_times, ways, settings, progress)
        stages = stage("Loading, clustering, predicting", stage_rates, settings, data, parts, segmenter)
        gpu = stage("Convolutions, epochs", gpu_table, settings, data) if on_gpu else None
    return Benchmark(settings, machine(settings.device), stages, parts, turns, peak, gpu)


# The command line

NUMBERS = {
    "size": "side of the images in pixels",
    "width": "features of the U-Net at full size",
    "depth": "halvings of the U-Net",
    "images": "object images of a step, and as many background-only ones",
    "targets": "target clusters of a step",
    "projections": "directions of the divergence",
    "steps": "training steps to measure",
    "rounds": "times that the networks take turns",
}
DESCRIPTION = (
    "Measure how fast bgcs is on this machine. With the default settings, those of the paper, "
    "this takes about four minutes on two cores; let nothing else run meanwhile."
)
ON_GPU = (
    "measure the GPU, by default with 200 + 200 images a step; "
    "adds rates of arithmetic, the share of convolutions, and seconds of an epoch"
)


def make_parser() -> argparse.ArgumentParser:
    "What the command line takes."
    parser, defaults = argparse.ArgumentParser(prog="tools/bench.py", description=DESCRIPTION), BenchSettings()
    add = parser.add_argument
    for name, text in NUMBERS.items():
        default = getattr(defaults, name)
        add(f"--{name}", type=int, metavar="N", help=f"{text} ({default})")
    add("--precision", choices=list(PRECISIONS), help=f"of the network ({defaults.precision})")
    compiled = "also measure the network compiled; takes a minute or more to begin"
    add("--compile", action="store_true", default=None, help=compiled)
    add("--gpu", action="store_true", help=ON_GPU)
    add("--quick", action="store_true", help="a small network and small images: for a first look")
    out = "where to write the results as JSON (bench.json)"
    add("--out", type=Path, default=Path("bench.json"), metavar="FILE", help=out)
    return parser


def settings_of(given: argparse.Namespace) -> BenchSettings:
    "The settings that were asked for."
    names = {field.name for field in fields(BenchSettings)}
    chosen = {name: value for name, value in vars(given).items() if name in names and value is not None}
    start = QUICK if given.quick else BenchSettings()
    if given.gpu:
        chosen["device"] = "cuda"
        if not given.quick: chosen.setdefault("images", 200)
    return replace(start, **chosen)


def check_writable(path: Path) -> None:
    "Refuse a place where no file can be written, before the long work."
    if path.is_dir(): raise ValueError(f"--out {path}: is a folder; expected a file")
    if path.parent.is_dir(): return
    raise ValueError(f"--out {path}: there is no folder {path.parent}; make it first, or name another file")


def main(arguments: list[str] | None = None) -> int:
    "Measure, print, write JSON; 0, or exit code 2 where settings are wrong."
    parser = make_parser()
    given = parser.parse_args(arguments)
    try:
        settings = settings_of(given)
        check_writable(given.out)
    except ValueError as error: parser.error(str(error))
    result = benchmark(settings)
    print(result)
    given.out.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    print(f"Written to {given.out}")
    return 0


if __name__ == "__main__": sys.exit(main())
