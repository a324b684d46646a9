"""Base weights that are not plain tensors: the 4-bit and 8-bit layers of bitsandbytes, read some rows at a time.

bitsandbytes is imported only where a layer of it is met; the adapters work without it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from stable_forgetting.errors import ModelError

Quantization = Literal["4bit", "8bit"]


class WeightRows(Protocol):
    """What the passes read a base weight from: its shape, out × in, and any block of its rows.

    A tensor is one, and gives views; a quantised weight makes the rows when they are asked for.
    """

    @property
    def shape(self) -> torch.Size:
        """Out × in."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """The rows as a dense matrix, rows × in."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantised weight between the passes.

    Attributes:
        stored: The codes, which the layer holds anyway: nothing else is kept for the backward pass.
        read: Makes them readable by rows, in float32, for the length of a pass.
        dtype: Type of the product, to which the input must be cast.
    """

    stored: Tensor
    read: Callable[[Tensor], WeightRows]
    dtype: torch.dtype


@dataclass(frozen=True)
class FourBitRows:
    """Rows of an NF4 or FP4 weight.

    A block of entries that share a scale may begin and end inside a row. The rows are then dequantised from the last
    row that begins together with a block, at most ``blocksize - 1`` rows earlier, none if the width is a multiple of
    the blocksize. bitsandbytes is asked for whole blocks: its rows are wrong on some processors, see
    `reads_rows_right`.

    Attributes:
        codes: Two codes a byte, row after row, flat.
        scales: Scale of each block, float32.
        shape: Out × in.
        blocksize: Entries that share a scale.
        quant_type: ``"nf4"`` or ``"fp4"``.
    """

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    blocksize: int
    quant_type: str

    def __getitem__(self, rows: slice, /) -> Tensor:
        """The rows in float32."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        num_rows, width = self.shape
        start, stop, _ = rows.indices(num_rows)
        aligned = start - start % (self.blocksize // math.gcd(self.blocksize, width))
        first, last = aligned * width, stop * width
        scales = self.scales[first // self.blocksize : -(-last // self.blocksize)]
        state = QuantState(
            absmax=scales,
            shape=torch.Size((len(scales), self.blocksize)),
            dtype=torch.float32,
            blocksize=self.blocksize,
            quant_type=self.quant_type,
        )
        codes = self.codes[first // 2 : (first + len(scales) * self.blocksize) // 2]
        codes = nn.functional.pad(codes, (0, len(scales) * self.blocksize // 2 - len(codes)))  # of the last block
        dense: Tensor = dequantize_4bit(codes, state)
        return dense.flatten()[: last - first].reshape(stop - aligned, width)[start - aligned :]


@dataclass(frozen=True)
class EightBitRows:
    """Rows of an LLM.int8 weight: code * scale of the row / 127.

    Attributes:
        codes: Out × in, int8.
        scales: Largest absolute entry of each row, float32.
    """

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """Out × in."""
        return self.codes.shape

    def __getitem__(self, rows: slice, /) -> Tensor:
        """The rows in float32."""
        return self.codes[rows] * self.scales[rows, None].mul(1 / 127)


def quantization_of(layer: nn.Module) -> Quantization | None:
    """How bitsandbytes holds the weight of a layer; None if the layer is none of bitsandbytes.

    Args:
        layer: Any module.
    """
    bnb: Any = sys.modules.get("bitsandbytes")  # before it is imported there can be no layer of it
    if bnb is None:
        return None
    if isinstance(layer, bnb.nn.Linear4bit):
        return "4bit"
    return "8bit" if isinstance(layer, bnb.nn.Linear8bitLt) else None


def check_quantized(name: str, layer: Any) -> None:
    """Refuse a layer of bitsandbytes that holds no codes that can be read.

    Args:
        name: Name of the layer, for the message.
        layer: A layer of bitsandbytes.

    Raises:
        ModelError: If it is not quantised yet, quantises anew in every pass, was repacked for inference, or is computed
            wrongly by bitsandbytes on this processor.
    """
    if quantization_of(layer) == "8bit":
        if layer.state.has_fp16_weights:
            raise ModelError(
                f"Layer '{name}' keeps a float weight and quantises it in every pass (has_fp16_weights=True). Load the "
                "model with BitsAndBytesConfig(load_in_8bit=True), which keeps 8-bit weights."
            )
        is_quantized = layer.weight.dtype == torch.int8 and _eight_bit_scales(layer) is not None
    else:
        is_quantized = _four_bit_state(layer) is not None
        if getattr(_four_bit_state(layer), "packing_format_for_cpu", False):
            raise ModelError(
                f"Layer '{name}' was repacked by bitsandbytes for inference on the CPU, with rounded scales. Load the "
                "model again and attach the adapter before its first forward pass."
            )
        state = _four_bit_state(layer)
        if is_quantized and layer.weight.device.type == "cpu" and not reads_rows_right(state.shape[1], state.blocksize):
            raise ModelError(
                f"Layer '{name}' has rows of {state.shape[1]} weights, which are no whole blocks of {state.blocksize}: "
                "bitsandbytes computes such layers wrongly on this processor (AVX-512). Load the model without "
                "quantisation, or use a GPU."
            )
    if not is_quantized:
        raise ModelError(
            f"Layer '{name}' is a {type(layer).__name__} that is not quantised yet (weights of type "
            f"{layer.weight.dtype}). Move the model to its device first, which quantises it."
        )


@cache
def reads_rows_right(width: int, blocksize: int) -> bool:
    """Whether bitsandbytes makes the right rows of a 4-bit weight on the CPU, found out on a few.

    Its kernel for AVX-512 (0.50) takes wrong scales where rows of an even width are no whole blocks.

    Args:
        width: Entries of a row.
        blocksize: Entries that share a scale.
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit

    shape = torch.Size(
        (blocksize // math.gcd(blocksize, width), width)
    )  # then a row begins together with a block again
    codes = torch.arange(shape.numel() // 2).mul(37).remainder(256).to(torch.uint8)
    scales = torch.arange(1.0, 1 + shape.numel() // blocksize)
    state = QuantState(absmax=scales, shape=shape, dtype=torch.float32, blocksize=blocksize, quant_type="nf4")
    rows = FourBitRows(codes, scales, shape, blocksize, "nf4")[:]
    return torch.allclose(dequantize_4bit(codes, state).reshape(shape), rows, rtol=1e-5, atol=0)


def quantized_weight(layer: Any, input_dtype: torch.dtype) -> QuantizedWeight:
    """The weight of a layer of bitsandbytes, for `bounded_linear`.

    Args:
        layer: A layer that `check_quantized` accepts.
        input_dtype: Type of the layer's input.

    Returns:
        The weight. The product has the type in which the layer itself computes: of a 4-bit layer its compute type, else
        that of the input.
    """
    if quantization_of(layer) == "4bit":
        read: Callable[[Tensor], WeightRows] = partial(_read_four_bit, state=_four_bit_state(layer))
        return QuantizedWeight(layer.weight.data, read, layer.compute_dtype or input_dtype)
    return QuantizedWeight(layer.weight.data, partial(_read_eight_bit, scales=_eight_bit_scales(layer)), input_dtype)


def keep_quantized_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit layers for inference on CPUs with AVX512-BF16, in place.

    The repacking happens in the first forward pass without gradients and rounds the scales to bfloat16: the weights,
    their hash and every later result would depend on whether the model was evaluated before.

    Args:
        model: A model or a layer; others than 4-bit layers are left alone.
    """
    for module in model.modules():
        if quantization_of(module) == "4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _four_bit_state(layer: Any) -> Any:
    """Scales and shape; FSDP loses those of the parameter and leaves those of the layer."""
    return getattr(layer.weight, "quant_state", None) or layer.quant_state


def _eight_bit_scales(layer: Any) -> Any:
    """One scale per row; the first forward pass moves them from the parameter to the layer's state."""
    return layer.weight.SCB if layer.state.SCB is None else layer.state.SCB


def _read_four_bit(stored: Tensor, *, state: Any) -> FourBitRows:
    from bitsandbytes.functional import dequantize_blockwise

    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    codes = stored.reshape(-1).view(torch.uint8)
    return FourBitRows(codes, scales.float(), state.shape, state.blocksize, state.quant_type)


def _read_eight_bit(stored: Tensor, *, scales: Tensor) -> EightBitRows:
    return EightBitRows(stored, scales.to(stored.device))
