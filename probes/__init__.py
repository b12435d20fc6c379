"""One file a question of the paper: `python -m probes.value_matrix standard`, or all: `python -m probes standard`.

A probe is three things: `grid`, the cells of its study as plain data; `measure`, from a cell to rows of numbers; and
`report`, from the rows to evidence, tables and figures. Its `RULES` say beforehand what would make each claim hold.
"""
