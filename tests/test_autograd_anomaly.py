"""What anomaly mode says beyond the first NaN: masks, writes, lines of refused writes, and blocks without it."""

import numpy as np
import pytest

from tinygrad_llm.autograd import AnomalyError, AutogradError, Tensor, detect_anomaly, no_grad, set_detect_anomaly
from tinygrad_llm.functions import masked_fill, softmax
from tinygrad_llm.nn import functional as F

X = np.array([[0.5, 1.0], [2.0, 3.0]])


def leaf():
    return Tensor.of(X, True)


def test_a_mask_of_minus_infinity_is_no_anomaly():
    mask = np.array([[False, True], [False, False]])
    with detect_anomaly():
        softmax(masked_fill(leaf(), mask, -np.inf), -1).sum().backward()
        softmax(leaf() + np.where(mask, -np.inf, 0), -1).sum().backward()
        F.scaled_dot_product_attention(leaf(), leaf(), leaf(), attn_mask=~mask).sum().backward()


@pytest.mark.parametrize(("make", "said"), [
    (lambda x: (x * 0).log(), "forward of log gave inf"), (lambda x: x * np.inf, "forward of mul gave inf"),
    (lambda x: x + (x * 0 - np.inf) - np.inf * (x * 0 - 1), "nan"),
    (lambda x: x.clone().sub_(5).log_(), "forward of log gave nan"),
    (lambda x: x.clone().__setitem__(0, np.nan), "forward of put gave nan"),
])
def test_what_an_op_makes_is(make, said):
    with np.errstate(all="ignore"), detect_anomaly(), pytest.raises(AnomalyError, match=said):
        make(leaf())


def test_without_check_nan_only_lines_are_kept_and_a_refused_write_names_its_own():
    with np.errstate(all="ignore"), detect_anomaly(check_nan=False):
        x = leaf()
        y = (x - 5).log()
        z = x.sin()
    y.sum().backward()
    with no_grad():
        x.zero_()
    with pytest.raises(AutogradError, match=r"^sin: .* its forward was called at .*test_autograd_anomaly.py:\d+: z = x.sin"):
        z.sum().backward()


def test_a_block_inside_may_do_without():
    with np.errstate(all="ignore"), detect_anomaly():
        with set_detect_anomaly(False):
            assert np.isnan((leaf() - 5).log().numpy()).all()
        with pytest.raises(AnomalyError):
            (leaf() - 5).log()
