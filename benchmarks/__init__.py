"""How fast, in how much memory, and beside what: `python -m benchmarks --help`; docs/benchmarks.md says how to read it."""
