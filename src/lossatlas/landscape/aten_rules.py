"""Which ATen operations are affine in each of their inputs: the allow-list that linearity.py walks a graph with.

Every operation maps its positional arguments to one of two roles. `added`: the result is (piecewise) linear in
all of these together, so what they depend on is united. `multiplied`: the result is linear in each, so no two
of these may depend on the same parameter. An argument in neither role must not depend on parameters (a divisor,
an index, a running statistic). Piecewise constant operations have derivative zero and hence depend on nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """The roles of the positional arguments of an operation."""

    added: tuple[int, ...] = ()
    multiplied: tuple[int, ...] = ()


def _names(text: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(text.split(), rule)


RULES: dict[str, Rule] = {
    # views and copies of the first argument
    **_names(
        "view _unsafe_view reshape _reshape_alias t transpose permute expand squeeze unsqueeze slice select split "
        "split_with_sizes unbind chunk as_strided as_strided_ flatten "
        "unfold im2col col2im diagonal narrow movedim numpy_T "
        "alias detach clone contiguous _to_copy lift_fresh lift_fresh_copy constant_pad_nd reflection_pad1d "
        "reflection_pad2d replication_pad1d replication_pad2d flip roll repeat pixel_shuffle pixel_unshuffle "
        "channel_shuffle index_select gather index embedding tril triu cat stack",
        Rule(added=(0,)),
    ),
    # sums, means, linear interpolation
    **_names(
        "sum mean cumsum neg avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
        "adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_bilinear2d",
        Rule(added=(0,)),
    ),
    **_names("add sub rsub", Rule(added=(0, 1))),
    # piecewise linear
    **_names(
        "relu leaky_relu hardtanh relu6 abs threshold clamp clamp_min clamp_max hardsigmoid hardshrink softshrink "
        "max_pool2d_with_indices max_pool3d_with_indices max_pool2d adaptive_max_pool2d adaptive_max_pool3d "
        "amax amin sort topk masked_fill",
        Rule(added=(0,)),
    ),
    **_names("max min maximum minimum", Rule(added=(0, 1))),
    "where": Rule(added=(1, 2)),
    # replaced parts: the values of both may remain
    **_names("copy slice_scatter select_scatter", Rule(added=(0, 1))),
    **_names("index_add scatter_add", Rule(added=(0, 3))),
    # products
    **_names("mul mm bmm matmul mv dot _prelu_kernel prelu outer", Rule(multiplied=(0, 1))),
    **_names("addmm baddbmm addbmm addmv addcmul", Rule(added=(0,), multiplied=(1, 2))),
    **_names("linear convolution", Rule(added=(2,), multiplied=(0, 1))),
    "div": Rule(added=(0,)),
    # BatchNorm; whether it uses the statistics of the batch is TRAINING_FLAG's to say
    **_names(
        "native_batch_norm _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm "
        "_native_batch_norm_legit_no_training _batch_norm_no_update",
        Rule(added=(2,), multiplied=(0, 1)),
    ),
}

TRAINING_FLAG = {
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "cudnn_batch_norm": 5,
    "miopen_batch_norm": 5,
}

PIECEWISE_CONSTANT = frozenset(
    [
        *("sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside"),
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
    ]
)  # results of integer or boolean type (comparisons, indices) are piecewise constant too
