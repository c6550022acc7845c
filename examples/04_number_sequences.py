"""The smallest training there is: learn [1, 5, 2, 6, 3, 7, 4, 8] → [5, 2, 6, 3, 7, 4, 8, 9], then continue it.

    python examples/04_number_sequences.py

Two sequences are interleaved, 1 2 3 4 and 5 6 7 8, so after each number comes one from the other sequence. The target
at each position is the number that comes next; one pair of sequences asks eight questions.
"""

import sys

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.data import SequenceDataset
from tinygrad_llm.generation import generate
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import Trainer

dataset = SequenceDataset([1, 5, 2, 6, 3, 7, 4, 8, 9], context_length=8)
ids, targets = dataset.batch([0])  # int [1, 8] each
print(f"input   {ids[0]}\ntarget  {targets[0]}\n")

config = tg.TransformerConfig(vocab_size=10, context_length=8, d_model=16, n_heads=2, n_layers=1)
model = tg.Transformer(config, seed=0)
trainer = Trainer(model, AdamW(model.parameters(), lr=2e-3))
print(f"A Transformer of {model.num_parameters():,} parameters. A guess among 10 numbers costs ln 10 = {np.log(10):.2f}.\n")


def predict():
    """The likeliest next number at each of the eight positions."""
    with tg.no_grad():
        return tg.argmax(model(ids), dim=-1).numpy()[0]


print("step   loss   the likeliest next numbers   right")
right = 0
for step in range(301):
    said = predict()
    right = int((said == targets[0]).sum())
    loss = trainer.step(ids, targets)  # forward, backward, AdamW; the loss is that before the step
    done = right == 8 and loss < 0.1
    if step % 10 == 0 or done:
        print(f"{step:>4}   {loss:.2f}   {said}           {right} of 8")
    if done:
        break

if right < 8:
    sys.exit("Not every next number is right.")
prompt = [1, 5]
written = list(generate(model, prompt, max_new_tokens=7))
print(f"\nEvery next number is right. After {prompt}, the model writes {written}.")
