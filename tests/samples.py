"""Pairs of samples of random shapes, sizes, weights and dtypes, for the tests of divergences."""
from functools import partial

import torch
from hypothesis import settings
from hypothesis import strategies as st

some = partial(settings, deadline=None, derandomize=True)
sizes, dims, seeds = st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**31)
orders = st.sampled_from([1, 1.5, 2, 3])
dtypes = st.sampled_from([torch.float32, torch.float64])


def generator(seed=0): return torch.Generator().manual_seed(seed)


def pair(n, m, d, seed=0, dtype=torch.float64, shift=0.3):
    g = generator(seed)
    x, y = (torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, m))
    return x.to(dtype), (y + shift).to(dtype)


def weights(n, seed): return torch.rand(n, generator=generator(seed + 1), dtype=torch.float64) + 0.05


def close(ours, expected, rtol=1e-5, atol=0.0):
    ours, expected = (float(torch.as_tensor(value).detach()) for value in (ours, expected))
    assert abs(ours - expected) <= rtol * abs(expected) + atol, (ours, expected)
