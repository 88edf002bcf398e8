"""Studies: local pictures of a few models, each trained once, in the manner of the figures of [Xu2024].

A study is the second kind of spec, beside the grids of `specs`: which figure, of which models, how large.
"""
