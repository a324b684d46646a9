"""Prefix trees of texts: what each text gives alone, from one row without padding."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    AttentionMaskInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from reference.memory_twins import saved_bytes
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.models import tasks, tree_attention
from stable_forgetting.models.prefix_trees import find_tree_row, prefix_tree, reads_trees, tree_row
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.models.tree_attention import reading_trees
from stable_forgetting.models.trunk import LANGUAGE_FAMILIES, find_trunk
from tiny_models import CONFIGS, VOCABULARY, FakeTokenizer, tiny_language_model

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
WITH_POSITIONS = {
    "llama": CONFIGS["llama"],
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SMALL),
}
LENGTHS = (3, 14, 5, 20, 2, 8, 4, 11, 20, 2)
CPU = torch.device("cpu")


def make_model(family, attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(WITH_POSITIONS[family](), attn_implementation=attention).eval()


def make_texts(lengths=LENGTHS, seed=1):
    """Texts that begin in three ways, as far as they are long enough, one of them twice."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(length):
        return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()

    beginnings = [tokens(count) for count in (0, 3, 9)]
    rows = [(beginnings[place % 3] + tokens(length))[:length] for place, length in enumerate(lengths)]
    rows.append(rows[1])
    return [LanguageExample(f"q{place}", "a", (*row,), 1 + place % (len(row) - 1)) for place, row in enumerate(rows)]


def num_beginnings(texts):
    """How many different beginnings there are of texts without their last token."""
    return len({text.input_ids[:end] for text in texts for end in range(1, len(text.input_ids))})


@pytest.fixture
def reads_rows(monkeypatch):
    """Sizes of what was read in each pass, as the model sees it."""
    seen = []

    def watch(model):
        model.register_forward_pre_hook(
            lambda _, __, given: seen.append(tuple(given["input_ids"].shape[:2])), with_kwargs=True
        )
        return model

    return watch, seen


def test_every_family_with_kept_trunks_is_tried_here():
    assert set(WITH_POSITIONS) == LANGUAGE_FAMILIES


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_each_text_gives_what_it_gives_alone(family, attention, reads_rows):
    """A text alone is no tree: it has no padding, and shares nothing."""
    watch, seen = reads_rows
    model, task, texts = watch(make_model(family, attention)), LanguageTask(FakeTokenizer()), make_texts()
    together = task.predict(model, task.collate(texts))
    assert seen == [(1, num_beginnings(texts)) if attention == "sdpa" else (11, 20)]
    assert num_beginnings(texts) < sum(len(text.input_ids) - 1 for text in texts)
    alone = [task.predict(model, task.collate([text])) for text in texts]
    torch.testing.assert_close(together.logits, torch.cat([found.logits for found in alone]), atol=1e-5, rtol=1e-4)
    assert seen[1:] == [(1, len(text.input_ids)) for text in texts]
    assert together.labels.tolist() == [label for found in alone for label in found.labels.tolist()]
    assert together.num_labels.tolist() == [text.num_labels for text in texts]
    assert together.example.tolist() == sorted(together.example.tolist())


def test_a_part_of_a_batch_whose_longest_text_is_not_in_it():
    model, task, texts = make_model("llama"), LanguageTask(FakeTokenizer()), make_texts()
    chosen = torch.tensor([len(text.input_ids) < 12 for text in texts])
    part = {name: values[chosen] for name, values in task.collate(texts).items()}
    alone = [task.predict(model, task.collate([text])) for text, take in zip(texts, chosen, strict=True) if take]
    expected = torch.cat([found.logits for found in alone])
    torch.testing.assert_close(task.predict(model, part).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_gradients_are_those_of_a_padded_batch(family, monkeypatch):
    task, texts = LanguageTask(FakeTokenizer()), make_texts()
    gradients = []
    for find in (find_tree_row, lambda *_: None):
        monkeypatch.setattr(tasks, "find_tree_row", find)
        model = make_model(family)
        task.predict(model, task.collate(texts)).nll.sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    as_tree, padded = gradients
    assert as_tree.keys() == padded.keys()
    for name in as_tree:
        torch.testing.assert_close(as_tree[name], padded[name], atol=1e-5, rtol=1e-4, msg=name)


def test_what_a_trunk_makes_of_texts_is_read_as_a_tree_as_well(tmp_path, reads_rows):
    watch, seen = reads_rows
    model, texts = make_model("llama"), make_texts()
    plain = LanguageTask(FakeTokenizer())
    expected = plain.predict(model, plain.collate(texts))
    with_trunk = plain.with_trunk(find_trunk(model, 1, {}, tmp_path))
    batch = with_trunk.collate(texts)
    found = with_trunk.predict(watch(model), batch)
    assert batch["input_ids"].ndim == 3
    assert seen == [(1, num_beginnings(texts))]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)


def test_activations_that_are_not_computed_again(reads_rows):
    model, task = reads_rows[0](make_model("llama")).train(), LanguageTask(FakeTokenizer())
    model.activation_checkpointing_enable()
    with torch.no_grad():
        task.predict(model, task.collate(make_texts()))
    assert reads_rows[1] == [(1, num_beginnings(make_texts()))]


@pytest.mark.parametrize("is_prepared", [True, False])
def test_activations_that_are_computed_again(is_prepared, reads_rows):
    """Blocks that read a tree read it again in the backward pass; where they could not, the batch stays padded."""
    task, texts, gradients = LanguageTask(FakeTokenizer()), make_texts(), []
    for is_again in (True, False):
        model = get_peft_model(make_model("llama"), BoundedLoraConfig(r=2, init_seed=0)).train()
        if is_again:
            reads_rows[0](model.get_base_model())
            model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        with reading_trees(model) if is_prepared else nullcontext():
            task.predict(model, task.collate(texts)).nll.sum().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert reads_rows[1] == [(1, num_beginnings(texts)) if is_prepared else (11, 20)]
    assert gradients[0]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_padded_batches_and_caches_are_read_as_ever_by_a_model_that_could_read_trees(family):
    model, generator = make_model(family), torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (3, 12), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    expected = model(input_ids=tokens, attention_mask=mask)
    again = model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)
    with reading_trees(model):
        found = model(input_ids=tokens, attention_mask=mask)
        assert model.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False).equal(again)
    assert found.logits.equal(expected.logits)


@pytest.mark.parametrize("family", sorted(CONFIGS.keys() - WITH_POSITIONS.keys()))
def test_models_that_may_not_know_positions_read_padded_batches(family):
    assert find_tree_row(tiny_language_model(family), torch.ones(9, 3), torch.ones(9, 3, dtype=torch.long)) is None


def test_other_kinds_of_attention_read_padded_batches():
    model, mask = make_model("llama"), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    tokens = torch.tensor([[1, 2, 3], [1, 4, 0], [1, 5, 0]])
    assert find_tree_row(model, tokens, mask) is not None
    model.config._attn_implementation = "flash_attention_2"
    assert find_tree_row(model, tokens, mask) is None


@pytest.mark.parametrize(("num_alike", "is_tree"), [(2, False), (3, True)])
def test_a_batch_of_which_little_would_be_saved_stays_as_it_is(num_alike, is_tree):
    """Of 156 tokens before the ends of four texts two or three of three texts: 6 or 9, and a 20th is 7.8."""
    tokens = torch.arange(160).reshape(4, 40)
    tokens[:, :num_alike] = torch.arange(num_alike)
    assert (find_tree_row(make_model("llama"), tokens, torch.ones_like(tokens)) is not None) is is_tree


def test_the_attention_is_put_back_after_an_error_and_for_others_it_is_left():
    model, seen = make_model("llama"), []

    def fail():
        with reading_trees(model), reading_trees(model):
            seen.append(model.config._attn_implementation)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*seen, model.config._attn_implementation] == [tree_attention.ATTENTION, "sdpa"]
    eager = make_model("llama", "eager")
    with reading_trees(eager):
        assert eager.config._attn_implementation == "eager"


def test_every_beginning_is_one_node():
    for seed in range(20):
        texts = [text.input_ids[:-1] for text in make_texts(seed=seed)]
        tree = prefix_tree(texts)
        ways = [[texts[text][: position + 1] for text, position in tree.sources]]
        assert len(tree) == len({*ways[0]}) == len({text[:end] for text in texts for end in range(1, len(text) + 1)})
        assert tree.depths == [len(way) - 1 for way in ways[0]]
        assert [[ways[0][node] for node in path] for path in tree.paths] == [
            [text[:end] for end in range(1, len(text) + 1)] for text in texts
        ]
        known, expected = set(), []
        for path in tree.paths:
            expected.append(sum(node not in known for node in path))
            known |= {*path}
        assert tree.num_own == expected


def as_on_a_gpu(query, key, value, **options):
    """What the memory-efficient kernel gives: tokens before heads."""
    return attention(query, key, value, **options).transpose(1, 2).contiguous().transpose(1, 2)


attention = F.scaled_dot_product_attention


@pytest.mark.parametrize("lengths", [LENGTHS, (150, 30, 90, 20, 2), (300, 30, 290, 20, 2)])
@pytest.mark.parametrize("kernel", [attention, as_on_a_gpu])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("num_before", [0, 5])
def test_attention_is_that_of_nodes_that_see_their_way_to_the_root(num_before, window, kernel, lengths, monkeypatch):
    """The twin looks at all pairs of nodes, and repeats the keys that heads share."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    tree = prefix_tree([text.input_ids for text in make_texts(lengths)])
    row, count = tree_row(tree, max(lengths), num_before, CPU), num_before + len(tree)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, len(tree), 8, generator=generator)
    key, value = torch.randn(2, 1, 2, count, 8, generator=generator)
    sees = torch.zeros(len(tree), count, dtype=torch.bool)
    for path in tree.paths:
        for place, node in enumerate(path):
            way = [*range(num_before), *(num_before + other for other in path[: place + 1])]
            sees[node, way[-window:] if window else way] = True
    twin = attention(
        query, key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1), attn_mask=sees, scale=0.3
    )
    given = row.inputs(torch.zeros(len(tree.paths), max(lengths)))
    options = {"dropout": 0.0, "scaling": 0.3, "sliding_window": window, "position_ids": given["position_ids"]}
    found, _ = tree_attention._attend(None, query, key, value, given["attention_mask"], tree=given["tree"], **options)
    torch.testing.assert_close(found, twin.transpose(1, 2), atol=1e-6, rtol=1e-5)
    for mask, group in zip(row.attended.masks.made.values(), row.attended.groups, strict=True):
        num_queries = group.queries.shape[1]
        assert mask.shape[2] == (2 * num_queries if num_queries <= 256 else num_queries)
        assert mask.shape[3] % 8 == 0


def test_long_texts_share_attention_with_texts_of_about_their_length():
    """Else the answers to a long prompt would cost what it costs, each of them."""
    prompt = (*range(1000),)
    tree = prefix_tree([(*prompt, 1000 + place, *range(place)) for place in range(1, 8)])
    groups = tree_row(tree, 1100, 0, CPU).attended.groups
    assert [tuple(group.queries.shape) for group in groups] == [(1, 1002), (6, 8)]
    tree = prefix_tree([(*range(1, 101),), (101, 102, 103), (104,)])
    groups = tree_row(tree, 100, 6, CPU).attended.groups
    assert [tuple(group.keys.shape) for group in groups] == [(1, 112), (2, 16)], "multiples of 8"
    for lengths in ((150, 30, 90, 20, 2), (64, 2), (200, 101, 99, 50, 40), (65, 30), (200, 190)):
        tree = prefix_tree([text.input_ids for text in make_texts(lengths)])
        queries = [group.queries for group in tree_row(tree, max(lengths), 0, CPU).attended.groups]
        nodes = sum(each.numel() for each in queries)
        assert nodes <= max(2 * len(tree), 64 * len(tree.paths))
        assert sum(map(len, queries)) == sum(count > 0 for count in tree.num_own) < len(tree.paths)


def masks_of(model, texts, context):
    """Type and window of each mask that a pass makes, and how many masks attention is given."""
    batch, given = LanguageTask(FakeTokenizer()).collate(texts), []

    def watched(*tensors, **options):
        given.append(options["attn_mask"].data_ptr())
        return attention(*tensors, **options)

    row = find_tree_row(model, batch["input_ids"], batch["attention_mask"])
    with reading_trees(model), context, pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        model(**row.inputs(batch["input_ids"]))
    return {(dtype, window) for _, _, dtype, window, _ in row.attended.masks.made}, len({*given})


def test_blocks_share_one_mask_of_the_type_that_attention_computes_in():
    plain, mixed = nullcontext(), torch.autocast("cpu", torch.bfloat16)
    assert masks_of(make_model("llama"), make_texts(), plain) == ({(torch.float32, None)}, 1)
    assert masks_of(make_model("llama"), make_texts(), mixed) == ({(torch.bfloat16, None)}, 1)
    assert masks_of(make_model("llama").bfloat16(), make_texts(), plain) == ({(torch.bfloat16, None)}, 1)
    assert masks_of(make_model("llama").double(), make_texts(), mixed) == ({(torch.float64, None)}, 1)
    assert masks_of(make_model("mistral"), make_texts(), plain) == ({(torch.float32, 4)}, 1)
    assert masks_of(make_model("qwen2"), make_texts(), plain) == ({(torch.float32, None), (torch.float32, 5)}, 2)
    wide = make_model("mistral")
    wide.config.sliding_window = 24
    assert masks_of(wide, make_texts(), plain) == ({(torch.float32, None)}, 1)


def test_blocks_under_hooks_share_it_as_well():
    model = make_model("llama")
    for block in model.model.layers:
        add_hook_to_module(block, AlignDevicesHook(execution_device="cpu"))
    assert masks_of(model, make_texts(), nullcontext()) == ({(torch.float32, None)}, 1)


def test_no_mask_of_all_pairs_of_nodes_is_made(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, tree_attention.ATTENTION, fail)
    model, task = make_model("llama"), LanguageTask(FakeTokenizer())
    assert len(task.predict(model, task.collate(make_texts())).nll)


@pytest.mark.parametrize("family", WITH_POSITIONS)
def test_mixed_precision_gives_what_it_gives_to_padded_batches(family, monkeypatch):
    task, texts, model, found = LanguageTask(FakeTokenizer()), make_texts(), make_model(family), []
    for find in (find_tree_row, lambda *_: None):
        monkeypatch.setattr(tasks, "find_tree_row", find)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(task.predict(model, task.collate(texts)).logits.float())
    torch.testing.assert_close(found[0], found[1], atol=5e-3, rtol=2e-2)


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("window", [None, 256])
def test_less_is_kept_for_the_backward_pass(window, is_mixed, monkeypatch):
    """Of long texts too, of which masks would be large: one for each block, or for each head."""
    wide = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 8, "hidden_size": 32}
    config = MistralConfig(**SMALL | wide | {"max_position_embeddings": 1024}, sliding_window=window)
    model, task = AutoModelForCausalLM.from_config(config), LanguageTask(FakeTokenizer())
    batch, kept = task.collate(make_texts((1024, 1000, 700, 512))[:4]), []
    for find in (find_tree_row, lambda *_: None):
        monkeypatch.setattr(tasks, "find_tree_row", find)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            kept.append(saved_bytes(model, partial(task.predict, model, batch)))
    assert kept[0] < 0.6 * kept[1]


def test_dropout_of_attention_is_that_of_the_model(monkeypatch):
    seen = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given, **how: seen.append(how) or attention(*given))
    model, task = make_model("llama"), LanguageTask(FakeTokenizer())
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.25
    task.predict(model.train(), task.collate(make_texts()))
    task.predict(model.eval(), task.collate(make_texts()))
    assert [how["dropout_p"] for how in seen] == [0.25, 0.25, 0.0, 0.0]


class OfItsOwn(LlamaForCausalLM):
    """Code that comes with a model."""


def test_models_whose_code_or_adapter_may_do_more_read_padded_batches():
    tokens = torch.tensor([[1, 2, 3], [1, 4, 0], [1, 5, 0]])
    model, mask = make_model("llama"), (tokens > 0).long()
    assert find_tree_row(model, tokens, mask) is not None
    assert find_tree_row(OfItsOwn(WITH_POSITIONS["llama"]()), tokens, mask) is None
    prompts = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert find_tree_row(prompts, tokens, mask) is None
    assert LanguageTask(FakeTokenizer()).predict(
        prompts, {"input_ids": tokens, "attention_mask": mask, "labels": tokens}
    )


@pytest.mark.parametrize(("original", "is_tree"), [(20, True), (19, False)])
def test_positions_that_the_longest_text_stretches(original, is_tree):
    """The last token counts, which a tree leaves out."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 1e4}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": original, **factors}
    config = LlamaConfig(**SMALL, rope_parameters=rope)
    model, task = AutoModelForCausalLM.from_config(config).eval(), LanguageTask(FakeTokenizer())
    batch = task.collate(make_texts())
    assert (find_tree_row(model, batch["input_ids"], batch["attention_mask"]) is not None) is is_tree
    assert not reads_trees(model, 2)


def test_logits_are_copied_only_for_labels_that_share_a_node():
    """The second text ends where the first one goes on, so that its label is behind a node of the prompt."""
    texts = [LanguageExample("q", "a", (5, 6, 7, 8, 9), 4), LanguageExample("q", "a", (5, 6, 3), 2)]
    row = tree_row(prefix_tree([text.input_ids[:-1] for text in texts]), 4, 0, CPU)
    (_, node), state = row.places(torch.tensor([0, 1]), torch.tensor([3, 1]))
    assert (node.tolist(), state) == ([3, 1], None)
    (_, node), state = row.places(torch.tensor([0, 0, 1]), torch.tensor([3, 1, 1]))
    assert (node.tolist(), state.tolist()) == ([1, 3], [1, 0, 0])
    model, task = make_model("llama"), LanguageTask(FakeTokenizer())
    alone = [task.predict(model, task.collate([text])).logits for text in texts]
    padded = task.collate(texts)
    assert find_tree_row(model, padded["input_ids"], padded["attention_mask"]) is not None
    torch.testing.assert_close(task.predict(model, padded).logits, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_texts_that_leave_their_window_are_not_read_behind_others():
    assert reads_trees(make_model("mistral"), 4)
    assert not reads_trees(make_model("mistral"), 5)
    assert reads_trees(make_model("llama"), 64)
