"""The linear probe: what it learns, what it is given, and when there is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from reference.metric_twins import probe_by_hand
from stable_forgetting.data.examples import ExampleSet, ImageExample
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.images import score_images
from stable_forgetting.evaluation.linear_probe import PENALTY, first_of_each, probe_predictions
from stable_forgetting.models.heads import find_head
from stable_forgetting.models.tasks import ImageTask

NAMES = ("forget", "retain", "forget_test", "retain_test", "holdout")


class HidingClassifier(torch.nn.Module):
    """Passes the image on as features, and has a head that always says class 0."""

    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(4, 3)
        torch.nn.init.zeros_(self.classifier.weight)
        self.classifier.bias.data = torch.tensor([5.0, 0.0, 0.0])
        self.num_passes = 0

    def forward(self, pixel_values):
        self.num_passes += len(pixel_values)
        return SimpleNamespace(logits=self.classifier(pixel_values.flatten(1)))


def clusters(name, labels, seed, spread=0.2):
    """Images whose pixels lie near their class's corner."""
    generator = np.random.default_rng(seed)
    examples = []
    for label in labels:
        values = generator.normal(scale=spread, size=(1, 2, 2)).astype(np.float32)
        values[0, label // 2, label % 2] += 2.0
        pixels = generator.integers(0, 256, size=(2, 2, 3), dtype=np.uint8)
        examples.append(ImageExample(pixels=pixels, label=label, pixel_values=torch.from_numpy(values)))
    return ExampleSet(name, examples)


def image_sets():
    labels = {"forget": [2] * 6, "retain": [0, 1] * 5, "forget_test": [2] * 3, "retain_test": [0, 1, 0], "holdout": [2]}
    return {name: clusters(name, labels[name], seed) for seed, name in enumerate(NAMES)}


def scored(model, sets, *, linear_probe=True, batch_size=4):
    task = ImageTask(processor=None)
    return score_images(model, task, sets, batch_size=batch_size, linear_probe=linear_probe, tell=lambda _: None)


def without(sets, *names):
    return {name: images for name, images in sets.items() if name not in names}


def test_the_probe_shows_what_the_head_hides():
    model, sets = HidingClassifier().eval(), image_sets()
    found = scored(model, sets)
    assert found["forget_test"].likelihood.predicted.tolist() == [0, 0, 0]
    assert found["forget_test"].probe_predicted.tolist() == [2, 2, 2]
    assert found["retain_test"].probe_predicted.tolist() == [0, 1, 0]
    assert [found[name].probe_predicted for name in ("forget", "retain", "holdout")] == [None] * 3
    assert model.num_passes == sum(map(len, sets.values()))
    assert not model.classifier._forward_pre_hooks


def test_a_forgotten_class_is_no_better_known_than_others():
    """The retain set has 3 and 5 images of its classes, so 4 of the forgotten one are taken, the first ones."""
    labels = {
        "forget": [2] * 60,
        "retain": [0, 1, 0, 1, 0, 1, 1, 1],
        "forget_test": [2] * 40,
        "retain_test": [0, 1] * 30,
    }
    sets = {name: clusters(name, labels[name], seed, spread=1.5) for seed, name in enumerate(labels)}

    def predicted(num_forgotten):
        first = ExampleSet("forget", sets["forget"].examples[:num_forgotten])
        found = scored(HidingClassifier(), sets | {"forget": first})
        return [*found["forget_test"].probe_predicted, *found["retain_test"].probe_predicted]

    assert predicted(60) == predicted(5) == predicted(4)
    assert predicted(3) != predicted(4)


def test_only_so_many_of_each_class_are_taken_in_order():
    labels = np.array([5, 2, 5, 5, 2, 7])
    assert first_of_each(labels, 1).tolist() == [0, 1, 5]
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_of_each(labels, 9).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_batch_size_changes_nothing():
    sets = image_sets()
    one, other = (scored(HidingClassifier(), sets, batch_size=size) for size in (1, 100))
    for name in NAMES:
        assert str(one[name].probe_predicted) == str(other[name].probe_predicted)


def test_classes_are_kept_of_the_sets_that_are_compared():
    found = scored(HidingClassifier(), image_sets(), linear_probe=False)
    kept = {name for name, scores in found.items() if scores.likelihood.class_log_probabilities is not None}
    assert kept == {"forget", "forget_test"}
    logs = found["forget"].likelihood.class_log_probabilities
    assert logs.dtype == np.float32
    np.testing.assert_allclose(logs, np.tile(np.log([1, np.exp(-5), np.exp(-5)]) - np.log(1 + 2 * np.exp(-5)), (6, 1)))


def test_no_probe_unless_it_can_be_trained_and_tested(image_model):
    sets = image_sets()
    broken = HidingClassifier()
    broken.forward = lambda pixel_values: SimpleNamespace(logits=broken.classifier(pixel_values.flatten(1) * torch.nan))
    for found in (
        scored(HidingClassifier(), sets, linear_probe=False),
        scored(HidingClassifier(), without(sets, "retain")),
        scored(HidingClassifier(), without(sets, "forget")),
        scored(HidingClassifier(), without(sets, "forget_test", "retain_test")),
        scored(image_model, sets),
        scored(broken, sets),
    ):
        assert {scores.probe_predicted for scores in found.values()} == {None}
    alone = scored(HidingClassifier(), without(sets, "forget_test"))
    assert alone["retain_test"].probe_predicted.tolist() == [0, 1, 0]


def vision_transformer():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=4, patch_size=2, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def test_the_head_is_found_also_under_an_adapter(image_model):
    model = vision_transformer()
    assert find_head(model) is model.classifier
    adapted = get_peft_model(model, LoraConfig(target_modules=["fc1"], modules_to_save=["classifier"]))
    seen = []
    handle = find_head(adapted).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    adapted(pixel_values=torch.zeros(2, 1, 4, 4))
    handle.remove()
    assert [inputs.shape for inputs in seen] == [(2, 8)]
    assert find_head(image_model) is None


@pytest.mark.parametrize("seed", range(3))
def test_equals_its_slow_twin(seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation([3] * 12 + [5] * 6 + [7] * 3)
    features = (generator.normal(size=(21, 3)) * [1, 10, 0] + labels[:, None] * [0.3, 1, 0] + [0, 50, 4]).astype("f4")
    tested = (generator.normal(size=(30, 3)) * [1, 10, 0] + 5 * np.array([0.3, 1, 0]) + [0, 50, 4]).astype("f4")
    (found,) = probe_predictions(features, labels, tested)
    logits = probe_by_hand(features, labels, tested, PENALTY)
    leads = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
    clear = leads > 0.02  # the fit ends a little beside the minimum
    assert clear.sum() >= 28
    assert set(found[clear]) == {3, 5, 7}
    assert found[clear].tolist() == np.array([3, 5, 7])[logits.argmax(axis=1)][clear].tolist()


def test_the_order_of_the_images_changes_nothing():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 8)
    features = (generator.normal(size=(24, 4)) + labels[:, None]).astype("f4")
    tested, order = generator.normal(1, 1, size=(40, 4)).astype("f4"), generator.permutation(24)
    (one,), (other,) = (
        probe_predictions(features, labels, tested),
        probe_predictions(features[order], labels[order], tested),
    )
    assert one.tolist() == other.tolist()


def test_every_class_counts_alike():
    """Ten times as many images of one class do not draw the images between two classes to it."""
    few, many = np.full((5, 1), 0.0), np.full((50, 1), 1.0)
    features, labels = np.concatenate([few, many]).astype("f4"), np.repeat([0, 1], [5, 50])
    (found,) = probe_predictions(features, labels, np.array([[0.45], [0.55]], dtype="f4"))
    assert found.tolist() == [0, 1]


def test_one_class_or_one_image():
    (found,) = probe_predictions(np.ones((1, 2), dtype="f4"), np.array([4]), np.zeros((3, 2), dtype="f4"))
    assert found.tolist() == [4, 4, 4]


def test_features_have_to_be_there_and_finite():
    one, label = np.ones((1, 2), dtype="f4"), np.array([0])
    for features, tested in ((np.zeros((0, 2)), one), (one * np.nan, one), (one, one * np.inf)):
        with pytest.raises(DataError, match="finite"):
            probe_predictions(features, label[: len(features)], tested)
