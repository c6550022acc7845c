"""Programs that run in both libraries: their leaves, and what they note in a form that can be compared."""

import numpy as np

X = [0.5, -1.0, 2.0]


def leaf(m, values=X, requires_grad=True):
    """A new leaf of library m."""
    return m.tensor(np.array(values)).requires_grad_(requires_grad)


def noted(values):
    """Tensors as arrays and whether they require grad; anything else as it is."""
    return [(np.round(v.numpy(force=True).astype(float), 12).tolist(), v.requires_grad) if hasattr(v, "detach") else v
            for v in values]
