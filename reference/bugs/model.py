"""Models that are put together wrongly: residuals, norms, positions, tied weights, dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from reference.bugs.patch import Apply, Bug, method


def _block(original: Any, library: Any, wiring: Any) -> Any:
    return lambda self, x: wiring(self, x, self.pre)


def _wired(wiring: Any) -> Apply:
    return method("model.Block.forward", partial(_block, wiring=wiring))


def _no_residual(self: Any, x: Any, pre: bool) -> Any:
    if pre:
        x = self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))
    x = self.norm1(self.attn(x))
    return self.norm2(x + self.ffn(x))


def _residual_of_norm(self: Any, x: Any, pre: bool) -> Any:
    if not pre:
        return self.norm2(self.norm1(x + self.attn(x)) + self.ffn(self.norm1(x + self.attn(x))))
    n = self.norm1(x)
    x = n + self.attn(n)
    return x + self.ffn(self.norm2(x))


def _swapped_norms(self: Any, x: Any, pre: bool) -> Any:
    if not pre:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))
    x = self.norm1(x + self.attn(x))
    return self.norm2(x + self.ffn(x))


def _parallel(self: Any, x: Any, pre: bool) -> Any:
    if not pre:
        return self.norm2(x + self.attn(x) + self.ffn(x))
    return x + self.attn(self.norm1(x)) + self.ffn(self.norm2(x))


def _one_norm(self: Any, x: Any, pre: bool) -> Any:
    if not pre:
        x = self.norm1(x + self.attn(x))
        return self.norm1(x + self.ffn(x))
    x = x + self.attn(self.norm1(x))
    return x + self.ffn(self.norm1(x))


def _scaled_residual(self: Any, x: Any, pre: bool) -> Any:
    if not pre:
        x = self.norm1(x * 0.5 + self.attn(x) * 0.5)
        return self.norm2(x + self.ffn(x))
    x = (x + self.attn(self.norm1(x))) * 0.5
    return x + self.ffn(self.norm2(x))


def _transformer(original: Any, library: Any, mistake: str) -> Any:
    """Transformer.features without dropout, with one mistake."""

    def features(self: Any, ids: Any) -> Any:
        ids = np.asarray(ids)
        once = mistake == "tied once" and self.config.tie_embeddings
        x = library.nn.functional.embedding(ids, self.tok_embed.weight.detach()) if once else self.tok_embed(ids)
        x = x * float(np.sqrt(self.config.d_model)) if mistake == "scaled" else x
        x = x if mistake == "no positions" else x + self._positions(ids.shape[1])
        for block in self.blocks:
            x = block(x)
        return x if mistake == "no final norm" else self.final_norm(x)

    return features


def _forward(mistake: str) -> Apply:
    return method("model.Transformer.features", partial(_transformer, mistake=mistake))


def _late_positions(original: Any, library: Any) -> Any:
    def positions(self: Any, length: int) -> Any:
        table = self.pos_embed.weight if self.config.positions == "learned" else self._sinusoids
        return table[np.minimum(np.arange(length) + 1, self.config.context_length - 1)]

    return positions


def _halves(original: Any, library: Any) -> Any:
    def table(length: int, d: int) -> Any:
        good = original(length, d)
        return np.concatenate([good[:, 0::2], good[:, 1::2]], axis=1)

    return table


def _slow_sinusoids(original: Any, library: Any) -> Any:
    def table(length: int, d: int) -> Any:
        angle = np.arange(length)[:, None] / 10000 ** (2 * np.arange(0, d, 2) / d)
        out = np.zeros((length, d))
        out[:, 0::2], out[:, 1::2] = np.sin(angle), np.cos(angle)[:, : d // 2]
        return out

    return table


def _dropout(original: Any, library: Any, mistake: str) -> Any:
    """F.dropout with one mistake."""

    def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, generator: Any = None) -> Any:
        if mistake == "in eval":
            return original(input, p, True, inplace, generator=generator or np.random.default_rng(0))
        if mistake == "keeps p":
            return original(input, 1 - p if training and 0 < p < 1 else p, training, inplace, generator=generator)
        if mistake == "one mask":
            return original(input, p, training, inplace, generator=np.random.default_rng(0))
        out = original(input, p, training, inplace, generator=generator)
        return out * (1 - p) if training and 0 < p < 1 else out

    return dropout


def _dropped(mistake: str) -> Apply:
    return method("nn.functional.dropout", partial(_dropout, mistake=mistake))


BUGS = [
    Bug("block", "residual around attention dropped", "x + f(norm(x))", _wired(_no_residual)),
    Bug("block", "residual taken after the norm", "the stream itself must not be normalised", _wired(_residual_of_norm)),
    Bug("block", "pre-norm and post-norm swapped", "Xiong et al. 2020", _wired(_swapped_norms)),
    Bug("block", "attention and feed-forward side by side", "one after the other here", _wired(_parallel)),
    Bug("block", "one norm used for both sublayers", "each has its own weight", _wired(_one_norm)),
    Bug("block", "residual sum halved", "a mean in place of a sum", _wired(_scaled_residual)),
    Bug("model", "no final norm", "GPT-2 adds one after the last block", _forward("no final norm")),
    Bug("model", "no positions", "attention alone does not see order", _forward("no positions")),
    Bug("model", "embeddings times √d", "Vaswani et al. 2017, 3.4; not in this model", _forward("scaled")),
    Bug("model", "tied weights counted once", "Press & Wolf 2017: both uses have a gradient", _forward("tied once")),
    Bug("positions", "positions off by one", "counted from 1", method("model.Transformer._positions", _late_positions)),
    Bug("positions", "sin and cos in halves, not pairs", "Vaswani et al. 2017, 3.5; two layouts are about",
        method("model.sinusoidal_positions", _halves)),
    Bug("positions", "frequencies 10000^(−4i/d)", "2i counted twice", method("model.sinusoidal_positions", _slow_sinusoids)),
    Bug("dropout", "not rescaled by 1/(1 − p)", "Srivastava et al. 2014, inverted dropout", _dropped("not rescaled")),
    Bug("dropout", "active in eval", "model.eval() forgotten", _dropped("in eval")),
    Bug("dropout", "keeps with probability p", "p is the chance to drop", _dropped("keeps p")),
    Bug("dropout", "the same mask at every call", "a generator seeded inside", _dropped("one mask")),
]  # fmt: skip
