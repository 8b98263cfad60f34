"""What is known about torch's operations: how each passes on the content of the tensors it reads.

Every operand of an operation is passed on in one of these ways (`Passage`):

| passage | what becomes of the content | examples |
| --- | --- | --- |
| same | nothing: another view, layout, type, or dropout | `view`, `permute`, `to`, `dropout` |
| part | a piece of it | `x[:, :8]`, `chunk`, `gather` |
| pick | one position of it | `x[:, 0]`, `unbind` |
| pad | it, with zeros or copies around | `pad`, `cat` with zeros |
| scale | times a number, a fixed or a learned tensor | `mul`, `div`, `neg` |
| gate | times another signal | `mul` of two signals |
| sum | added to others | `add`, `sub`, `index_add`, `where` |
| concat | put beside others | `cat`, `stack`, `x[i] = y` |
| activation | each element by a function of its own | `relu`, `softmax` |
| norm | normalised | `batch_norm`, `layer_norm` |
| pool | mixed over positions or channels without parameters | `avg_pool2d`, `mean`, `interpolate`, `fft` |
| weight | through a linear map that has parameters: a weight layer | `conv2d`, `linear`, `embedding` |
| product | multiplied with another signal over positions or channels, or unknown | attention, `bmm` |
| aside | not as content: parameters, masks, indices, states | weights, biases |
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from skipway.graph.ir import Operation, Ref, Trace, Value


class Passage(IntEnum):
    """How an operation passes on what one operand holds."""

    SAME = 0
    PART = 1
    PICK = 2
    PAD = 3
    SCALE = 4
    GATE = 5
    SUM = 6
    CONCAT = 7
    ACTIVATION = 8
    NORM = 9
    POOL = 10
    WEIGHT = 11
    PRODUCT = 12
    ASIDE = 13


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPOUTS = _words("""dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout
    native_dropout""")
MAKERS = _words("""zeros ones empty full rand randn randint arange linspace logspace eye tensor as_tensor zeros_like
    ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full new_tensor
    zero fill normal uniform exponential random bernoulli multinomial poisson from_numpy""")
NOISES = _words("""rand randn randint rand_like randn_like randint_like bernoulli normal uniform exponential random
    multinomial poisson empty empty_like new_empty""")
VIEWS = _words("""view reshape flatten unflatten squeeze unsqueeze permute transpose t T mT H mH movedim moveaxis
    swapaxes swapdims contiguous clone detach data set_data to type type_as float half bfloat16 double cpu cuda expand
    expand_as broadcast_to view_as reshape_as ravel alias _to_copy _unsafe_view lift_fresh real view_as_real
    view_as_complex requires_grad repeat tile repeat_interleave pin_memory positive resolve_conj conj_physical conj
    as_strided atleast_1d atleast_2d atleast_3d adjoint nan_to_num masked_fill rename align_to deepcopy copy copy_to
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold im2col flip fliplr flipud rot90 roll
    sparse_mask to_dense to_sparse quantize_per_tensor dequantize rearrange _assert_async""")
_PARTS = _words("""getitem select narrow narrow_copy chunk unsafe_chunk split unsafe_split split_with_sizes tensor_split
    hsplit vsplit dsplit unbind index_select gather take take_along_dim diagonal diag tril triu masked_select slice
    index topk sort msort unique""")
_PADS = _words("pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
_SCALES = _words("mul div neg")
_SUMS = _words("add sub rsub index_add scatter_add scatter_reduce where lerp addcmul addcdiv maximum minimum logaddexp")
_WRITES = _words(
    "setitem index_put index_copy scatter masked_scatter slice_scatter select_scatter index_fill alias_write"
)
_CONCATS = _words("cat stack hstack vstack dstack column_stack row_stack block_diag")
_NORMS = _words("""batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize
    native_batch_norm native_layer_norm native_group_norm _native_batch_norm_legit cudnn_batch_norm
    _fused_rms_norm batch_norm_elemt renorm""")
REDUCTIONS = _words("""sum mean var std var_mean std_mean amax amin max min aminmax prod norm vector_norm logsumexp
    median nanmedian nanmean nansum mode quantile count_nonzero linalg_norm linalg_vector_norm frobenius_norm
    cumsum cumprod cummax cummin logcumsumexp""")
RESAMPLERS = _words("""avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices lp_pool1d lp_pool2d lp_pool3d fractional_max_pool2d
    fractional_max_pool3d fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
    max_unpool1d max_unpool2d max_unpool3d _adaptive_avg_pool2d""")
UPSAMPLERS = _words("""interpolate upsample upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_bilinear2d upsample_bicubic2d grid_sample affine_grid""")
_MIXERS = _words("""fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2
    fft_rfftn fft_irfftn fft_hfft fft_fftshift fft_ifftshift stft istft fold col2im""")
CONVOLUTIONS = _words("""conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    deform_conv2d conv_tbc _convolution mkldnn_convolution""")
_RECURRENT = _words("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
_LINEAR = _words("linear bilinear embedding embedding_bag")
_MATMULS = _words("""matmul mm bmm einsum mv dot vdot _grouped_mm grouped_mm _scaled_mm inner outer tensordot kron
    chain_matmul multi_dot ger""")
_AFFINE_MATMULS = _words("addmm addmv addbmm baddbmm addr")
_ATTENTIONS = _words("scaled_dot_product_attention multi_head_attention_forward _native_multi_head_attention")
SATURATING = _words(
    "sigmoid softmax hardsigmoid log_softmax gumbel_softmax softmin hardtanh relu6 logsigmoid sparsemax"
)
# With these names a call of one operand of the same shape is known to act on each element alone.
ACTIVATIONS = SATURATING | _words("""
    relu leaky_relu rrelu prelu elu selu celu gelu silu mish hardswish softplus softsign tanh tanhshrink
    softshrink hardshrink threshold glu exp expm1 log log1p log2 log10 sqrt rsqrt square pow rpow rdiv
    reciprocal abs sign sin cos tan sinh cosh asin acos atan atan2 erf erfc erfinv floor ceil round trunc frac
    clamp clip clamp_min clamp_max sinc xlogy logit special_expit polar angle fmod remainder imag complex
    float_power""")


def weight_layers(operation: Operation, trace: Trace) -> int:
    """How many weight layers an operation is: linear maps with parameters that its content passes one after another."""
    if operation.name in ("multi_head_attention_forward", "_native_multi_head_attention"):
        return 2
    if operation.name == "opaque":
        return int(any(trace.values[index].origin == "parameter" for index in operation.operands))
    return int(Passage.WEIGHT in passages(operation, trace))


def has_parameters(operation: Operation, trace: Trace) -> bool:
    """Whether any parameter, or anything computed from parameters alone, enters the operation."""
    return any(trace.values[index].live and not trace.values[index].fed for index in operation.operands)


def passages(operation: Operation, trace: Trace) -> tuple[Passage, ...]:
    """How the operation passes on each of its operands, in the order of `operation.operands`."""
    values = [trace.values[index] for index in operation.operands]
    name = operation.name
    if name in _LINEAR or name in CONVOLUTIONS or name in _RECURRENT:
        return _linear(operation, values, trace)
    if name in _MATMULS or name in _AFFINE_MATMULS or name == "rmatmul":
        return _matmul(operation, values, trace)
    if name in _ATTENTIONS or name == "opaque":
        return tuple(_active(value, Passage.PRODUCT) for value in values)
    if name in _SCALES:
        return _multiplied(values)
    if name in ("max", "min") and len(values) == 2:
        return _joined(operation, values)
    if name in _SUMS or name in _WRITES or name in _CONCATS:
        return _joined(operation, values)
    if name == "alias":
        return (Passage.SAME,) if len(values) == 1 else (Passage.SAME, Passage.CONCAT)
    if name in ("copy", "set_data"):
        return tuple(
            Passage.ASIDE if position == 0 and len(values) > 1 else Passage.SAME for position in range(len(values))
        )
    if name == "grid_sample":
        # Where to look is computed, as the weights of an attention are.
        return tuple(
            _active(value, Passage.PRODUCT if position else Passage.POOL) for position, value in enumerate(values)
        )
    only = _of_first(name, operation, trace)
    return tuple(
        (only if value.live else Passage.ASIDE) if position == 0 else _active(value, _of_other(only))
        for position, value in enumerate(values)
    )


def _active(value: Value, passage: Passage) -> Passage:
    return passage if value.live and value.origin != "parameter" else Passage.ASIDE


def _of_other(first: Passage) -> Passage:
    return first if first in (Passage.PRODUCT, Passage.ACTIVATION) else Passage.ASIDE


def _of_first(name: str, operation: Operation, trace: Trace) -> Passage:
    operands = [trace.values[index] for index in operation.operands]
    if name in VIEWS or name in DROPOUTS:
        return Passage.SAME
    if name in _PARTS:
        if len(operation.results) == 1 and trace.values[operation.results[0]].shape == operands[0].shape:
            return Passage.SAME
        return Passage.PICK if _picks(operation) else Passage.PART
    if name in _PADS:
        return Passage.PAD
    if name in _NORMS:
        return Passage.NORM
    if name in REDUCTIONS or name in RESAMPLERS or name in UPSAMPLERS or name in _MIXERS:
        return Passage.SUM if _sums_a_stack(operation, trace) else Passage.POOL
    if name in ACTIVATIONS:
        return Passage.ACTIVATION
    if _weights_among([value for value in operands if value.live and len(value.shape) > 1], trace):
        return Passage.WEIGHT
    shapes = [trace.values[index].shape for index in (*operation.operands[:1], *operation.results)]
    signals = [value for value in operands if value.live]
    # An unknown function of one tensor that keeps its shape is taken for an activation, anything else for work.
    return Passage.ACTIVATION if len(signals) == 1 and len(set(shapes)) == 1 else Passage.PRODUCT


def _picks(operation: Operation) -> bool:
    index = operation.argument("index")
    whole = index if isinstance(index, tuple) else (index,)
    return operation.name in ("select", "unbind") or any(type(part) is int for part in whole)


def _sums_a_stack(operation: Operation, trace: Trace) -> bool:
    """Whether this is `stack(list, dim).sum(dim)` (or the mean): a sum of the list's tensors."""
    if operation.name not in ("sum", "mean") or not operation.operands:
        return False
    made = trace.operation_of(operation.operands[0])
    if made is None or made.name != "stack":
        return False
    n = len(trace.values[operation.operands[0]].shape)
    dim = operation.argument("dim")
    dims = dim if isinstance(dim, tuple) else (dim,)
    stacked = made.argument("dim", 0)
    return len(dims) == 1 and isinstance(dims[0], int) and dims[0] % n == stacked % n


def _linear(operation: Operation, values: list[Value], trace: Trace) -> tuple[Passage, ...]:
    weight = operation.value("weight")
    signals = sum(value.signal for value in values)
    by_signal = weight is not None and trace.values[weight].signal
    found = []
    for position, value in enumerate(values):
        if operation.name in ("embedding", "embedding_bag"):
            # What is looked up is the table; the indices carry nothing.
            found.append(Passage.PRODUCT if value.signal else Passage.ASIDE)
        elif not value.live or (value.origin == "parameter" and position):
            found.append(Passage.ASIDE)
        elif position == 0:
            found.append(Passage.PRODUCT if by_signal else Passage.WEIGHT)
        else:
            found.append(Passage.PRODUCT if value.signal and signals > 1 else Passage.ASIDE)
    return tuple(found)


def _matmul(operation: Operation, values: list[Value], trace: Trace) -> tuple[Passage, ...]:
    added = operation.name in _AFFINE_MATMULS
    factors = [value for value in values[added:] if value.live]
    weights = _weights_among(factors, trace)
    outer = operation.name == "einsum" and not _contracts(operation)
    found = []
    for position, value in enumerate(values):
        if not value.live or value.index in weights:
            found.append(Passage.ASIDE)
        elif added and position == 0:
            found.append(Passage.SUM)
        elif len(factors) == 1:
            # The other factor is a fixed table: a resampling, a Fourier basis, a selection.
            found.append(Passage.SCALE if outer else Passage.POOL)
        elif len(factors) - len(weights) == 1:
            found.append(Passage.SCALE if outer else Passage.WEIGHT)
        else:
            found.append(Passage.GATE if outer else Passage.PRODUCT)
    return tuple(found)


def _weights_among(factors: list[Value], trace: Trace) -> set[int]:
    """Which factors of a product are its weights: parameters, or those of them that the input picked (an expert's)."""
    plain = [value for value in factors if _plain_parameter(value, trace)]
    fixed = {value.index for value in plain if not value.fed}
    if len(fixed) == len(factors):
        return set(list(fixed)[1:]) if len(fixed) > 1 else set()
    return fixed or ({value.index for value in plain} if len(plain) < len(factors) else set())


def _contracts(operation: Operation) -> bool:
    equation = operation.args[0] if operation.args else ""
    if not isinstance(equation, str) or "->" not in equation:
        return True
    read, written = equation.replace(" ", "").split("->")
    return any(letter not in written for letter in read.replace(",", "").replace(".", ""))


def _plain_parameter(value: Value, trace: Trace) -> bool:
    """Whether a value is a parameter, or one that was only reshaped, scaled, normalised or merged with others."""
    while value.origin == "operation":
        made = trace.operation_of(value.index)
        assert made is not None
        if made.name in _LINEAR or made.name in CONVOLUTIONS or made.name in _ATTENTIONS:
            return False
        live = [trace.values[index] for index in made.operands if trace.values[index].live]
        if not live or (len(live) > 1 and any(other.signal for other in live)):
            return False
        value = live[0]
    return value.origin == "parameter"


def _multiplied(values: list[Value]) -> tuple[Passage, ...]:
    signals = sum(value.signal for value in values)
    streams = sum(value.live and value.origin != "parameter" for value in values)
    found = []
    for value in values:
        if not value.live or (signals and not value.signal) or (value.origin == "parameter" and streams):
            found.append(Passage.ASIDE)
        else:
            found.append(Passage.GATE if (signals or streams) > 1 else Passage.SCALE)
    return tuple(found)


def _joined(operation: Operation, values: list[Value]) -> tuple[Passage, ...]:
    if operation.name in _SUMS or operation.name in ("max", "min"):
        how = Passage.SUM
        aside = {0} if operation.name == "where" else set()
    else:
        how = Passage.CONCAT
        aside = set()
    # Zeros and other fixed tensors beside a signal are padding.
    alone = sum(value.live for value in values) == 1 and len(values) > 1
    if how == Passage.CONCAT and alone:
        how = Passage.PAD
    return tuple(Passage.ASIDE if not value.live or position in aside else how for position, value in enumerate(values))


def scaling(operation: Operation, trace: Trace) -> str:
    """By what a `mul`, `div` or `neg` multiplies its signal: "number", "fixed", "noise", "learned" or "signal"."""
    live = [trace.values[index] for index in operation.operands if trace.values[index].live]
    if sum(value.signal for value in live) > 1:
        return "signal"
    if len(live) > 1:
        return "learned"
    fixed = [trace.values[index] for index in operation.operands if not trace.values[index].live]
    if any(value.name == "noise" for value in fixed):
        return "noise"
    return "fixed" if fixed else "number"


def constant_factor(operation: Operation) -> float | None:
    """The number that a `mul` or `div` by a Python number multiplies with, or None."""
    if operation.name == "neg":
        return -1.0
    other: Any = operation.argument("other")
    if isinstance(other, Ref) and operation.args and not isinstance(operation.args[0], Ref):
        other = operation.args[0]
    if isinstance(other, (int, float)) and not isinstance(other, bool):
        return 1.0 / other if operation.name == "div" and other else float(other)
    return None
