"""Compilers around the adapted layer and of its kernels."""

import importlib.util
import shutil

import pytest
import torch
from peft import get_peft_model

from stable_forgetting.adapters import BOUNDS, BoundedLoraConfig, kernels


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # raised inside the compiler
def test_a_model_compiled_by_inductor_gives_the_same_output_and_gradients():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.GELU(), torch.nn.Linear(16, 5))
    model = get_peft_model(model, BoundedLoraConfig(r=2, omega=30.0, target_modules=["0", "2"]))
    for name, parameter in model.named_parameters():
        if "bounded_lora_B" in name:
            torch.nn.init.normal_(parameter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = torch.randn(7, 12)
    expected = model(x)
    output = torch.compile(model, backend="inductor")(x)
    torch.testing.assert_close(output, expected)
    gradients = [torch.autograd.grad(y.square().sum(), trained) for y in (output, expected)]
    torch.testing.assert_close(*gradients)


def compile_for_hopper(kernel, tensors, constants):
    """Machine code for an H100, made without one by the compilers that Triton brings along."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: tensors.get(name, "i32") for name in kernel.arg_names}
    kinds |= dict.fromkeys(("omega", "scale"), "fp32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, kinds, constexprs=constants)
    options = {name: value for name, value in kernels._OPTIONS.items() if name.islower()}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("dtype", "rank"), [("bf16", 8), ("fp16", 33), ("fp32", 64)])
@pytest.mark.parametrize("bound", BOUNDS)
def test_the_kernels_compile_for_hopper(bound, dtype, rank):
    from stable_forgetting.adapters import kernels_triton

    tile = {"ROWS": kernels.TILE_ROWS, "COLUMNS": kernels.TILE_COLUMNS}
    constants = {"BOUND": bound, "STEPS": -(-rank // 16), "a_column": 1, "b_column": 1, "base_column": 1, **tile}
    dense = dict.fromkeys(("base", "out", "grad"), f"*{dtype}")
    factors = dict.fromkeys(("a", "b", "part_a", "part_b"), "*fp32")
    forward = compile_for_hopper(kernels_triton.effective_kernel, dense | factors, constants | {"out_column": 1})
    portion = {"RANKS": 16 if rank <= 16 else kernels.MOST_RANKS, "WRITE_OUT": True}
    backward = compile_for_hopper(kernels_triton.backward_kernel, dense | factors, constants | portion)
    for code in (forward, backward):
        assert code.asm["cubin"]
        assert code.metadata.shared <= 96 * 1024  # what every card from Ampere on has
    assert ("wgmma" in backward.asm["ptx"]) or ("mma.sync" in backward.asm["ptx"])
    assert "sin.approx" not in forward.asm["ptx"] + backward.asm["ptx"]
