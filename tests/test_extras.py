"""The divergences that are there for comparison against POT, geomloss, scipy and plain formulas; the critic; by name."""
import pickle
import subprocess
import sys

import geomloss
import numpy as np
import ot
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import close, dims, dtypes, generator, pair, seeds, sizes, some, weights

from bgcs.objective import extras
from bgcs.objective.divergence import DIVERGENCES
from bgcs.objective.extras import (EXTRAS, Critic, _in_span, distributional_sliced_wasserstein, energy_distance,
                                   frechet_distance, max_sliced_wasserstein, mmd, sinkhorn_divergence)
from bgcs.objective.sliced import sliced_wasserstein
from bgcs.objective.terms import Objective


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


@pytest.mark.parametrize("f", [max_sliced_wasserstein, distributional_sliced_wasserstein])
@pytest.mark.parametrize("d", [6, 50])
def test_learned_directions_are_constants(f, d, monkeypatch):
    x, y = pair(8, 11, d)
    x.requires_grad_()
    seen = []
    sliced = extras._sliced
    monkeypatch.setattr(extras, "_sliced", lambda x, y, n, p, projections, *rest: seen.append(projections) or sliced(x, y, n, p, projections, *rest))
    value = f(x, y, generator=generator())
    basis = _in_span(x, y)[2]
    theta = seen[0] if seen[0].shape[1] == d else seen[0] @ basis.T
    again = sliced_wasserstein(x, y, projections=theta)
    close(value.detach(), again.detach(), 1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(z, x)[0] for z in (value, again)))
    assert value > sliced_wasserstein(x, y, 1000, generator=generator())


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


# ---- by name

@pytest.mark.parametrize("name", [name for name in EXTRAS if name != "critic"])
def test_a_setting_names_them(name):
    distances = Objective(divergence=name).distances((16, 16))
    x, y = (torch.rand(6, 1, 16, 16, generator=generator(seed)) for seed in (0, 1))
    assert not set(DIVERGENCES) & set(EXTRAS) and all(d(x, y, generator=generator()).isfinite() for d in distances)


def test_they_are_imported_only_when_asked_for():
    code = """if True:
        import pickle, sys
        from bgcs.objective.terms import Objective
        from bgcs.objective.divergence import make_divergence
        Objective().distances((8, 8))
        make_divergence("energy-sliced")
        assert "bgcs.objective.extras" not in sys.modules
        pickle.loads(sys.stdin.buffer.read()).distances((8, 8))
        assert "bgcs.objective.extras" in sys.modules"""
    objective = pickle.dumps(Objective(divergence="sinkhorn"))  # its checks are not run again where it is read
    subprocess.run([sys.executable, "-c", code], input=objective, check=True)
