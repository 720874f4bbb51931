"""The gradients' errors in bfloat16, by hand and of a tiny model."""

import numpy as np
import pytest
import tiny

from benchmarks.training import precision

pytestmark = pytest.mark.release


def test_errors_by_hand():
    exact = {"a": {"x": np.array([3.0, 4.0])}, "b": np.array([0.0, 12.0])}
    found = {"a": {"x": np.array([3.0, 4.5])}, "b": np.array([1.2, 12.0])}
    expected = {"all": 1.3 / 13, "a": 0.1, "b": 0.1}
    assert precision.errors(found, exact) == pytest.approx(expected)


def test_a_tiny_model_has_small_errors():
    lines = precision.table(tiny.config(batch_size=4))
    assert len(lines) > 4
    for line in lines[2:]:
        _, name, *shares, _ = (cell.strip() for cell in line.split("|"))
        assert all(0 < float(share.strip("%")) < 100 for share in shares), name
