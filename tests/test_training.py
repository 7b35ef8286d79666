"""Training of any length ends well."""
import pytest
import torch

from bgcs.datasets import digits_on_textures
from bgcs.segment import Segmenter


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 20])
def test_any_number_of_steps(steps):
    data = digits_on_textures(n=12)
    segmenter = Segmenter(base_width=4, depth=1).fit(data, torch.arange(24) % 2, steps=steps, epochs=2, per_cluster=2, n_real=4, accelerator="cpu", progress=False)
    assert torch.isfinite(segmenter.predict(data)).all()
