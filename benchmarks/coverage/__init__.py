"""Which of transformers' models does a Lens read, and how well: measured on a tiny random model of every type.

`make coverage` measures all of them and writes `results/coverage.csv` and `docs/coverage.md`; `python -m
benchmarks.coverage llama causal:qwen3_next` measures some and prints what it finds, `--quick` the important ones, and
compares them with the file.

`kinds.py` lists the types, `build.py` makes their models (`sizes.py`: general rules, `exceptions.py`: what those do not
know), `reference.py` is what is true of a model without a Lens, `measure.py` compares, `judge.py` sums up,
`processes.py` gives every type a process, and `page.py` writes the page.
"""
