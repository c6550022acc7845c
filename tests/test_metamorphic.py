"""What must hold of the Transformer whatever its weights: relations between runs of it, and between its gradients.

No reference model is needed. Each relation is held over both norm positions, tied and not, GELU and ReLU and several widths
in float64; and each is checked itself: a seeded bug (reference.bugs) that it must see.
"""

import functools

import numpy as np
import pytest

import tinygrad_llm as tg
from reference.bugs import BUGS
from reference.bugs.attention import _heads
from reference.bugs.patch import Bug, method, op_gradients
from reference.equivalence import random_state
from tinygrad_llm import nn
from tinygrad_llm.model import Transformer, TransformerConfig

B, T, V = 3, 5, 17
ROUNDING = 64 * np.finfo(np.float64).eps  # times the size of what is added up: the same sums in another order
WIDTHS = [(4, 1, 7), (6, 3, None), (8, 2, 5), (12, 4, 16)]  # d_model, heads, d_ff


def configs():
    """Every combination of the choices, the widths in turn."""
    choices = [(norm, tie, activation) for norm in ("pre", "post") for tie in (False, True) for activation in ("gelu", "relu")]
    for i, (norm, tie, activation) in enumerate(choices):
        d, heads, hidden = WIDTHS[i % len(WIDTHS)]
        yield TransformerConfig(
            vocab_size=V, context_length=2 * T, d_model=d, n_heads=heads, n_layers=2, d_ff=hidden, activation=activation,
            norm_position=norm, tie_embeddings=tie, positions="learned" if i % 3 else "sinusoidal")


class Tap(nn.Module):
    """A module whose input and output keep their gradients."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def weight(self):
        """That of the module: the loss may use it without a call."""
        return self.inner.weight

    def forward(self, *args):
        """What the module computes."""
        if isinstance(args[0], tg.Tensor):
            self.given = args[0] * 1  # a node of its own: the residual's gradient does not pass here
            self.given.retain_grad()
            args = (self.given,)
        self.made = self.inner(*args)
        self.made.retain_grad()
        return self.made


class Case:
    """A model with drawn weights, tapped at its embedding and its norms, and a batch."""

    def __init__(self, config, seed=0):
        self.config, self.rng = config, np.random.default_rng(seed)
        self.state = random_state(config, seed)
        self.ids, self.targets = self.rng.integers(0, V, (2, B, T))

    def model(self, state=None):
        """A fresh model with these weights."""
        model = Transformer(self.config, dtype=np.float64)
        model.load_state_dict(self.state if state is None else state)
        return model

    def tapped(self):
        """(model, tap of the embedding, taps of the norms)."""
        model = self.model()
        model.tok_embed, model.final_norm = Tap(model.tok_embed), Tap(model.final_norm)
        for block in model.blocks:
            block.norm1, block.norm2 = Tap(block.norm1), Tap(block.norm2)
        norms = [norm for block in model.blocks for norm in (block.norm1, block.norm2)]
        return model, model.tok_embed, [*norms, model.final_norm]


def plain_loss(model, ids, targets):
    """The loss by way of its logits, which Transformer.loss may never make."""
    return nn.functional.cross_entropy(model(ids).reshape(-1, V), targets.reshape(-1))


def run(model, ids, targets):
    """(logits, losses, gradients by name), of the model's own loss and of the cross-entropy of its logits."""
    losses, gradients = [], {}
    for kind, loss in (("loss", model.loss(ids, targets)), ("cross-entropy", plain_loss(model, ids, targets))):
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients |= {f"{name} of {kind}": p.grad.numpy() for name, p in model.named_parameters()}
    return model(ids).numpy(), np.array(losses), gradients


def near(what, a, b, scale=1.0):
    """A line where a is not b to rounding."""
    size = scale * (1 + float(np.abs(b).max(initial=0)))
    return [] if np.all(np.abs(np.asarray(a) - b) <= 16 * ROUNDING * size) else [f"{what}: {np.abs(a - b).max()}"]


def all_near(what, one, other):
    """Lines for what differs of two mappings of arrays."""
    assert one.keys() == other.keys()
    return [fail for name in one for fail in near(f"{what}: {name}", one[name], other[name])]


# Relations: each returns what failed, one line each -------------------------------------------------------------------------


def causality_of_logits(case):
    """Another token at t or later changes no bit of an earlier logit, and does change its own."""
    fails = []
    for t in range(1, T):
        other = case.ids.copy()
        other[:, t:] = (other[:, t:] + 1) % V
        before, after = case.model()(case.ids).numpy(), case.model()(other).numpy()
        fails += [f"logits before {t}"] * (not np.array_equal(before[:, :t], after[:, :t]))
        fails += [f"logits at {t} do not see their token"] * np.array_equal(before[:, t], after[:, t])
    return fails


def causality_of_gradients(case):
    """d logits[:, t] / d embedding[:, s] is exactly 0 for s > t and not 0 for s ≤ t."""
    fails = []
    for t in range(T):
        model, tap, _ = case.tapped()
        logits = model(case.ids)
        logits[:, t].backward(case.rng.standard_normal((B, V)))
        seen = np.abs(tap.made.grad.numpy()).max(-1)
        fails += [f"logits at {t} have a gradient after {t}"] * bool(seen[:, t + 1 :].any())
        fails += [f"logits at {t} have no gradient at or before {t}"] * (not seen[:, : t + 1].all())
    return fails


def causality_of_the_past(case):
    """Another token at t or later changes no bit of the gradients of a loss over the positions before t."""
    fails = []
    for t in range(1, T):
        targets, found = case.targets.copy(), []
        targets[:, t:] = -100
        for shift in (0, 1):
            ids = case.ids.copy()
            ids[:, t:] = (ids[:, t:] + shift) % V
            found.append(run(case.model(), ids, targets)[2])
        fails += [f"before {t}: {name}" for name in found[0] if not np.array_equal(found[0][name], found[1][name])]
    return fails


def dlogits_sum_to_zero(case):
    """Softmax does not see a number added to a row, so that each row of dlogits sums to 0; and not because it is all 0."""
    model, fails = case.model(), []
    weight = case.rng.uniform(0.5, 2, V)
    for options in ({}, {"reduction": "sum"}, {"label_smoothing": 0.1}, {"weight": weight}, {"ignore_index": 3}):
        logits = model(case.ids).reshape(-1, V)
        logits.retain_grad()
        nn.functional.cross_entropy(logits, case.targets.reshape(-1), **options).backward()
        d = logits.grad.numpy()
        fails += [f"{options}: rows sum to {d.sum(-1)}"] * bool(np.any(np.abs(d.sum(-1)) > ROUNDING * np.abs(d).sum(-1)))
        fails += [f"{options}: no gradient"] * (not d.any())
    return fails


def head_does_not_see_a_common_logit(case):
    """The gradient of lm_head (untied) summed over the vocabulary is 0: each token of the batch adds rows of dlogits."""
    *_, gradients = run(case.model(), case.ids, case.targets)
    heads = {name: d for name, d in gradients.items() if name.startswith("lm_head")}  # none where it is tied
    return [fail for name, d in heads.items() for fail in near(f"Σ {name}", d.sum(0), np.zeros(1))]


def norms_sum_to_zero(case):
    """A layer norm does not see a number added to a row: its dx sums to 0; nor, but for eps, a factor: Σ dx x̂ is small."""
    model, _, norms = case.tapped()
    model.loss(case.ids, case.targets).backward()
    fails = []
    for i, norm in enumerate(norms):
        d = norm.given.grad.numpy()
        fails += [f"norm {i}: dx sums to {d.sum(-1)}"] * bool(np.any(np.abs(d.sum(-1)) > ROUNDING * np.abs(d).sum(-1)))
        fails += [f"norm {i}: no gradient"] * (not d.any())
    return fails


def norms_see_no_shift(case):
    """norm(x + c) = norm(x), and its gradients are the same."""
    _, _, norms = case.tapped()
    norm, x, fails = norms[0].inner, case.rng.standard_normal((B, T, case.config.d_model)), []
    g, found = case.rng.standard_normal(x.shape), []
    for shift in (0.0, 3.0):
        given = tg.tensor(x + shift, requires_grad=True)
        out = norm(given)
        found.append({"out": out.numpy(), **dict(zip(("dx", "dweight", "dbias"), [
            d.numpy() for d in tg.grad(out, (given, norm.weight, norm.bias), g)]))})
    return fails + [fail for name in found[0] for fail in near(name, *[f[name] for f in found], scale=100)]


def sequences_in_another_order(case):
    """The batch permuted: the same logits, permuted, the same loss, the same gradients."""
    order = np.roll(np.arange(B), 1)
    logits, loss, gradients = run(case.model(), case.ids, case.targets)
    moved, same, others = run(case.model(), case.ids[order], case.targets[order])
    return near("logits", moved, logits[order]) + near("losses", same, loss) + all_near("gradients", others, gradients)


def each_sequence_alone(case):
    """A sequence's logits do not depend on the others in its batch, and the gradients of the batch are the mean of theirs."""
    logits, _, gradients = run(case.model(), case.ids, case.targets)
    alone = [run(case.model(), case.ids[b : b + 1], case.targets[b : b + 1]) for b in range(B)]
    mean = {name: sum(one[2][name] for one in alone) / B for name in gradients}
    return near("logits", np.concatenate([one[0] for one in alone]), logits) + all_near("gradients", mean, gradients)


def heads_in_another_order(case):
    """The heads of every block permuted, in qkv_proj and out_proj alike: the same logits, the gradients permuted."""
    h, d = case.config.n_heads, case.config.d_model
    order = np.roll(np.arange(h), 1)
    features = np.arange(d).reshape(h, d // h)[order].reshape(-1)
    rows = np.concatenate([part * d + features for part in range(3)])

    def permuted(arrays):
        out = dict(arrays)
        for name in arrays:
            if ".attn.qkv_proj." in name:  # [3, H, D] rows
                out[name] = arrays[name][rows]
            if "attn.out_proj.weight" in name:
                out[name] = arrays[name][:, features]
        return out

    logits, loss, gradients = run(case.model(), case.ids, case.targets)
    moved, same, others = run(case.model(permuted(case.state)), case.ids, case.targets)
    return near("logits", moved, logits) + near("losses", same, loss) + all_near("gradients", others, permuted(gradients))


def tokens_renamed(case):
    """The vocabulary permuted, in the embedding, the head, ids and targets: the logits and gradients permuted."""
    order = case.rng.permutation(V)  # new name → old name
    names = np.argsort(order)  # old name → new name

    def permuted(arrays):
        return {n: a[order] if n.startswith(("tok_embed.", "lm_head.")) else a for n, a in arrays.items()}

    logits, loss, gradients = run(case.model(), case.ids, case.targets)
    moved, same, others = run(case.model(permuted(case.state)), names[case.ids], names[case.targets])
    fails = near("logits", moved, logits[..., order]) + near("losses", same, loss)
    return fails + all_near("gradients", others, permuted(gradients))


def padding_changes_nothing(case):
    """Tokens after the end, whose targets are ignored: the same logits before them, the same loss and gradients."""
    padding = case.rng.integers(0, V, (B, T))
    ids, targets = np.concatenate([case.ids, padding], 1), np.concatenate([case.targets, np.full((B, T), -100)], 1)
    logits, loss, gradients = run(case.model(), case.ids, case.targets)
    moved, same, others = run(case.model(), ids, targets)
    fails = near("logits", moved[:, :T], logits) + near("losses", same, loss)
    return fails + all_near("gradients", others, gradients)


def without_row_0(gradients, *_):
    """A bug that names a token: its row of the embedding takes no gradient."""
    return [gradients[0] * (np.arange(len(gradients[0])) > 0)[:, None], *gradients[1:]]


ROW_0 = Bug("embedding", "row 0 taken for padding", "padding_idx=0", op_gradients("embedding", without_row_0))
SEPARATE = method("model.Attention.forward", _heads)  # the bugs are in the attention of separate q, k and v
RELATIONS = {  # and the seeded bugs that each must see
    causality_of_logits: ["no causal mask", "mask off by one: sees its target"],
    causality_of_gradients: ["dV = P g, not Pᵀ g", "no causal mask"],
    causality_of_the_past: ["no causal mask"],
    dlogits_sum_to_zero: ["p without the one-hot"],
    head_does_not_see_a_common_logit: ["p without the one-hot"],
    norms_sum_to_zero: ["dx without mean ĝ", "dx that takes σ for a constant"],
    norms_see_no_shift: ["mean not subtracted", "weight's gradient from x, not x̂"],
    sequences_in_another_order: ["weight's gradient of the last sequence only"],
    each_sequence_alone: ["weight's gradient of the last sequence only"],
    heads_in_another_order: ["heads interleaved in the features", "heads merged without transposing"],
    tokens_renamed: [ROW_0.name],
    padding_changes_nothing: ["ignored targets counted in the mean", "no causal mask"],
}


@functools.cache
def cases():
    return [Case(config, seed) for seed, config in enumerate(configs())]


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
def test_relation(relation):
    """And, where a bug will be seen, without the bug."""
    with SEPARATE(tg):
        assert not any(relation(case) for case in cases()[:2])
    assert {case.config: fails for case in cases() if (fails := relation(case))} == {}


CONTROLS = [(relation, name) for relation, names in RELATIONS.items() for name in names]


@pytest.mark.parametrize(("relation", "name"), CONTROLS, ids=[f"{r.__name__}-{n}" for r, n in CONTROLS])
def test_relation_sees_a_bug(relation, name):
    """On some of the models: a bug of one norm position or of several heads is not in all."""
    [bug] = [bug for bug in [*BUGS, ROW_0] if bug.name == name]
    with SEPARATE(tg), bug.apply(tg):
        assert any(relation(case) for case in cases())
