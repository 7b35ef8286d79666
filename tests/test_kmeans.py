"""Balanced k-means: scikit-learn's own checks, balance on awkward data, determinism, agreement with POT."""
import warnings
from functools import partial

import numpy as np
import ot
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from bgcs.backgrounds.kmeans import SinkhornKMeans, _anneal, _Rows, _tally_rows, balanced_plan

ONE = {name: "sets n_clusters=1, which leaves nothing to balance and is refused" for name in (
    "check_dont_overwrite_parameters", "check_fit2d_predict1d", "check_methods_subset_invariance",
    "check_fit2d_1feature")}

class AtLeastTwo(SinkhornKMeans):
    "Reads one cluster as two, to see that nothing else is wrong in the checks that set n_clusters=1."
    def fit(self, X, y=None):
        asked, self.n_clusters = self.n_clusters, max(2, self.n_clusters)
        try: return super().fit(X)
        finally: self.n_clusters = asked

@parametrize_with_checks([SinkhornKMeans(device="cpu")], expected_failed_checks=lambda estimator: ONE)
def test_sklearn(estimator, check): check(estimator)

@parametrize_with_checks([AtLeastTwo(device="cpu")], expected_failed_checks=lambda estimator: {})
def test_sklearn_but_for_one_cluster(estimator, check): check(estimator)

def make(kind, n=4000, d=20, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "noise": return rng.normal(size=(n, d))
    if kind == "uniform": return rng.random((n, 2))
    if kind == "wide": return rng.normal(size=(n, 100))
    if kind == "skewed": return rng.lognormal(sigma=1.5, size=(n, 5))
    if kind == "grid": return rng.integers(0, 4, size=(n, 2)).astype(float)
    weights = np.linspace(0.25, 0.02, 10)
    return rng.normal(size=(n, d)) + rng.normal(size=(10, d))[rng.choice(10, n, p=weights / weights.sum())] * {"blobs": 1, "far": 8}[kind]

def masses(model, X):
    cost = torch.cdist(torch.from_numpy(np.asarray(X, float)), torch.from_numpy(model.cluster_centers_)).pow(2)
    return balanced_plan(cost, torch.from_numpy(model.potentials_), model.epsilon_).mean(0).numpy()

@pytest.mark.parametrize("kind", ["noise", "uniform", "wide", "skewed", "grid", "blobs", "far"])
def test_balance(kind):
    X = make(kind)
    model = SinkhornKMeans(10, n_init=2).fit(X)
    counts = np.bincount(model.labels_, minlength=10)
    assert counts.max() <= 1.05 * counts.min() and np.allclose(masses(model, X), 0.1, rtol=0.01)
    assert (model.predict(X) == model.labels_).mean() >= 0.99
    assert abs(np.ptp(np.bincount(model.predict(make(kind, seed=0)[::2]), minlength=10))) < 200

def test_shares():
    model = SinkhornKMeans(3, shares=[0.6, 0.3, 0.1]).fit(make("blobs"))
    assert np.allclose(np.bincount(model.labels_) / 4000, [0.6, 0.3, 0.1], rtol=0.02)

@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_floats(dtype):
    X = make("blobs").astype(dtype)
    a, b = SinkhornKMeans(5).fit(X), SinkhornKMeans(5).fit(X.astype(float))
    assert (a.labels_ == b.labels_).all() and np.ptp(np.bincount(a.labels_)) <= 20

def test_input_is_left_alone():
    X = make("blobs", 500); X.flags.writeable = False
    SinkhornKMeans(3).fit(X)

def test_tensors():
    X = torch.from_numpy(make("blobs", 500)).float()
    assert (SinkhornKMeans(3).fit(X).labels_ == SinkhornKMeans(3).fit(X.numpy()).labels_).all()
    assert len(SinkhornKMeans(3).fit_predict(X.bfloat16())) == 500

def test_memory_map_in_chunks(tmp_path):
    X = make("blobs", 6000).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = SinkhornKMeans(10, sample_size=2000, chunk_size=1000).fit(mapped)
    counts = np.bincount(model.labels_)
    assert counts.max() <= 1.05 * counts.min() and (model.predict(mapped) == model.labels_).all()
    same = SinkhornKMeans(10, sample_size=2000, chunk_size=6000).fit(X)
    assert (same.labels_ == model.labels_).mean() > 0.99

def test_outliers():
    X = make("blobs"); X[:3] = [[1e6], [-1e9], [1e4]]
    counts = np.bincount(SinkhornKMeans(10).fit(X).labels_, minlength=10)
    assert counts.max() <= 1.05 * counts.min()

@pytest.mark.parametrize("n", [2, 5, 40])
def test_as_many_clusters_as_points(n):
    assert sorted(SinkhornKMeans(n).fit_predict(np.random.default_rng(n).normal(size=(n, 3)))) == list(range(n))

def test_identical_points():
    with pytest.raises(ValueError, match="all 20 points are the same"): SinkhornKMeans(2).fit(np.ones((20, 3)))
    X = np.repeat(np.eye(3), 20, 0)
    model = SinkhornKMeans(6).fit(X)
    assert (np.bincount(model.labels_) == 10).all() and (model.predict(X) == model.labels_).all()

@pytest.mark.parametrize("seed", range(60))
def test_no_cluster_is_empty(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 40)); k = int(rng.integers(2, n + 1))
    X = rng.normal(size=(n, 2)) if seed % 2 else rng.integers(0, 3, size=(n, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SinkhornKMeans(k, n_init=1).fit(X)
    assert np.bincount(model.labels_, minlength=k).min() > 0

@pytest.mark.parametrize("scale, shift", [(1e-6, 0), (1e6, 0), (1, 1e6)])
def test_scale_and_place(scale, shift):
    X = make("blobs", 1000)
    assert (SinkhornKMeans(4).fit(X).labels_ == SinkhornKMeans(4).fit(scale * X + shift).labels_).mean() > 0.99

def test_plan_is_that_of_pot():
    rng = np.random.default_rng(0)
    X, centres, shares = rng.random((200, 3)), rng.random((5, 3)), np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    rows, wanted = _Rows(X, 0.0, 64, "cpu"), torch.from_numpy(shares)
    tally = partial(_tally_rows, rows, torch.from_numpy(centres))
    potentials, _ = _anneal(tally, torch.zeros_like(wanted), wanted, 1.0, 0.03, 1e-9)
    cost = ot.dist(X, centres)
    settings = {"method": "sinkhorn_log", "numItermax": 50_000, "stopThr": 1e-13}
    expected = ot.sinkhorn(np.full(200, 1 / 200), shares, cost, 0.03, **settings)
    plan = balanced_plan(torch.from_numpy(cost), potentials, 0.03).numpy()
    assert np.abs(plan / 200 - expected).max() < 1e-8

def test_hard_labels_are_near_the_best():
    X = make("blobs", 400)
    model = SinkhornKMeans(4).fit(X)
    cost = ot.dist(X, model.cluster_centers_)
    best = ot.emd2(np.full(400, 1 / 400), np.full(4, 0.25), cost)
    assert cost[np.arange(400), model.labels_].mean() <= best * 1.005

def test_determinism():
    X = make("noise")
    a, b = (SinkhornKMeans(6, random_state=3, n_init=2, sample_size=1000).fit(X) for _ in range(2))
    assert (a.labels_ == b.labels_).all() and (a.cluster_centers_ == b.cluster_centers_).all() and (a.potentials_ == b.potentials_).all()

def test_warnings():
    with pytest.warns(ConvergenceWarning, match="centres still moved"): SinkhornKMeans(5, max_iter=2).fit(make("noise"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SinkhornKMeans(5).fit(make("blobs"))
        SinkhornKMeans(3).fit(make("blobs", 600).astype(np.float16))
        SinkhornKMeans(3).fit(torch.from_numpy(1000 * make("blobs", 600) + 1e6))
        for seed in range(5): SinkhornKMeans(4, random_state=seed).fit(np.random.default_rng(seed).normal(size=(500, 6)))
        assert set(SinkhornKMeans(4).fit_predict(np.eye(4))) == {0, 1, 2, 3}
        SinkhornKMeans(4).fit(np.repeat([[0.0, 0.0], [1.0, 2.0]], 40, 0))  # two distinct points

@pytest.mark.parametrize("model, X, text", [
    (SinkhornKMeans(1), np.eye(4), "n_clusters=1; expected 2"),
    (SinkhornKMeans(5), np.eye(4), "n_clusters=5; expected 2 to the number of points, n_samples=4"),
    (SinkhornKMeans(2), [[0, np.nan], [1, 2], [np.inf, 3]], "NaN or infinity in 2 of 3 rows"),
    (SinkhornKMeans(2, shares=[0.5, 0.6]), np.eye(4), "sum to 1"),
    (SinkhornKMeans(2, shares=[1.5, -0.5]), np.eye(4), "positive"),
    (SinkhornKMeans(2, shares=[0.2, 0.3, 0.5]), np.eye(4), "expected 2 positive numbers"),
    (SinkhornKMeans(2), np.zeros(4), "Expected 2D array"),
    (SinkhornKMeans(2, n_init=0), np.eye(4), "n_init=0; expected a whole number, at least 1"),
    (SinkhornKMeans(2, max_iter=1.5), np.eye(4), "max_iter=1.5"),
    (SinkhornKMeans(2, epsilon=0), np.eye(4), "epsilon=0"),
    (SinkhornKMeans(2, device="mps"), np.eye(4), "expected 'cpu'"),
    (SinkhornKMeans(2, device="meta"), np.eye(4), "expected 'cpu'"),
])
def test_bad_input(model, X, text):
    with pytest.raises(ValueError, match=text): model.fit(X)

def test_other_features_than_those_of_the_fit():
    with pytest.raises(ValueError, match="expecting 2 features"): SinkhornKMeans(2).fit(np.eye(4)[:, :2]).predict(np.zeros((5, 3)))
    with pytest.raises(NotFittedError): SinkhornKMeans(2).predict(np.eye(3))

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu():
    X = make("blobs")
    assert (SinkhornKMeans(5, device="cuda").fit(X).labels_ == SinkhornKMeans(5, device="cpu").fit(X).labels_).mean() > 0.99
