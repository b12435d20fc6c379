"""One file a question of the paper: `python -m probes.toy.value_matrix standard`, or all: `python -m probes standard`.

`real` holds the probes of language models, `toy` those of the trained toy model, `theory` those of theorems and lemmas.

A probe is three things: `grid`, the cells of its study as plain data; `measure`, from a cell to rows of numbers; and
`report`, from the rows to evidence, tables and figures. Its `RULES` say beforehand what would make each claim hold.
"""
