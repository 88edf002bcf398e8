"""What a grid of results says: slices, double descent, the claims of [Yang2021], advice. Reads results only.

Layers, from the bottom up: `verdicts` (numbers), `columns` (slices and best cells), `double_descent`, `evidence`,
`counterparts` (two results side by side), `claims`, `advice`, `tables` (all of it as rows).
"""
