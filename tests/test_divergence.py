"""Sliced distances against POT, and what must hold of every divergence: over random shapes, sizes, weights and dtypes."""
import subprocess
import sys
from functools import partial

import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import close, dims, dtypes, generator, orders, pair, seeds, sizes, some, weights

from bgcs.objective import sliced as slicing
from bgcs.objective.divergence import DIVERGENCES, make_divergence
from bgcs.objective.extras import (EXTRAS, Critic, distributional_sliced_wasserstein, energy_distance, frechet_distance,
                                   max_sliced_wasserstein, mmd, sinkhorn_divergence)
from bgcs.objective.features import Features, Patches, Pixels
from bgcs.objective.sliced import _energy_weights, energy_sliced_wasserstein, random_projections, sliced_wasserstein

SLICED = {
    "sliced": sliced_wasserstein, "energy": energy_sliced_wasserstein,
    "paper": partial(energy_sliced_wasserstein, temperature="paper"),
    "max": max_sliced_wasserstein, "distributional": distributional_sliced_wasserstein,
}
PAIRWISE = {
    "mmd": mmd, "energy kernel": energy_distance, "sinkhorn": sinkhorn_divergence,
    "sinkhorn 1": partial(sinkhorn_divergence, p=1), "frechet": frechet_distance,
}
ALL = {**SLICED, **PAIRWISE}


def seeded(f, x, y, seed=0, **kw): return f(x, y, generator=generator(seed), **kw) if f in SLICED.values() else f(x, y, **kw)


# ---- values

@some(max_examples=40)
@given(sizes, sizes, dims, seeds, orders, dtypes, st.booleans())
def test_sliced_and_max_sliced_agree_with_pot(n, m, d, seed, p, dtype, weighted):
    x, y = pair(n, m, d, seed, dtype)
    theta = random_projections(30, d, generator(seed), x)
    a, b = (weights(n, seed), weights(m, seed + 7)) if weighted else (None, None)
    pot = {"a": (a / a.sum()).numpy(), "b": (b / b.sum()).numpy()} if weighted else {}
    wide = x.double().numpy(), y.double().numpy()
    for ours, theirs in ((sliced_wasserstein, ot.sliced_wasserstein_distance), (partial(max_sliced_wasserstein, n_ascents=0), ot.max_sliced_wasserstein_distance)):
        value = ours(x, y, p=p, projections=theta, x_weights=a, y_weights=b)
        assert value.dtype == dtype
        close(value, theirs(*wide, p=p, projections=theta.double().numpy().T, **pot))


@some(max_examples=20)
@given(sizes, dims, seeds, st.sampled_from([0.3, 1.0, 4.0, "paper"]))
def test_energy_based_is_the_softmax_mean_of_costs(n, d, seed, temperature):
    x, y = pair(n, n, d, seed)
    theta = random_projections(30, d, generator(seed), x)
    costs = torch.tensor([ot.wasserstein_1d((x @ t).numpy(), (y @ t).numpy(), p=2) for t in theta])
    scale = 1 / n if temperature == "paper" else temperature * costs.mean()
    close(energy_sliced_wasserstein(x, y, temperature=temperature, projections=theta), (torch.softmax(costs / scale, 0) * costs).sum().sqrt())


# ---- gradients

@pytest.mark.parametrize("n, m, d", [(5, 5, 3), (4, 7, 6), (3, 2, 12)])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(n, m, d, weighted):
    x, y = (z.requires_grad_() for z in pair(n, m, d, 5))
    masses = {"x_weights": weights(n, 1), "y_weights": weights(m, 2)} if weighted else {}
    theta = random_projections(20, d, generator(), x)
    fixed = {"projections": theta, **masses}
    check = lambda f, **kw: torch.autograd.gradcheck(lambda x, y: f(x, y, **kw), (x, y))
    for p in (1.5, 2, 3):
        assert check(sliced_wasserstein, p=p, **fixed)
    for temperature in (0.5, 2.0, "paper"): assert check(energy_sliced_wasserstein, temperature=temperature, **fixed)
    assert check(max_sliced_wasserstein, n_ascents=0, **fixed)
    assert check(mmd, scale=2.0, **masses) and check(energy_distance, **masses) and check(frechet_distance, **masses)
    for p in (1, 2): assert check(sinkhorn_divergence, p=p, epsilon=0.3, scale=4.0, tol=1e-12, **masses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_where_points_coincide(name, dtype):
    for n, m, d in ((6, 6, 4), (6, 18, 40)):
        y = pair(6, 6, d, dtype=dtype)[0]
        x = y.clone().requires_grad_()
        value = seeded(ALL[name], x, y.repeat(m // n, 1))
        value.backward()
        assert abs(value) < 1e-5 and x.grad.isfinite().all()
        x = torch.zeros_like(y).requires_grad_()  # all the same, and all 0
        for other in (y, torch.zeros_like(y)):
            slope, = torch.autograd.grad(seeded(ALL[name], x, other), x)
            assert slope.isfinite().all()


# ---- properties

@some(max_examples=25)
@given(st.sampled_from(sorted(set(ALL) - {"paper", "distributional"})), st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), seeds)
def test_weights_are_repetitions_and_order_does_not_matter(name, n, m, d, seed):
    "Not for the paper's temperature, which counts points, nor for directions drawn in the span, which repeated points change."
    f, (x, y) = ALL[name], pair(n, m, d, seed)
    if name == "max": f = partial(f, n_ascents=0)
    counts = torch.randint(0, 4, (n,), generator=generator(seed))
    counts[seed % n] = 2
    theta = {"projections": random_projections(20, d, generator(), x)} if name in SLICED else {}
    expected = f(x.repeat_interleave(counts, 0), y, **theta)
    holes = torch.where((counts == 0)[:, None], torch.nan, x)  # points of weight 0 are not looked at
    close(f(holes, y, x_weights=counts, **theta), expected, 1e-6, 1e-9)
    shuffled = torch.randperm(n, generator=generator(seed))
    close(f(x[shuffled], y, x_weights=counts[shuffled], **theta), expected, 1e-6, 1e-9)


@some(max_examples=15)
@given(st.sampled_from(sorted(set(ALL) - {"paper", "distributional"})), sizes, sizes, dims, seeds)
def test_symmetry(name, n, m, d, seed):
    x, y = pair(n, m, d, seed, shift=1.0)
    theta = {"projections": random_projections(20, d, generator(), x)} if name in SLICED else {}
    close(ALL[name](x, y, **theta), ALL[name](y, x, **theta), 1e-3 if name == "max" else 1e-6, 1e-9)


@some(max_examples=15)
@given(sizes, sizes, dims, st.integers(1, 300), st.integers(1, 400), seeds)
def test_chunks_change_nothing(n, m, d, n_projections, chunk_size, seed):
    x, y = pair(n, m, d, seed)
    x.requires_grad_()
    theta = random_projections(n_projections, d, generator(seed), x)
    for f in (sliced_wasserstein, energy_sliced_wasserstein):
        values = [f(x, y, n_projections, generator=generator(seed)), f(x, y, n_projections, generator=generator(seed), chunk_size=chunk_size), f(x, y, projections=theta)]
        slopes = [torch.autograd.grad(value, x)[0] for value in values]
        for value, slope in zip(values[1:], slopes[1:]):
            close(value, values[0], 1e-10)
            torch.testing.assert_close(slope, slopes[0])


def test_gaussians_of_different_mean():
    d, n = 8, 4000
    x, y = torch.randn(n, d, generator=generator(1), dtype=torch.double), torch.randn(n, d, generator=generator(2), dtype=torch.double)
    shift = torch.linspace(1, 3, d).double()
    theta = random_projections(20000, d, generator(), x)
    close(sliced_wasserstein(x, y + shift, projections=theta[:3000]), shift.norm() / d ** 0.5, 0.03)
    close(max_sliced_wasserstein(x, y + shift, generator=generator()), shift.norm(), 0.03)
    close(frechet_distance(x, y + shift), shift.square().sum(), 0.03)
    close(sinkhorn_divergence(x[:500], y[:500] + shift), shift.square().sum(), 0.05)
    stretched = 2 * y  # W2² = d, sliced: 1
    close(sliced_wasserstein(x, stretched, projections=theta[:1000]), 1, 0.05)
    close(frechet_distance(x, stretched), d, 0.05)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_autocast(name):
    x, y = pair(12, 9, 20, dtype=torch.float32, shift=1.0)
    expected = seeded(ALL[name], x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x.requires_grad_()
        value = seeded(ALL[name], x, y)
        value.backward()
    assert value.dtype == torch.float32 and value == expected and x.grad.isfinite().all()
    halves = x.detach().bfloat16().requires_grad_()
    value = seeded(ALL[name], halves, y)
    value.backward()
    assert value.dtype == torch.float32 and halves.grad.dtype == torch.bfloat16 and halves.grad.isfinite().all()
    close(value, expected, 0.05)


@pytest.mark.parametrize("name", [*ALL, "critic"])
def test_no_trace_of_inference_mode(name):
    "Validation may come first, in inference mode, and fill what is kept between calls."
    x, y = pair(7, 11, 30, dtype=torch.float32)
    f = Critic(30) if name == "critic" else ALL[name]
    slicing._quantile_pieces.cache_clear()
    slicing._pieces_on.cache_clear()
    with torch.inference_mode(): first = seeded(f, x * 1, y)
    with torch.no_grad(): assert not f(x.clone().requires_grad_(), y).requires_grad
    value = seeded(f, x.requires_grad_(), y)
    assert torch.autograd.grad(value, x)[0].isfinite().all() and (value == first or name == "critic")


@pytest.mark.parametrize("name", SLICED)
def test_seeds(name):
    x, y = pair(10, 13, 30)
    assert seeded(SLICED[name], x, y, 5) == seeded(SLICED[name], x, y, 5) != seeded(SLICED[name], x, y, 6)
    torch.manual_seed(3)
    first = SLICED[name](x, y)
    torch.manual_seed(3)
    assert first == SLICED[name](x, y)


def test_energy_weights_do_not_depend_on_scale_or_size():
    costs = torch.rand(256, generator=generator())
    torch.testing.assert_close(_energy_weights(costs), _energy_weights(1e5 * costs))
    torch.testing.assert_close(_energy_weights(costs, "paper", 7), torch.softmax(7 * costs, 0))


# ---- what is refused

@pytest.mark.parametrize("name", [*ALL, "critic"])
def test_refusals(name):
    x, y = pair(6, 5, 4)
    f = Critic(4).double() if name == "critic" else ALL[name]
    nan = x.clone()
    nan[2, 1] = torch.nan
    infinite = torch.where(torch.arange(5)[:, None] == 0, torch.inf, y)
    refused = (
        ("1 of 6 points of x hold NaN", (nan, y), {}), ("1 of 5 points of y hold NaN or inf", (x, infinite), {}),
        ("x has no points", (x[:0], y), {}), ("4 and 3 values", (x, y[:, :3]), {}),
        ("expected (6,)", (x, y), {"x_weights": torch.ones(5)}),
        ("from -1 to 1", (x, y), {"x_weights": torch.tensor([1., 1, -1, 1, 1, 1])}),
        ("at least one above 0", (x, y), {"y_weights": torch.zeros(5)}),
        ("floating-point", (x.int(), y), {}), ("x is ndarray", (x.numpy(), y), {}),
    )
    for said, args, kw in refused:
        with pytest.raises(ValueError) as caught: f(*args, **kw)
        assert said in str(caught.value)
    if name in SLICED or "sinkhorn" in name:
        with pytest.raises(ValueError, match="p=0.5; expected at least 1"): f(x, y, p=0.5)


@pytest.mark.parametrize("said, name, kw", [
    ("did you mean 'sliced'", "sliced_", {}), ("did you mean 'frechet'", "fréchet", {}),
    ("did you mean 'epsilon'", "sinkhorn", {"epsilom": 1}), ("there are none", "frechet", {"p": 2}),
    ("'n_steps'", "critic", {"steps": 2}), ("n_steps=-1; expected a whole number", "critic", {"dim": 2, "n_steps": -1}),
    ("either dim", "critic", {}),
])
def test_unknown_names(said, name, kw):
    with pytest.raises(ValueError, match=said): make_divergence(name, **kw)


# ---- features

NET = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
FEATURES = [
    Pixels(), Patches((3, 5), 4, 2), Patches(5, 8, 8, whiten=True), Features(NET),
]

@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", DIVERGENCES | EXTRAS)
def test_divergence_of_features(name, feature):
    g = generator()
    x, y = torch.rand(7, 2, 10, 9, generator=g).requires_grad_(), torch.rand(40, 2, 10, 9, generator=g)
    kw = {}
    if name == "critic":
        widths = {u.shape[1] for u, *_ in feature(x, y)}
        if len(widths) > 1: return  # a critic is of one width
        kw = {"dim": widths.pop()}
    divergence = make_divergence(name, feature, **kw)
    masses = torch.arange(7.), torch.ones(40)
    value = divergence(x, y, *masses, generator=generator())
    slope, = torch.autograd.grad(value, x)
    assert value.ndim == 0 and slope.isfinite().all() and (slope[0] == 0).all() and (slope[1:] != 0).any()
    if name != "critic": assert value == divergence(x, y, *masses, generator=generator())
    if isinstance(feature, Features):
        assert all(weight.grad is None and weight.requires_grad for weight in NET.parameters())
        assert NET[1].num_batches_tracked == 0


MEMORY = """
import sys, torch, ot
from bgcs.objective.sliced import energy_sliced_wasserstein, sliced_wasserstein
torch.set_num_threads(1)
theirs = lambda x, y, n: ot.sliced_wasserstein_distance(x, y, n_projections=n)
f = {"POT": theirs, "sliced": sliced_wasserstein, "energy": energy_sliced_wasserstein}[sys.argv[1]]
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
x, y = torch.randn(200, 4096).requires_grad_(), torch.randn(200, 4096)
f(x[:8], y[:8], 16).backward()
before = peak()
f(x, y, 3000).backward()
print(peak() - before)
"""


@pytest.mark.linux
def test_memory_is_bounded():
    peaks = {name: float(subprocess.run([sys.executable, "-c", MEMORY, name], capture_output=True, text=True, check=True).stdout) for name in ("POT", "sliced", "energy")}
    assert 0 < max(peaks["sliced"], peaks["energy"]) <= peaks["POT"] / 2, peaks
