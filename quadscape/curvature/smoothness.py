"""Where a network's loss has kinks, by the kinds of its operations.

An operation that is not known to be twice differentiable counts as kinked: the Hessian is then the almost-everywhere
one, and the store says so. Being singular at isolated points (the square root at 0, a norm at the origin) is no kink.
Comparisons, rounding and indices are constants of the derivatives but make the loss jump or bend where they change, so
they count wherever they depend on parameters.
"""

from collections.abc import Callable
from typing import Any

import torch

from quadscape.curvature.graph import Graph, Node
from quadscape.network import substitutes

# Linear in what moves, or constant.
_LINEAR = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _conj _convolution _fft_c2c _fft_c2r _fft_r2c _to_copy _unsafe_view
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add addbmm addmm addmv
affine_grid_generator alias as_strided avg_pool1d avg_pool2d avg_pool3d baddbmm bmm broadcast_to cat chunk clone col2im
complex concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
convolution copy cumsum detach diag diag_embed diagonal diff dot dropout einsum embedding expand expand_as
feature_dropout fft_fft fft_fft2 fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft
fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn flatten flip fold gather getitem hstack im2col imag index
index_add index_copy index_fill index_put index_select lift_fresh_copy linear masked_fill masked_scatter matmul mean
meshgrid mm moveaxis movedim mv narrow neg outer pad permute pixel_shuffle pixel_unshuffle real reflection_pad1d
reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape
resolve_conj resolve_neg roll rot90 rsub scatter scatter_add select select_scatter slice slice_scatter split
split_with_sizes squeeze stack sub sum sum_to_size swapaxes t take take_along_dim tensor_split tile to trace transpose
tril triu type_as unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d view view_as_complex view_as_real vstack
where
"""
_SMOOTH = """
_fused_rms_norm _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training _safe_softmax
_scaled_dot_product_flash_attention_for_cpu _softmax acos acosh addcdiv addcmul angle asin asinh atan atan2 atanh
batch_norm bilinear cos cosh cosine_similarity cross cumprod digamma div erf erfc erfinv exp exp2 expm1 float_power gelu
glu group_norm gru hypot i0 instance_norm kron layer_norm lerp lgamma linalg_cholesky linalg_cholesky_ex linalg_cross
linalg_det linalg_inv linalg_inv_ex linalg_matrix_exp linalg_slogdet linalg_solve linalg_solve_ex linalg_vecdot log
log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp logdet logsumexp lstm matrix_exp mish mul
native_batch_norm native_group_norm native_layer_norm polar pow prod reciprocal rms_norm rnn_tanh rsqrt
scaled_dot_product_attention sigmoid silu sin sinc sinh softmax softplus special_entr special_erfcx special_i0e
special_i1 special_i1e special_log_ndtr special_ndtri special_xlog1py sqrt square std std_mean tan tanh tensordot
trapezoid var var_mean vdot xlogy
"""
_KNOWN = frozenset(_LINEAR.split()) | frozenset(_SMOOTH.split())
# Their values do not depend on those of their arguments.
_CONSTANT = frozenset(
    ["zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "sym_size"]
)
# Linear in their first argument, and bent in the second.
_SAMPLERS = frozenset({"grid_sampler", "grid_sampler_2d", "grid_sampler_3d"})
_ROUNDED = frozenset({"to", "_to_copy", "type_as", "div"})


def kinks(graph: Graph) -> tuple[str, ...]:
    """The operations of a network that bend or jump where parameters move.

    Args:
        graph: The network.

    Returns:
        Their names, each once, in the order of their evaluation; empty where the loss is twice differentiable.
    """
    moving: set[str] = set(graph.parameters)
    found: dict[str, None] = {}
    for node in graph.nodes:
        name = _name(node.target)
        if not moving.intersection(node.inputs) or name in _CONSTANT:
            continue
        moving.add(node.name)
        if not (node.inputs[1] not in moving if name in _SAMPLERS else _is_smooth(node, name)):
            found[name] = None
    return tuple(found)


def _name(target: Callable[..., Any]) -> str:
    """`relu` for `aten.relu.default`."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return getattr(target, "__name__", str(target))


def _is_smooth(node: Node, name: str) -> bool:
    args, kwargs = node.arguments
    if node.target is substitutes.weight_norm:
        return True
    if node.target is substitutes.cdist:
        return _is_even(args[2] if len(args) > 2 else kwargs.get("p", 2.0))
    if name in {"linalg_vector_norm", "norm"}:
        return _is_even(args[1] if len(args) > 1 else kwargs.get("ord", kwargs.get("p", 2.0)))
    if name in _ROUNDED:
        given = [*args, *kwargs.values()]
        dtypes = [a for a in given if isinstance(a, torch.dtype)]
        if kwargs.get("rounding_mode") is not None or any(not (d.is_floating_point or d.is_complex) for d in dtypes):
            return False
    return name in _KNOWN


def _is_even(order: Any) -> bool:
    """Whether a norm of this order has no kink but at the origin, as those of even order."""
    return order is None or (isinstance(order, int | float) and order > 0 and order % 2 == 0)
