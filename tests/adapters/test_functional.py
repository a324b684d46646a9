"""The weight change, the effective weight and the memory-saving product, against the slow twins."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

from reference.adapter_twins import naive_delta, naive_linear
from stable_forgetting.adapters import (
    BOUNDS,
    LowRankChange,
    bounded_linear,
    delta_weight,
    effective_weight,
    get_bound,
)
from stable_forgetting.adapters.functional import lora_linear, row_blocks
from stable_forgetting.errors import ConfigError

every_bound = pytest.mark.parametrize("bound", BOUNDS)


def make_case(*, tokens=(5,), num_in=7, num_out=6, rank=2, dtype=torch.float64, num_adapters=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    factors = [(draw(rank, num_in), draw(num_out, rank)) for _ in range(num_adapters)]
    return draw(*tokens, num_in), draw(num_out, num_in), draw(num_out), factors


def as_changes(factors, bounds, omega=1.5, scale=0.3):
    return [LowRankChange(a, b, get_bound(n), omega, scale) for (a, b), n in zip(factors, bounds, strict=True)]


def as_naive(factors, bounds, omega=1.5, scale=0.3):
    return [(a, b, name, omega, scale) for (a, b), name in zip(factors, bounds, strict=True)]


def gradients_of(output, leaves):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum(), leaves)


@every_bound
def test_delta_weight_agrees_with_the_formula_and_its_derivative(bound):
    _, _, _, [(a, b)] = make_case()
    fast = delta_weight(a, b, bound=get_bound(bound), omega=1.5, scale=0.3)
    slow = naive_delta(a, b, bound=bound, omega=1.5, scale=0.3)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients_of(fast, (a, b)), gradients_of(slow, (a, b)))


@every_bound
def test_small_omega_with_inverse_scale_is_plain_lora(bound):
    _, _, _, [(a, b)] = make_case()
    delta = delta_weight(a, b, bound=get_bound(bound), omega=1e-6, scale=1e6)
    torch.testing.assert_close(delta, b @ a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_delta_weight_of_low_precision_adapters_is_made_in_float32(dtype):
    _, _, _, [(a, b)] = make_case(dtype=dtype)
    delta = delta_weight(a, b, bound=get_bound("sine"), omega=20.0, scale=0.3)
    assert delta.dtype == torch.float32
    expected = naive_delta(a.float(), b.float(), bound="sine", omega=20.0, scale=0.3)
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)


def test_delta_weight_ignores_autocast():
    _, _, _, [(a, b)] = make_case(dtype=torch.float32)
    expected = delta_weight(a, b, bound=get_bound("sine"), omega=20.0, scale=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(delta_weight(a, b, bound=get_bound("sine"), omega=20.0, scale=0.3), expected)


@every_bound
@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck(bound, transposed):
    x, weight, bias, factors = make_case(tokens=(2, 3), num_in=4, num_out=3)
    weight = weight.detach().t().contiguous().requires_grad_() if transposed else weight

    def run(x, weight, bias, a, b):
        changes = as_changes([(a, b)], [bound])
        return bounded_linear(x, weight, bias, changes, transposed=transposed, max_block_bytes=200)

    assert torch.autograd.gradcheck(run, (x, weight, bias, *factors[0]))


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    num_in=st.integers(1, 9),
    num_out=st.integers(1, 9),
    rank=st.integers(1, 4),
    bounds=st.lists(st.sampled_from(sorted(BOUNDS)), min_size=1, max_size=3),
    has_bias=st.booleans(),
    transposed=st.booleans(),
    max_block_bytes=st.sampled_from([1, 100, 700, 2**20]),
    seed=st.integers(0, 2**16),
)
def test_product_and_gradients_agree_with_the_slow_twin(
    tokens, num_in, num_out, rank, bounds, has_bias, transposed, max_block_bytes, seed
):
    x, weight, bias, factors = make_case(
        tokens=tokens, num_in=num_in, num_out=num_out, rank=rank, num_adapters=len(bounds), seed=seed
    )
    weight = weight.detach().t().contiguous().requires_grad_() if transposed else weight
    bias = bias if has_bias else None
    leaves = [x, weight, *([bias] if has_bias else []), *(f for pair in factors for f in pair)]
    fast = bounded_linear(
        x, weight, bias, as_changes(factors, bounds), transposed=transposed, max_block_bytes=max_block_bytes
    )
    slow = naive_linear(x, weight, bias, as_naive(factors, bounds), transposed=transposed)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients_of(fast, leaves), gradients_of(slow, leaves))


@pytest.mark.parametrize("tokens", [(0,), (2, 0)])
def test_an_empty_input_has_an_empty_output_and_gradients_of_zero(tokens):
    x, weight, bias, factors = make_case(tokens=tokens)
    output = bounded_linear(x, weight, bias, as_changes(factors, ["sine"]))
    assert output.shape == (*tokens, 6)
    leaves = [x, weight, bias, *factors[0]]
    for leaf, gradient in zip(leaves, gradients_of(output, leaves), strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


@pytest.mark.parametrize("needs", ["x", "factors", "a only", "nothing but the bias"])
def test_only_what_is_asked_for_gets_a_gradient(needs):
    x, weight, bias, factors = make_case(num_adapters=2)
    (a, b), (a2, b2) = factors
    leaves = {"x": [x], "factors": [a, b, a2, b2], "a only": [a], "nothing but the bias": [bias]}[needs]
    for tensor in (x, weight, bias, a, b, a2, b2):
        tensor.requires_grad_(any(tensor is leaf for leaf in leaves))
    bounds = ["sine", "tanh"]
    fast = bounded_linear(x, weight, bias, as_changes(factors, bounds))
    slow = naive_linear(x, weight, bias, as_naive(factors, bounds))
    torch.testing.assert_close(gradients_of(fast, leaves), gradients_of(slow, leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_block_bytes", [2000, 2**20])
def test_low_precision_is_as_close_to_float64_as_the_slow_twin(dtype, max_block_bytes):
    x, weight, _, factors = make_case(tokens=(16,), num_in=32, num_out=24, dtype=torch.float64)
    exact_leaves = [x, *factors[0]]
    exact = naive_linear(x, weight, None, as_naive(factors, ["sine"]))
    expected = gradients_of(exact, exact_leaves)

    low_x, low_weight = x.detach().to(dtype).requires_grad_(), weight.detach().to(dtype)
    adapters = [tuple(f.detach().float().requires_grad_() for f in factors[0])]
    output = bounded_linear(low_x, low_weight, None, as_changes(adapters, ["sine"]), max_block_bytes=max_block_bytes)
    actual = gradients_of(output, [low_x, *adapters[0]])
    assert output.dtype == actual[0].dtype == dtype
    assert actual[1].dtype == actual[2].dtype == torch.float32
    tolerance = 20 * torch.finfo(dtype).eps
    for got, want in zip([output, *actual], [exact, *expected], strict=True):
        assert (got.double() - want).norm() <= tolerance * want.norm()


def test_sums_over_many_blocks_are_not_made_in_low_precision():
    x, weight, _, factors = make_case(tokens=(4,), num_in=8, num_out=512, dtype=torch.bfloat16)
    exact_x = x.detach().double().requires_grad_()
    exact_factors = [(a.detach().double(), b.detach().double()) for a, b in factors]
    exact = naive_linear(exact_x, weight.detach().double(), None, as_naive(exact_factors, ["sine"]))
    (expected,) = torch.autograd.grad(exact.sum(), exact_x)
    output = bounded_linear(x, weight.detach(), None, as_changes(factors, ["sine"]), max_block_bytes=1)
    (actual,) = torch.autograd.grad(output.sum(), x)
    assert (actual.double() - expected).norm() <= torch.finfo(torch.bfloat16).eps * expected.norm()


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_like_linear_and_gives_gradients_in_the_adapters_type(adapter_dtype):
    x, weight, bias, _ = make_case(tokens=(2, 8), num_in=16, num_out=12, dtype=torch.float32)
    adapter = [torch.randn(2, 16, dtype=adapter_dtype).requires_grad_(), torch.zeros(12, 2, dtype=adapter_dtype)]
    adapter[1].requires_grad_()
    weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        output = bounded_linear(x, weight, bias, as_changes([adapter], ["sine"]))
        base = torch.nn.functional.linear(x, weight, bias)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, base)
    grad_x, grad_bias, grad_b = gradients_of(output, [x, bias, adapter[1]])
    assert grad_x.dtype == grad_bias.dtype == torch.float32
    assert grad_b.dtype == adapter_dtype
    assert grad_b.abs().max() > 0


def test_mixed_types_are_refused_as_by_linear():
    x, weight, _, factors = make_case(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="dtype"):
        bounded_linear(x.double(), weight, None, as_changes(factors, ["sine"]))


def test_fresh_change_gives_the_base_output_bit_for_bit():
    for transposed in (False, True):
        layer = Conv1D(24, 40) if transposed else torch.nn.Linear(40, 24)
        x = torch.randn(3, 11, 40)
        changes = [LowRankChange(torch.randn(4, 40), torch.zeros(24, 4), get_bound("sine"), 100.0, 0.1)]
        assert torch.equal(bounded_linear(x, layer.weight, layer.bias, changes, transposed=transposed), layer(x))


def test_block_size_changes_gradients_by_rounding_only():
    x, weight, bias, factors = make_case(tokens=(32,), num_in=64, num_out=48, dtype=torch.float32)
    leaves = [x, weight, *factors[0]]
    results = []
    for max_block_bytes in (1, 10_000, 2**25):
        output = bounded_linear(x, weight, bias, as_changes(factors, ["sine"]), max_block_bytes=max_block_bytes)
        results.append(gradients_of(output, leaves))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-4)


def test_layers_that_read_the_same_input_add_their_gradients():
    x, weight, _, factors = make_case(num_adapters=2)
    fast = sum(bounded_linear(x, weight, None, as_changes([pair], ["sine"])) for pair in factors)
    slow = sum(naive_linear(x, weight, None, as_naive([pair], ["sine"])) for pair in factors)
    torch.testing.assert_close(gradients_of(fast, [x]), gradients_of(slow, [x]))


def test_second_derivative_is_refused():
    x, weight, _, factors = make_case()
    (grad_x,) = torch.autograd.grad(
        bounded_linear(x, weight, None, as_changes(factors, ["sine"])).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_x.sum().backward()


def saved_bytes(call):
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(saved.values())


def test_nothing_dense_is_kept_between_the_passes():
    x, weight, bias, factors = make_case(tokens=(10,), num_in=50, num_out=70, dtype=torch.float32)
    weight.requires_grad_(False)
    needed = [x, weight, *factors[0]]
    kept = saved_bytes(lambda: bounded_linear(x, weight, bias, as_changes(factors, ["sine"])))
    assert kept == sum(tensor.numel() * 4 for tensor in needed)
    for factor in factors[0]:
        factor.requires_grad_(False)
    without_x = saved_bytes(lambda: bounded_linear(x, weight, bias, as_changes(factors, ["sine"])))
    assert without_x == kept - x.numel() * 4


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(use_reentrant):
    x, weight, bias, factors = make_case()
    leaves = [x, *factors[0]]

    def run(x):
        return bounded_linear(x, weight, bias, as_changes(factors, ["sine"]))

    checkpointed = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=use_reentrant)
    (checkpointed * torch.linspace(-1, 1, checkpointed.numel()).view_as(checkpointed)).sum().backward()
    expected = gradients_of(run(x), leaves)
    torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # raised inside the compiler
def test_compiled_code_gives_the_same_result():
    x, weight, bias, factors = make_case(dtype=torch.float32)

    def run(x):
        return bounded_linear(x, weight, bias, as_changes(factors, ["sine"])) * 2

    compiled = torch.compile(run, backend="eager")
    torch.testing.assert_close(compiled(x), run(x))
    torch.testing.assert_close(gradients_of(compiled(x), [x, *factors[0]]), gradients_of(run(x), [x, *factors[0]]))


@pytest.mark.parametrize("transposed", [False, True])
def test_effective_weight_is_a_new_sum_and_leaves_the_base_alone(transposed):
    _, weight, _, factors = make_case(num_adapters=2)
    weight = weight.detach().t().contiguous() if transposed else weight.detach()
    before = weight.clone()
    result = effective_weight(weight, as_changes(factors, ["sine", "clip"]), transposed=transposed)
    deltas = [
        naive_delta(a, b, bound=n, omega=1.5, scale=0.3) for (a, b), n in zip(factors, ["sine", "clip"], strict=True)
    ]
    total = (deltas[0] + deltas[1]).detach()
    torch.testing.assert_close(result, before + (total.t() if transposed else total))
    assert torch.equal(weight, before)


def test_short_cut_of_the_identity_bound_agrees_with_the_product():
    x, weight, bias, factors = make_case()
    change = as_changes(factors, ["identity"])[0]
    short = lora_linear(torch.nn.functional.linear(x, weight, bias), x, change)
    full = bounded_linear(x, weight, bias, [change])
    torch.testing.assert_close(short, full)
    leaves = [x, *factors[0]]
    torch.testing.assert_close(gradients_of(short, leaves), gradients_of(full, leaves))


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 100))
def test_row_blocks_cover_every_row_once_within_the_limit(num_rows, bytes_per_row, most):
    blocks = list(row_blocks(num_rows, bytes_per_row, most))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(num_rows))
    assert all((b.stop - b.start) * bytes_per_row <= max(most, bytes_per_row) for b in blocks)
    assert all(b.stop - b.start <= blocks[0].stop for b in blocks)


def test_wrong_arguments_are_refused():
    x, weight, _, factors = make_case()
    with pytest.raises(ConfigError, match="No change was given"):
        bounded_linear(x, weight, None, [])
    with pytest.raises(ConfigError, match="max_block_bytes is 0"):
        bounded_linear(x, weight, None, as_changes(factors, ["sine"]), max_block_bytes=0)


def test_change_is_a_record_that_can_be_copied():
    _, _, _, factors = make_case()
    [change] = as_changes([tuple(f.detach() for f in factors[0])], ["sine"])
    assert torch.equal(copy.deepcopy(change).delta(), change.delta())
