"""`UnlearnTrainer`: transformers' Trainer with an objective over a forget, a retain and an unseen set.

The objective is given to it; it is never subclassed for one. Everything else (schedules, accumulation, mixed precision,
checkpoints, several devices) is transformers' and accelerate's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerControl, TrainingArguments

from stable_forgetting import processes
from stable_forgetting.data.pairs import (
    FORGET,
    RETAIN,
    UNSEEN,
    ForgetRetainBatches,
    PairCollator,
    PairedExamples,
    ShareOfBatches,
)
from stable_forgetting.errors import NotFiniteError
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.models.tasks import Batch, Task
from stable_forgetting.models.tree_attention import reading_trees
from stable_forgetting.objectives import UNSEEN_TERM, Objective, Term, term_value
from stable_forgetting.training.sets import ForgetConstants

COUNTS = tuple(f"{side} {kind}" for side in ("forget", "retain", "unseen") for kind in ("examples", "labels"))


@dataclass(frozen=True)
class Validation:
    """Metrics on validation data, for stop rules and the best checkpoint.

    Args:
        measure: From the model to its metrics by name, all finite.
        greater_is_better: The names, and for each whether more is better.
    """

    measure: Callable[[nn.Module], dict[str, float]]
    greater_is_better: Mapping[str, bool]


class TermValues(NamedTuple):
    """Loss of one micro-batch and its terms by side, before weights; those that are used."""

    loss: Tensor
    terms: dict[str, Tensor]


class UnlearnTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trains whatever parameters of the model are trainable on an objective.

    Args:
        model: A model with an adapter (unlearning) or without (finetuning).
        args: Arguments of transformers.
        task: Turns batches into predictions.
        objective: What is minimised.
        examples: Forget, retain and unseen examples.
        batches: Which of them make up each batch, of all processes together.
        constants: What the forget term needs of each forget example.
        validation: Metrics on validation data.
        callbacks: Of transformers.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        task: Task,
        objective: Objective,
        examples: PairedExamples[Any],
        batches: ForgetRetainBatches,
        constants: ForgetConstants,
        validation: Validation | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        # transformers refuses to resume a model that was sharded while it was read, because the optimizer of shards
        # cannot be saved. An adapter on top of it is whole in every process, and so is its optimizer.
        args.save_only_model = _trains_whole_tensors(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=examples,
            eval_dataset=examples if validation else None,
            data_collator=PairCollator(task.collate),
            callbacks=list(callbacks),
        )
        args.save_only_model = False
        self.remove_callback(PrinterCallback)
        self.task = task
        self.objective = objective
        self.batches = batches
        self.constants = constants
        self.validation = validation
        self._logged: dict[str, float] = {}
        self._frozen_norms = _frozen_norms(model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of forget examples with retain examples beside them: this process's share of them."""
        accelerator = self.accelerator
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=ShareOfBatches(self.batches, accelerator.process_index, accelerator.num_processes),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        # The batches are divided already; accelerate would give whole batches to the processes in turn.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimizer update, and the counts of `COUNTS` over all of them and all devices."""
        micro_batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(len(COUNTS), device=device)
        for batch in micro_batches:
            counts += _count(batch).to(device)
        return micro_batches, self.accelerator.reduce(counts, reduction="sum")

    def training_step(self, model: nn.Module, *given: Any, **options: Any) -> Tensor:
        """As transformers', with a backward pass that can read trees again."""
        with reading_trees(model):
            loss: Tensor = super().training_step(model, *given, **options)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Predictions]:
        """This micro-batch's share of the objective over the whole update.

        Raises:
            NotFiniteError: The loss is infinite or not a number.
        """
        counts = _count(inputs) if num_items_in_batch is None else num_items_in_batch
        for norm in self._frozen_norms:
            norm.eval()  # the Trainer sets the mode of the whole model anew in each step
        predictions = self.task.predict(model, inputs)
        values = self._term_values(model, inputs, predictions, counts)
        total = self._note(values)
        if not math.isfinite(total):
            raise NotFiniteError(f"the loss became {total} in step {self.state.global_step + 1}")
        # Data-parallel training averages gradients over processes; the counts are already sums over them.
        loss = values.loss * self.accelerator.num_processes
        return (loss, predictions) if return_outputs else loss

    def _term_values(self, model: nn.Module, inputs: Batch, predictions: Predictions, counts: Tensor) -> TermValues:
        objective, parts = self.objective, {}
        if objective.forget is not None and objective.uses_forget:
            chosen = inputs["role"] == FORGET
            rows = inputs["index"][chosen]
            needs: dict[str, Tensor | float | None] = {
                name: values[rows.to(values.device)].to(rows.device) for name, values in self.constants.items()
            }
            needs |= {"beta": objective.beta, "limit": objective.limit}
            count = counts[_position("forget", objective.forget)]
            parts["forget"] = term_value(objective.forget, predictions.select(chosen), needs, count)
        retain = objective.retain if objective.uses_retain else None
        unseen = UNSEEN_TERM if objective.uses_unseen else None
        for side, role, term in (("retain", RETAIN, retain), ("unseen", UNSEEN, unseen)):
            if term is not None:
                chosen = inputs["role"] == role
                needs = self._reference_needs(model, inputs, chosen) if term.needs else {}
                parts[side] = term_value(term, predictions.select(chosen), needs, counts[_position(side, term)])
        weights = {
            "forget": objective.forget_weight,
            "retain": objective.retain_weight,
            "unseen": objective.unseen_weight,
        }
        loss = sum((weights[side] * value for side, value in parts.items()), start=counts.new_zeros(()))
        return TermValues(loss, parts)

    def _reference_needs(self, model: nn.Module, inputs: Batch, chosen: Tensor) -> dict[str, Tensor | float | None]:
        """Logits of the base model: the same model with the adapter off, without dropout.

        A process without chosen examples makes the pass on one of its others, because all processes of a sharded model
        have to make it together.
        """
        is_any = bool(chosen.any())
        part = {name: values[chosen] if is_any else values[:1] for name, values in inputs.items()}
        unwrapped = self.accelerator.unwrap_model(model)
        was_training = model.training
        model.eval()
        with torch.no_grad(), unwrapped.disable_adapter():
            logits = self.task.predict(model, part).logits
        model.train(was_training)
        return {"reference_logits": logits if is_any else logits[:0]}

    def _note(self, values: TermValues) -> float:
        """Add the terms to what is logged of this step, over all processes; returns the loss over all of them."""
        shares = torch.stack([values.loss.detach(), *(value.detach() for value in values.terms.values())])
        loss, *totals = self.accelerator.reduce(shares, reduction="sum").tolist()
        for side, total in zip(values.terms, totals, strict=True):
            self._logged[f"{side}_term"] = self._logged.get(f"{side}_term", 0.0) + total
        return float(loss)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> float:
        """The norm of the gradient over all processes, which the Trainer asks for before each update.

        Gradients that are finite can have a norm that is not, from entries of about 1e19 on: clipped by it they would
        all be 0, and the update would be none.

        Raises:
            NotFiniteError: It is infinite or not a number: such an update could not be undone.
        """
        norm = float(super()._get_grad_norm(model, grad_norm))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradient became {norm} in step {self.state.global_step + 1}")
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms to the log of the step that they belong to."""
        if "loss" in logs:
            logs.update(self._logged)
            self._logged = {}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation metrics, with the prefix that transformers expects: the same in every process.

        Raises:
            NotFiniteError: A metric is infinite or not a number, so that it can be compared with nothing.
        """
        if self.validation is None:
            return {}
        measured = processes.agree(self.validation.measure(self.model))
        for name, value in measured.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"the validation metric '{name}' became {value} in step {self.state.global_step}")
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Batch normalisations that are not trained: in training mode they would still take the batches' statistics.

    The base model would then change beside its adapter, and a saved adapter would lack that part of the change.
    """
    if all(weight.requires_grad for weight in model.parameters()):
        return []
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if not any(weight.requires_grad for weight in norm.parameters(recurse=False))]


def _trains_whole_tensors(model: nn.Module) -> bool:
    return not any(isinstance(weight.data, DTensor) for weight in model.parameters() if weight.requires_grad)


def _count(batch: Batch) -> Tensor:
    """The counts of `COUNTS` in one batch."""
    labels = batch["labels"].reshape(len(batch["labels"]), -1).ge(0).sum(dim=1)
    chosen = [batch["role"] == role for role in (FORGET, RETAIN, UNSEEN)]
    return torch.stack([count for own in chosen for count in (own.sum(), labels[own].sum())]).float()


def _position(side: str, term: Term) -> int:
    return COUNTS.index(f"{side} {term.per}s" if term.per == "label" else f"{side} examples")
