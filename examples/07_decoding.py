"""Decoding: what a KV cache keeps, why it may keep it, what that saves, and where it ends.

    python examples/07_decoding.py

The model is not trained; all of this is true of any weights.
"""

import time

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.decoding import Decoder

config = tg.TransformerConfig(vocab_size=65, context_length=256, d_model=128, n_heads=4, n_layers=4)
model = tg.Transformer(config, seed=0)
ids = np.random.default_rng(0).integers(0, 65, (1, 257))


def whole(start, end):
    """Logits of the token after ids[start:end], by running the model on all of them."""
    with tg.no_grad():
        return model(ids[:, start:end]).numpy()[:, -1]


def largest(x):
    return f"{np.abs(x).max():.0e}"


def keys_and_values(start, end):
    """[layers, 2, B, H, T, D]: what the positions of ids[start:end] show to later ones."""
    decoder = Decoder(model)
    decoder(ids[:, start:end])
    return decoder.cache.entries[..., : end - start, :]


print("1. No position sees its future, so nothing that comes later changes its keys and values.\n")
eight, nine = keys_and_values(0, 8), keys_and_values(0, 9)
print(f"   Shape {eight.shape}: layers, keys and values, sequences, heads, positions, features of a head.")
print(f"   After a ninth token, the first eight have changed by {largest(nine[..., :8, :] - eight)}.\n")

print("2. So they are kept, and only the new token goes through the model. The logits are the same, but for rounding.\n")
decoder, differences = Decoder(model), []
for n in range(1, 257):
    logits = decoder(ids[:, n - 1 : n])  # [1, 65], after n tokens
    if n in (1, 16, 64, 256):
        differences.append(f"{n} tokens: {largest(logits - whole(0, n))}")
print(f"   Largest difference after {', '.join(differences)}.\n")

print("3. The cost of a token no longer grows with what was read before, but for attention's look back.\n")


def milliseconds(function):
    times = []
    for _ in range(9):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * np.median(times)


print("   tokens read   whole model, ms   with the cache, ms")
for n in (15, 63, 127, 255):

    def next_token(n=n):
        decoder.cache.length = n  # it has read them all: back to where it knew the first n
        return decoder(ids[:, n : n + 1])

    without, with_cache = milliseconds(lambda n=n: whole(0, n + 1)), milliseconds(next_token)
    print(f"   {n:>11}   {without:>15.2f}   {with_cache:>18.2f}")

print("\n4. Beyond context_length the model sees the last 256 tokens, each at another position than in the step before.\n")
before, after = keys_and_values(0, 256), keys_and_values(1, 257)
changed = largest(after[..., :255, :] - before[..., 1:, :])
print(f"   Keys and values of the 255 tokens that stay change by up to {changed}, where the largest is {largest(before)}.")
print("   What was kept is of no use there: `generate` reads the window anew for each token, as if there were no cache.")
