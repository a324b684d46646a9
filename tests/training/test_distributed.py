"""Several processes: two of them, on the CPU, give the step, the adapter and the record that one gives.

Both processes are started once and do everything in turn; each test looks at one piece of what they left.
"""

import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from accelerate.commands.config.config_args import load_config_from_file
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from stable_forgetting import processes
from stable_forgetting.adapters import BoundedLoraConfig, zero3
from stable_forgetting.adapters.layer import BoundedLoraLinear
from stable_forgetting.config import RunConfig, StopRule, TrainingConfig
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.pairs import ForgetRetainBatches, ShareOfBatches
from stable_forgetting.data.ragged import RaggedRows, RowValues
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.objectives import Objective, build_objective
from stable_forgetting.records import read_record
from stable_forgetting.runs import run
from stable_forgetting.training import Sets, Validation, train
from stable_forgetting.training.callbacks import WeightClipping
from tiny_models import FakeTokenizer, language_set, tiny_language_model
from tiny_problem import TinyProblem, make_language_problem

ROOT = Path(__file__).parents[2]
TASK = LanguageTask(FakeTokenizer())
TOLERANCE = 1e-5
"""Of one step: sums over a batch are made in another order, and nothing else may differ."""
AFTER_SOME_STEPS = 5e-5
"""AdamW makes small differences of small gradients larger."""
AFTER_SOME_STEPS_IN_BFLOAT16 = 5e-3
TRAININGS = {
    "uneven": ("gradient_difference", {"forget_batch_size": 3, "retain_batch_size": 2}),
    "idle": ("ascent", {"forget_batch_size": 2, "retain_batch_size": 1}),
    "kl": ("kl", {"forget_batch_size": 2, "retain_batch_size": 1}),
    "unseen": (
        build_objective("gradient_difference", unseen_weight=0.7),
        {"forget_batch_size": 2, "retain_batch_size": 1, "unseen_batch_size": 1},
    ),
    "whole distributions": ("calibrated_distribution", {"forget_batch_size": 2, "retain_batch_size": 1}),
    "clipped": ("gradient_difference", {"max_weight": 0.02}),
    "retain": ("retain_only", {"forget_batch_size": 2, "retain_batch_size": 3}),
    "accumulated": ("gradient_difference", {"gradient_accumulation": 2}),
    "stopped": ("gradient_difference", {"evaluate_every": 1, "stop": [StopRule(metric="size", above=0.4)]}),
    "peak": (
        "gradient_difference",
        {"evaluate_every": 1, "best_metric": "tent", "stop": [StopRule(metric="tent", peak=-0.2)]},
    ),
    "best": ("gradient_difference", {"evaluate_every": 1, "best_metric": "size"}),
    "broken": ("gradient_difference", {"learning_rate": 1e38, "steps": 6}),
}
RUNS = {
    "ddp": {"training__evaluate_every": 4},
    "fsdp": {"training__evaluate_every": 4},
    "fsdp-kl": {"objective__name": "kl", "training__bf16": True, "evaluation__generate": False},
}


def adapted_model() -> PeftModel:
    model = get_peft_model(tiny_language_model(), BoundedLoraConfig(init_seed=0, r=2))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05, generator=generator)
    return model


def step_of(model: nn.Module, rank: int, num_processes: int) -> None:
    """One AdamW step on this process's share of five examples of different lengths."""
    examples = language_set("retain", 5, 3)
    num_labels = sum(example.num_labels for example in examples)
    predictions = TASK.predict(model, TASK.collate(list(examples)[rank::num_processes]))
    loss = predictions.nll_sum.sum() / num_labels * num_processes
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    loss.backward()
    optimizer.step()


def sharded(model: PeftModel) -> PeftModel:
    """FSDP2 in the usual way: every decoder block, then the rest."""
    for block in model.get_base_model().model.layers:
        fully_shard(block)
    return fully_shard(model)


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def constants_of(objective: str | Objective, forget: ExampleSet[LanguageExample]) -> dict[str, RowValues]:
    """Every label at 2 nats, two other tokens in its place."""
    if objective != "calibrated_distribution":
        return {}
    labels = [torch.tensor(example.input_ids[example.num_prompt_tokens :]) for example in forget]
    tokens = torch.cat([torch.stack([own, (own + 1) % 23, (own + 2) % 23], dim=1) for own in labels])
    right = math.exp(-2)
    probabilities = torch.tensor([right, 0.3, 0.2, 0.5 - right]).expand(len(tokens), 4)
    lengths = torch.tensor([len(own) for own in labels])
    return {
        "label_targets": torch.full((len(forget), int(lengths.max())), 2.0),
        "mean_target": torch.full((len(forget),), 2.0),
        "target_tokens": RaggedRows(tokens, lengths),
        "target_probabilities": RaggedRows(probabilities, lengths),
    }


def train_once(name: str, folder: Path) -> tuple[dict[str, torch.Tensor], object]:
    objective, changes = TRAININGS[name]
    model = get_peft_model(tiny_language_model(), BoundedLoraConfig(init_seed=0))
    base = {"steps": 5, "learning_rate": 1e-2, "save_every": 1}
    rank = processes.process_index()
    forget = language_set("forget", 5, 1)
    outcome = train(
        model,
        TASK,
        build_objective(objective) if isinstance(objective, str) else objective,
        Sets(forget, language_set("retain", 7, 2), constants_of(objective, forget), language_set("holdout", 3, 3)),
        settings=TrainingConfig(**base | changes),
        output_dir=folder / name,
        # What the other process measures must not count.
        validation=Validation(
            lambda model: {"size": size_of(model) + rank, "tent": -abs(size_of(model) - 0.7) + rank},
            {"size": False, "tent": True},
        ),
    )
    weights = {key: value.clone() for key, value in model.state_dict().items() if "bounded_lora" in key}
    return weights, outcome


def size_of(model: nn.Module) -> float:
    return sum(p.detach().norm().item() for name, p in model.named_parameters() if "lora_B" in name)


def work(rank: int, folder: Path, problem: TinyProblem, port: int) -> None:
    """What each of the two processes does."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ |= {"STABLE_FORGETTING_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    processes.join()
    save_steps(rank, folder)
    for name in TRAININGS:
        weights, outcome = train_once(name, folder / "trainings")
        torch.save((weights, outcome), folder / f"{name}-{rank}.pt")
    for name, changes in RUNS.items():
        processes.shards_models.cache_clear()
        os.environ["ACCELERATE_USE_FSDP"] = str(name.startswith("fsdp"))
        record = run(problem.config(**changes), folder / "runs" / name)
        assert record == read_record(folder / "runs" / name)
    resume(rank, folder / "runs" / "fsdp", problem.config(**RUNS["fsdp"]))
    with pytest.raises(ConfigError, match="forget merge"):
        run(problem.config(merge=True), folder / "runs" / "merged")
    processes.leave()


def resume(rank: int, run_dir: Path, config: RunConfig) -> None:
    """Take the last checkpoint and all results away, and go on from the one before: the same bits come out."""
    path = run_dir / "adapter" / "adapter_model.safetensors"
    before = path.read_bytes()
    processes.wait_for_all()
    if rank == 0:
        for name in ("checkpoints/checkpoint-8", "adapter", "per_example"):
            shutil.rmtree(run_dir / name)
        (run_dir / "record.json").unlink()
    processes.wait_for_all()
    run(config, run_dir, resume=True)
    assert path.read_bytes() == before


def save_steps(rank: int, folder: Path) -> None:
    ddp = nn.parallel.DistributedDataParallel(adapted_model())
    step_of(ddp, rank, 2)
    fsdp = sharded(adapted_model())
    before = whole_state(fsdp)
    step_of(fsdp, rank, 2)
    after = whole_state(fsdp)
    if rank == 0:
        torch.save((before, ddp.module.state_dict(), after), folder / "steps.pt")
        fsdp.save_pretrained(folder / "sharded-adapter", state_dict=after)
    WeightClipping(0.0625).on_optimizer_step(None, None, None, model=fsdp)
    clipped = whole_state(fsdp)
    if rank == 0:
        torch.save(clipped, folder / "clipped.pt")


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> TinyProblem:
    return make_language_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def left(problem, tmp_path_factory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (folder, problem, free_port()), nprocs=2)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_near(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_a_step_of_two_processes_is_the_step_of_one(left):
    _, ddp, fsdp = torch.load(left / "steps.pt")
    whole = adapted_model()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    step_of(whole, 0, 1)
    moved = max((value - start[name]).abs().max().item() for name, value in whole.state_dict().items())
    assert moved > 100 * TOLERANCE
    assert_near(ddp, whole.state_dict())
    assert_near(fsdp, whole.state_dict())


@pytest.mark.slow
def test_the_adapter_of_a_sharded_model_is_that_of_the_whole_one(left, tmp_path):
    before, _, after = torch.load(left / "steps.pt")
    whole = adapted_model()
    assert before.keys() == whole.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())
    loaded = PeftModel.from_pretrained(tiny_language_model(), left / "sharded-adapter").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in after.items())
    whole.save_pretrained(tmp_path)
    names = {path.name for path in (left / "sharded-adapter").iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_adapter_of_a_sharded_model_is_clipped_in_all_its_parts(left):
    _, _, after = torch.load(left / "steps.pt")
    clipped = torch.load(left / "clipped.pt")
    for name, value in after.items():
        expected = value.clamp(-0.0625, 0.0625) if "bounded_lora" in name else value
        assert torch.equal(clipped[name], expected), name
        assert "bounded_lora" not in name or not torch.equal(clipped[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_of_two_processes_is_that_of_one(left, tmp_path, name):
    weights, outcome = train_once(name, tmp_path)
    for rank in range(2):
        found, reached = torch.load(left / f"{name}-{rank}.pt", weights_only=False)
        assert_near(found, weights, AFTER_SOME_STEPS)
        assert reached.num_steps == outcome.num_steps
        assert [step.step for step in reached.history] == [step.step for step in outcome.history]
        for step, expected in zip(reached.history, outcome.history, strict=True):
            if name != "broken":
                assert step.loss == pytest.approx(expected.loss, abs=AFTER_SOME_STEPS)
                assert step.forget_term == pytest.approx(expected.forget_term, abs=AFTER_SOME_STEPS)
        assert (reached.stopped is None) == (outcome.stopped is None)
    assert (outcome.stopped is not None) == (name in {"stopped", "peak", "broken"})


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_processes_is_that_of_one(left, problem, tmp_path, monkeypatch, name):
    monkeypatch.setenv("STABLE_FORGETTING_CACHE", str(tmp_path / "cache"))
    whole = run(problem.config(**RUNS[name]), tmp_path / "run")
    found = read_record(left / "runs" / name)
    tolerance = AFTER_SOME_STEPS_IN_BFLOAT16 if RUNS[name].get("training__bf16") else AFTER_SOME_STEPS
    assert found.models == whole.models
    assert found.verdicts == whole.verdicts
    for step, expected in zip(found.history, whole.history, strict=True):
        assert step.loss == pytest.approx(expected.loss, abs=tolerance)
    path = "adapter/adapter_model.safetensors"
    assert_near(load_file(left / "runs" / name / path), load_file(tmp_path / "run" / path), tolerance)


def test_all_shares_together_are_the_batch():
    batches = ForgetRetainBatches(5, 7, forget_batch_size=3, retain_batch_size=2, seed=0)
    shares = [list(ShareOfBatches(batches, rank, 3)) for rank in range(3)]
    for number, batch in enumerate(batches):
        drawn = [draw for share in shares for draw in share[number]]
        assert sorted(drawn) == sorted(batch)
        assert max(len(share[number]) for share in shares) - min(len(share[number]) for share in shares) <= 1
    assert list(ShareOfBatches(batches, 0, 1)) == list(batches)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_launcher_configs_are_read_by_accelerate_and_begin_with_their_command(path):
    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}[path.stem]
    assert config.distributed_type == kind
    assert path.read_text().startswith(f"# accelerate launch --config_file {path.relative_to(ROOT)} ")
    assert config.deepspeed_config.get("zero_stage") == (3 if kind == "DEEPSPEED" else None)


def test_deepspeed_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"fsdp\.yaml"):
        processes.join()


def test_zero3_is_told_which_weights_a_layer_reads(monkeypatch):
    """DeepSpeed is not installed here: this only shows that its function would be called with every weight."""
    registered = []
    fake = SimpleNamespace(zero=SimpleNamespace(register_external_parameter=lambda *pair: registered.append(pair)))
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    monkeypatch.setattr(zero3, "is_deepspeed_zero3_enabled", lambda: True)
    model = adapted_model()
    layers = [layer for layer in model.modules() if isinstance(layer, BoundedLoraLinear)]
    for weight in model.parameters():
        weight.ds_id = id(weight)
    model(input_ids=torch.ones(1, 3, dtype=torch.long))
    read = [(layer, weight) for layer in layers for weight in layer.parameters()]
    assert {(id(layer), id(weight)) for layer, weight in registered} == {(id(a), id(b)) for a, b in read}


@pytest.mark.slow
def test_accelerate_launch_runs_the_command_on_shards(problem, tmp_path):
    config = problem.write(tmp_path / "config.yaml", **RUNS["fsdp"])
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        ROOT / "configs/accelerate/fsdp.yaml",
    ]
    launch += ["--num_processes", 2, "--main_process_port", free_port(), "-m", "stable_forgetting"]
    surroundings = os.environ | {"STABLE_FORGETTING_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [*map(str, launch), "run", str(config), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report:") == 1
    assert read_record(tmp_path / "run").status == "finished"
    assert len(list((tmp_path / "run" / "checkpoints" / "checkpoint-8").glob("rng_state_*.pth"))) == 2
