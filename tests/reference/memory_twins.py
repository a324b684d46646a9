"""Slow twins of the memory estimate: real tensors, counted as they come."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd saves in a real forward pass, each storage once, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []  # else a storage could come to lie where another one was

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def allocated_peak(action: Callable[[], object]) -> int:
    """Most bytes that the CPU allocator has given out at a time during a call, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda found: found.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def most_that_fit(total: Callable[[int], int], limit: int, last: int) -> int:
    """Largest n up to `last` with total(n) <= limit, by trying all of them."""
    return max((number for number in range(1, last + 1) if total(number) <= limit), default=0)
