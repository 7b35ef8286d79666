"""Divergences against POT, geomloss, scipy and plain formulas, and what must hold of each: over random shapes, sizes, weights and dtypes."""
import subprocess
import sys
from functools import partial
from pathlib import Path

import geomloss
import numpy as np
import ot
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgcs.objective import sliced as slicing
from bgcs.objective.divergence import (DIVERGENCES, Critic, energy_distance, frechet_distance, make_divergence, mmd,
                                       sinkhorn_divergence)
from bgcs.objective.features import Features, Patches, Pixels
from bgcs.objective.sliced import (_in_span, distributional_sliced_wasserstein, energy_sliced_wasserstein, _energy_weights,
                                   generalized_sliced_wasserstein, max_sliced_wasserstein, _projected_costs,
                                   random_projections, sliced_wasserstein, _wasserstein_1d)

some = partial(settings, deadline=None, derandomize=True)
sizes, dims, seeds, orders = st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**31), st.sampled_from([1, 1.5, 2, 3])
dtypes = st.sampled_from([torch.float32, torch.float64])
SLICED = {
    "sliced": sliced_wasserstein, "energy": energy_sliced_wasserstein,
    "paper": partial(energy_sliced_wasserstein, temperature="paper"), "generalized": generalized_sliced_wasserstein,
    "max": max_sliced_wasserstein, "distributional": distributional_sliced_wasserstein,
}
PAIRWISE = {
    "mmd": mmd, "energy kernel": energy_distance, "sinkhorn": sinkhorn_divergence,
    "sinkhorn 1": partial(sinkhorn_divergence, p=1), "frechet": frechet_distance,
}
ALL = {**SLICED, **PAIRWISE}


def generator(seed=0): return torch.Generator().manual_seed(seed)


def seeded(f, x, y, seed=0, **kw): return f(x, y, generator=generator(seed), **kw) if f in SLICED.values() else f(x, y, **kw)


def pair(n, m, d, seed=0, dtype=torch.float64, shift=0.3):
    g = generator(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype), (torch.randn(m, d, generator=g, dtype=torch.float64) + shift).to(dtype)


def weights(n, seed): return torch.rand(n, generator=generator(seed + 1), dtype=torch.float64) + 0.05


def close(ours, expected, rtol=1e-5, atol=0.0):
    ours, expected = (float(torch.as_tensor(value).detach()) for value in (ours, expected))
    assert abs(ours - expected) <= rtol * abs(expected) + atol, (ours, expected)


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


@some(max_examples=20)
@given(sizes, sizes, dims, seeds, orders, st.floats(0.5, 5))
def test_generalized_compares_distances_from_points_on_the_sphere(n, m, d, seed, p, radius):
    x, y = pair(n, m, d, seed)
    theta = random_projections(20, d, generator(seed), x)
    far = lambda z: torch.cdist(radius * theta, z)
    close(generalized_sliced_wasserstein(x, y, p=p, radius=radius, projections=theta), _wasserstein_1d(far(x), far(y), p).mean() ** (1 / p))


@some(max_examples=25)
@given(sizes, sizes, dims, seeds, dtypes)
def test_kernels_agree_with_formulas_and_geomloss(n, m, d, seed, dtype):
    x, y = pair(n, m, d, seed, dtype, 1.0)
    a, b = weights(n, seed), weights(m, seed + 7)
    wide, masses = (x.double(), y.double()), (a / a.sum(), b / b.sum())
    theirs = 2 * geomloss.SamplesLoss("energy", backend="tensorized")(masses[0], wide[0], masses[1], wide[1])
    distances = lambda u, v: torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
    between = distances(*wide)
    expected = 2 * masses[0] @ between @ masses[1] - sum(w @ distances(z, z) @ w for w, z in zip(masses, wide))
    ours = energy_distance(x, y, x_weights=a, y_weights=b)
    assert ours.dtype == dtype
    close(ours, expected, atol=1e-9 if dtype == torch.float64 else 1e-6 * float(between.mean()))
    close(ours, theirs, atol=1e-3)  # geomloss takes the distance of a point from itself as up to 1e-4
    kernel = lambda u, v: sum(torch.exp(-distances(u, v) ** 2 / (2 * s ** 2)) for s in (1.5, 4.0)) / 2
    expected = sum(w @ kernel(z, z) @ w for w, z in zip(masses, wide)) - 2 * masses[0] @ kernel(*wide) @ masses[1]
    close(mmd(x, y, bandwidths=(0.5, 4 / 3), scale=3.0, x_weights=a, y_weights=b), expected, atol=1e-9)
    close(mmd(x, y), mmd(x, y, scale=float(torch.quantile(between.flatten(), 0.5, interpolation="lower"))), atol=1e-9)


def plain_sinkhorn(x, y, a, b, epsilon):
    cost = ot.dist(x, y)
    plan = ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=5000, stopThr=1e-10, warn=False)
    kept = plan > 0
    return (plan * cost).sum() + epsilon * (plan[kept] * np.log(plan[kept] / np.outer(a, b)[kept])).sum()


@some(max_examples=12)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(1, 30), seeds, st.sampled_from([0.3, 1.0]), dtypes)
def test_sinkhorn_agrees_with_pot(n, m, d, seed, epsilon, dtype):
    x, y = pair(n, m, d, seed, dtype, 1.0)
    a, b = weights(n, seed), weights(m, seed + 7)
    ours = sinkhorn_divergence(x, y, epsilon=epsilon, x_weights=a, y_weights=b)
    x, y, a, b = x.double().numpy(), y.double().numpy(), (a / a.sum()).numpy(), (b / b.sum()).numpy()
    absolute = epsilon * a @ ot.dist(x, y) @ b
    expected = plain_sinkhorn(x, y, a, b, absolute) - plain_sinkhorn(x, x, a, a, absolute) / 2 - plain_sinkhorn(y, y, b, b, absolute) / 2
    close(ours, expected, atol=1e-5 * a @ ot.dist(x, y) @ b)


def test_sinkhorn_agrees_with_geomloss():
    x, y = pair(40, 25, 4, shift=1.0)
    theirs = 2 * geomloss.SamplesLoss("sinkhorn", p=2, blur=0.5, scaling=0.999, backend="tensorized")(x, y)  # its cost is half the square
    close(sinkhorn_divergence(x, y, epsilon=1, scale=2 * 0.5 ** 2), theirs, rtol=1e-4)


@some(max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 30), seeds, dtypes)
def test_frechet_agrees_with_scipy(n, m, d, seed, dtype):
    x, y = pair(n, m, d, seed, dtype)
    a, b = weights(n, seed), weights(m, seed + 7)
    ours = frechet_distance(x, y, x_weights=a, y_weights=b)
    x, y = x.double().numpy(), y.double().numpy()
    means = [np.average(z, 0, w) for z, w in ((x, a), (y, b))]
    covariances = [np.atleast_2d(np.cov(z.T, aweights=w, bias=True)) for z, w in ((x, a), (y, b))]
    def root(s):
        values, vectors = np.linalg.eigh(s)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root(covariances[0]) @ covariances[1] @ root(covariances[0])
    cross = scipy.linalg.sqrtm(inner).real if min(n, m) > d + 1 else root(inner)  # sqrtm is not exact on singular matrices
    expected = ((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * np.trace(cross)
    close(ours, expected, atol=1e-5 * np.trace(covariances[0]))


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
        assert check(sliced_wasserstein, p=p, **fixed) and check(_projected_costs, p=p, **fixed)
        assert check(generalized_sliced_wasserstein, p=p, radius=2.0, **fixed)
    for temperature in (0.5, 2.0, "paper"): assert check(energy_sliced_wasserstein, temperature=temperature, **fixed)
    assert check(max_sliced_wasserstein, n_ascents=0, **fixed)
    assert check(mmd, scale=2.0, **masses) and check(energy_distance, **masses) and check(frechet_distance, **masses)
    for p in (1, 2): assert check(sinkhorn_divergence, p=p, epsilon=0.3, scale=4.0, tol=1e-12, **masses)


@pytest.mark.parametrize("f", [max_sliced_wasserstein, distributional_sliced_wasserstein])
@pytest.mark.parametrize("d", [6, 50])
def test_learned_directions_are_constants(f, d, monkeypatch):
    x, y = pair(8, 11, d)
    x.requires_grad_()
    seen = []
    sliced = slicing._sliced
    monkeypatch.setattr(slicing, "_sliced", lambda x, y, n, p, projections, *rest: seen.append(projections) or sliced(x, y, n, p, projections, *rest))
    value = f(x, y, generator=generator())
    basis = _in_span(x, y)[2]
    theta = seen[0] if seen[0].shape[1] == d else seen[0] @ basis.T
    again = sliced_wasserstein(x, y, projections=theta)
    close(value.detach(), again.detach(), 1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(z, x)[0] for z in (value, again)))
    assert value > sliced_wasserstein(x, y, 1000, generator=generator())


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
    for f in (sliced_wasserstein, energy_sliced_wasserstein, partial(generalized_sliced_wasserstein, radius=1.0)):
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
    costs = _projected_costs(*pair(10, 13, 30))
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


# ---- features, and the critic

NET = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
FEATURES = [
    Pixels(), Patches((3, 5), 4, 2), Patches(5, 8, 8, whiten=True), Patches(5, contrast=True), Features(NET),
]

@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
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


def test_critic_comes_near_the_wasserstein_distance_and_back_from_disk(tmp_path):
    x, y = pair(60, 50, 3, dtype=torch.float32, shift=2.0)
    critic = Critic(3)
    for _ in range(200): value = critic(x, y, generator=generator())
    close(value, ot.emd2([], [], torch.cdist(x, y).numpy()), 0.3)
    torch.save(critic.state_dict(), tmp_path / "critic.pt")
    twin = Critic(3, random_state=1)
    twin.load_state_dict(torch.load(tmp_path / "critic.pt", weights_only=True))
    assert twin(x, y, generator=generator()) == critic(x, y, generator=generator())
    frozen = Critic(3, n_steps=0).double()
    assert torch.autograd.gradcheck(frozen, tuple(z.double().requires_grad_() for z in (x, y)))


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high-water mark is Linux's; getrusage's is handed down from the parent")
def test_memory_is_bounded():
    peaks = {name: float(subprocess.run([sys.executable, "-c", MEMORY, name], capture_output=True, text=True, check=True).stdout) for name in ("POT", "sliced", "energy")}
    assert 0 < max(peaks["sliced"], peaks["energy"]) <= peaks["POT"] / 2, peaks
