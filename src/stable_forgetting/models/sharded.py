"""Models of which every process holds a share: FSDP2, by decoder block, divided while the weights are read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from stable_forgetting import processes


def sharding_options() -> dict[str, Any]:
    """What `from_pretrained` has to be told besides, if the processes are to share the weights."""
    if not processes.shards_models():
        return {}
    return {"distributed_config": DistributedConfig(fsdp_size=processes.num_processes())}


def prepare_shares(model: nn.Module) -> None:
    """Make a model that was just divided fit for evaluation, and for an adapter after that; in place.

    The weights are frozen now, because after a pass PEFT may find, and freeze, gathered weights instead of the shares.
    And the places for gathered weights are made now: if the first pass is an evaluation, they would be made in
    inference mode, and training could not use them.

    Args:
        model: A model that `from_pretrained` divided. All processes call this together.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def whole_tensor(value: Tensor) -> Tensor:
    """A weight in full; one that is shared is gathered, by all processes together."""
    return value.full_tensor() if isinstance(value, DTensor) else value
