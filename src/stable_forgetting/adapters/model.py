"""The bounded adapter as a PEFT method: attaching it to a model, and its place in PEFT's tables."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from stable_forgetting.adapters.bounds import get_bound
from stable_forgetting.adapters.config import PEFT_TYPE, BoundedLoraConfig
from stable_forgetting.adapters.families import (
    TARGET_GROUPS,
    block_number,
    closest_layers,
    describe_layers,
    group_target_modules,
    list_linear_layers,
)
from stable_forgetting.adapters.layer import (
    BoundedLoraLinear,
    LayerSettings,
    layer_shape,
    seeded_generator,
)
from stable_forgetting.adapters.layer_checks import (
    check_called,
    check_layer,
    check_mergeable,
    check_not_shared,
    weight_places,
)
from stable_forgetting.errors import ModelError

_COMPILED_PREFIX = "_orig_mod."


class BoundedLoraModel(BaseTuner):  # type: ignore[misc]
    """PEFT tuner that attaches bounded adapters; made by ``get_peft_model(model, BoundedLoraConfig(...))``.

    The model keeps a copy of every config, in ``peft_config``, and completes that copy: target modules that were not
    given become the MLP layers of the model's family, and ``resolved_scales`` gets the scale of every layer. The
    caller's config stays as it is and can be used for another model.
    """

    prefix = "bounded_lora_"
    tuner_layer_cls = BoundedLoraLinear
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Attach an adapter to every target layer; on an error the model stays as it was.

        Args:
            model: The model.
            adapter_name: Name of the adapter, a key of ``peft_config``.
            autocast_adapter_dtype: Whether adapters of a bfloat16 or float16 model are kept in float32.
            low_cpu_mem_usage: Whether the adapter's weights come later, from a file.
            state_dict: Weights whose names choose the layers instead of ``target_modules``.

        Raises:
            ModelError: If a target matches no layer, or a layer that cannot be adapted.
        """
        config = copy.deepcopy(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        if state_dict is None and config.target_modules != DUMMY_TARGET_MODULES:
            _resolve_group(config, model)
            _maybe_include_all_linear_layers(config, model)  # named here, so that they are checked like all others
            _check_names(config, model)
            self._resolve_blocks(config, model)
            self._check_targets(config, model)
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )

    def _resolve_blocks(self, config: BoundedLoraConfig, model: nn.Module) -> None:
        """Replace the targets by the names of those in the chosen blocks.

        PEFT would count blocks by another rule, which finds none in a model whose list of blocks is outermost, and
        would not count them at all for a regular expression.
        """
        blocks, pattern = config.layers_to_transform, config.layers_pattern or r"[^.]+"
        if blocks is None:
            return
        wanted = {blocks} if isinstance(blocks, int) else set(blocks)
        rule = pattern if isinstance(pattern, str) else "|".join(pattern)
        _check_blocks(wanted, rule, model)
        config.layers_to_transform = config.layers_pattern = None
        targets = {name for name, _ in _layers_of(model) if self._check_target_module_exists(config, name)}
        names = {name for name in targets if block_number(name, rule) in wanted}
        if not names:
            raise ModelError(
                f"No target layer is in the blocks {sorted(wanted)}, only: {describe_layers(targets)}. Choose other "
                "blocks or other target_modules."
            )
        config.target_modules = names

    def _check_targets(self, config: BoundedLoraConfig, model: nn.Module) -> None:
        matched = {name: module for name, module in _layers_of(model) if self._check_target_module_exists(config, name)}
        if not matched:
            raise ModelError(
                f"No layer is left to adapt: target_modules={_as_text(config.target_modules)}, exclude_modules="
                f"{_as_text(config.exclude_modules)}. Linear layers: {describe_layers(list_linear_layers(model))}."
            )
        places = weight_places(model)
        for name, module in matched.items():
            if not isinstance(module, BoundedLoraLinear):
                check_layer(name, module)
                check_not_shared(name, module, places)
                check_called(name, model)
        _resolve_scales(config, matched)

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refused: what LoRA's tuner makes of several adapters would have no bound of its own.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "A weighted sum of bounded changes is not one bounded change of their rank. Activate several adapters "
            "together with base_model.set_adapter([...]): their changes add up."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, adapter_names: Any = None, **__: Any) -> Iterator[None]:
        """PEFT calls it around each pass. It would drop `adapter_names`, so that all rows had the active adapter."""
        if adapter_names is not None:
            raise ModelError(
                "adapter_names is given, but bounded adapters cannot be mixed within a batch. Call set_adapter(NAME) "
                "and give the rows of each adapter on their own."
            )
        yield

    def _check_merge_allowed(self) -> None:
        """Before the first layer is merged, so that a model with some quantised layers is not merged by half."""
        super()._check_merge_allowed()
        for name, module in self.model.named_modules():
            if isinstance(module, BoundedLoraLinear):
                check_mergeable(name, module.base_layer)

    def _prepare_adapter_config(self, peft_config: BoundedLoraConfig, model_config: Any) -> BoundedLoraConfig:
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BoundedLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if not isinstance(target, BoundedLoraLinear):
            check_layer(current_key, target)
        name = current_key.removeprefix(_COMPILED_PREFIX)
        scale = peft_config.resolved_scales.setdefault(name, peft_config.scale_for(_in_features(target)))
        settings = LayerSettings(peft_config.r, get_bound(peft_config.bound), float(peft_config.omega), scale)
        seed = peft_config.init_seed
        generator = None if seed is None else seeded_generator(seed, name)
        if isinstance(target, BoundedLoraLinear):
            target.add_bounded_adapter(adapter_name, settings, generator=generator)
            return
        layer: Any = BoundedLoraLinear(target)
        layer.add_bounded_adapter(adapter_name, settings, generator=generator)
        layer.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def register() -> None:
    """Enter the method in PEFT's tables; a second call changes nothing."""
    PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BoundedLoraConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BoundedLoraModel
    PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = BoundedLoraModel.prefix


def _resolve_group(config: BoundedLoraConfig, model: nn.Module) -> None:
    """Replace the name of a group of layers by theirs; no targets are the MLP."""
    group = "mlp" if config.target_modules is None else config.target_modules
    if isinstance(group, str) and group in TARGET_GROUPS:
        config.target_modules = set(group_target_modules(model, group))


def _check_names(config: BoundedLoraConfig, model: nn.Module) -> None:
    if isinstance(config.target_modules, set):
        missing = [target for target in sorted(config.target_modules) if not _matches_any(target, model)]
        if missing:
            raise ModelError(_no_match_message(missing, list_linear_layers(model)))


def _check_blocks(wanted: set[int], rule: str, model: nn.Module) -> None:
    """Refuse the number of a block that the model does not have."""
    numbers = {number for name, _ in _layers_of(model) if (number := block_number(name, rule)) is not None}
    missing = sorted(wanted - numbers)
    if missing:
        known = f"has {len(numbers)} blocks, {min(numbers)} to {max(numbers)}" if numbers else "has no numbered blocks"
        raise ModelError(f"There is no block {', '.join(map(str, missing))}: the model {known}. Choose other blocks.")


def _resolve_scales(config: BoundedLoraConfig, layers: dict[str, nn.Module]) -> None:
    """Write down the scale of every layer, unless that was done when the adapter was made."""
    names = {name.removeprefix(_COMPILED_PREFIX): layer for name, layer in layers.items()}
    unknown = [name for name in names if name not in config.resolved_scales]
    if config.resolved_scales and unknown:
        raise ModelError(
            f"The adapter was made for a model with other layers: no scale is saved for {describe_layers(unknown)}, "
            f"only for {describe_layers(config.resolved_scales)}. Load it on the model it was made for; for a new "
            "adapter leave resolved_scales out."
        )
    for name in unknown:
        config.resolved_scales[name] = config.scale_for(_in_features(names[name]))


def _in_features(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, BoundedLoraLinear) else layer_shape(layer)[1]


def _layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules by name, except what lies inside an adapted layer."""
    modules = list(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules if isinstance(module, BoundedLoraLinear))
    return [(name, module) for name, module in modules if name and not (inside and name.startswith(inside))]


def _matches_any(target: str, model: nn.Module) -> bool:
    return any(name == target or name.endswith(f".{target}") for name, _ in _layers_of(model))


def _no_match_message(missing: list[str], layers: list[str]) -> str:
    closest = list(dict.fromkeys(name for target in missing for name in closest_layers(target, layers)))
    if closest:
        hint = f"Linear layers whose names come closest: {', '.join(repr(name) for name in closest)}."
    else:
        hint = f"Linear layers: {describe_layers(layers)}."
    return f"No layer matches {missing}. {hint}"


def _as_text(value: Any) -> str:
    return str(sorted(value)) if isinstance(value, set) else repr(value)
