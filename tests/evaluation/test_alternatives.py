"""Several answers to one question: the shared prompt changes nothing, for every kind of attention and cache."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    RobertaConfig,
)

from data_paths import shared_data
from evaluation.conftest import END
from reference.tofu_twins import padded_nll
from stable_forgetting.adapters import BoundedLoraConfig
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.language import LanguageColumns, language_examples
from stable_forgetting.data.sources import load_rows
from stable_forgetting.evaluation import answer_trees, continued_answers
from stable_forgetting.evaluation.alternatives import score_answers
from stable_forgetting.evaluation.likelihood import score_examples
from stable_forgetting.evaluation.prompts import common_prompt
from stable_forgetting.models.tasks import LanguageTask

SMALL = {"vocab_size": 23, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
WIDE = {"intermediate_size": 24, "max_position_embeddings": 64, "initializer_range": 0.25}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, **WIDE),
    "sliding window": MistralConfig(**SMALL, **WIDE, num_key_value_heads=1, sliding_window=4),
    "every other layer slides": Gemma2Config(
        **SMALL, **WIDE, num_key_value_heads=1, head_dim=8, sliding_window=4, final_logit_softcapping=2.0
    ),
    "absolute positions": GPT2Config(
        vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5
    ),
    "positions with an offset": OPTConfig(
        vocab_size=23, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.5, dropout=0.0,
    ),
    "alibi": BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.5),
    "places behind the pad token": RobertaConfig(**SMALL, **WIDE, is_decoder=True, pad_token_id=END),
    "places that are counted by the model": BartConfig(
        vocab_size=23, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=24,
        max_position_embeddings=64, init_std=0.5, dropout=0.0,
    ),
    "state space": MambaConfig(vocab_size=23, hidden_size=16, state_size=4, num_hidden_layers=2, use_mambapy=False),
}  # fmt: skip


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [8.0] * 16, "rope_theta": 1e4}

COUNT_THEMSELVES = ("places behind the pad token", "places that are counted by the model")
"""These read prompts without padding: those of one length together."""


def make_model(kind, implementation="sdpa"):
    torch.manual_seed(0)
    only_its_own = ("state space", "alibi", "every other layer slides")
    attention = {} if kind in only_its_own else {"attn_implementation": implementation}
    return AutoModelForCausalLM.from_config(CONFIGS[kind], **attention).eval()


def question_set(count=7, seed=0, paraphrased=True):
    """Questions of different lengths with a right, a paraphrased and one to three wrong answers."""
    generator = np.random.default_rng(seed)

    def tokens(least, most):
        return tuple(generator.integers(3, 23, size=int(generator.integers(least, most))).tolist())

    examples = []
    for index in range(count):
        prompt = tokens(2, 12)

        def answer(prompt=prompt):
            ids = (*prompt, *tokens(1, 9), END)
            return LanguageExample("q", str(ids), ids, len(prompt), END)

        wrong = tuple(answer() for _ in range(1 + index % 3))
        examples.append(replace(answer(), paraphrased=answer() if paraphrased else None, perturbed=wrong))
    return ExampleSet("forget", examples)


def plain_nll(model, task, examples):
    return score_examples(model, task, ExampleSet("x", list(examples)), batch_size=1).nll_sum


@pytest.fixture
def count_shared(monkeypatch):
    """Number of times that prompts were read for several answers."""
    calls = []
    read = continued_answers.read_prompts
    monkeypatch.setattr(continued_answers, "read_prompts", lambda *given: calls.append(1) or read(*given))
    return calls


def rows_read(model):
    """Sizes of the inputs of each forward pass from now on: rows and columns."""
    sizes = []
    model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(tuple(given["input_ids"].shape[:2])), with_kwargs=True
    )
    return sizes


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_one_pass_per_answer(language_task, count_shared, kind, batch_size):
    model, example_set = make_model(kind), question_set()
    scores = score_answers(model, language_task, example_set, batch_size=batch_size, with_tokens=True)
    wrong = [answer for example in example_set for answer in example.perturbed]
    expected = {
        "likelihood": example_set.examples,
        "paraphrased": [example.paraphrased for example in example_set],
        "perturbed": wrong,
    }
    for name, answers in expected.items():
        np.testing.assert_allclose(
            getattr(scores, name).nll_sum, plain_nll(model, language_task, answers), rtol=1e-5, err_msg=name
        )
    assert scores.num_perturbed.tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert scores.likelihood.num_labels.tolist() == [example.num_labels for example in example_set]
    assert scores.paraphrased.tokens is None
    plain = score_examples(model, language_task, example_set, batch_size=4, with_tokens=True)
    np.testing.assert_allclose(scores.likelihood.tokens.variance, plain.tokens.variance, rtol=1e-4, atol=1e-6)
    assert scores.likelihood.first_extractable.tolist() == plain.first_extractable.tolist()
    whole = len(range(0, len(example_set), batch_size))
    if kind in COUNT_THEMSELVES:
        counts = Counter(common_prompt((example, *example.alternatives)) for example in example_set)
        whole = sum(len(range(0, count, batch_size)) for count in counts.values())
    in_trees = [len((example, *example.alternatives)) <= batch_size for example in example_set]
    continued = len(range(0, in_trees.count(False), batch_size))
    assert len(count_shared) == {"state space": 1, "llama": continued}.get(kind, whole)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_long_texts_stretch_no_positions_of_others(language_task, batch_size):
    """Each text alone is the twin: with others in its batch, a long one would change what they are."""
    torch.manual_seed(0)
    rope = LONGROPE | {"original_max_position_embeddings": 12}
    config = LlamaConfig(**SMALL, **WIDE, rope_parameters=rope)
    example_set = question_set()
    texts = [answer for example in example_set for answer in (example, *example.alternatives)]
    assert min(len(text.input_ids) for text in texts) < 12 < max(len(text.input_ids) for text in texts)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = {text.input_ids: plain_nll(model, language_task, [text])[0] for text in texts}
    scores = score_answers(model, language_task, example_set, batch_size=batch_size)
    plain = score_examples(model, language_task, ExampleSet("x", texts), batch_size=batch_size).nll_sum
    np.testing.assert_allclose(plain, [expected[text.input_ids] for text in texts], rtol=1e-5)
    right = [expected[example.input_ids] for example in example_set]
    np.testing.assert_allclose(scores.likelihood.nll_sum, right, rtol=1e-5)
    wrong = [expected[answer.input_ids] for example in example_set for answer in example.perturbed]
    np.testing.assert_allclose(scores.perturbed.nll_sum, wrong, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "sliding window"])
def test_eager_attention(language_task, kind):
    model, example_set = make_model(kind, "eager"), question_set(seed=2)
    scores = score_answers(model, language_task, example_set, batch_size=4)
    np.testing.assert_allclose(scores.likelihood.nll_sum, plain_nll(model, language_task, example_set), rtol=1e-5)


def test_prompts_that_the_tokenizer_joined_with_the_answer():
    """The last prompt tokens differ: only what is common is shared, and the values stay right."""
    first = LanguageExample("q", "a", (5, 6, 7, 8, 9, END), 3, END)
    other = LanguageExample("q", "b", (5, 6, 11, 12, END), 3, END)
    third = LanguageExample("q", "c", (5, 13, 12, END), 2, END)
    assert common_prompt([first, first]) == 2
    assert common_prompt([first, replace(other, input_ids=(5, 6, 11, 12, END))]) == 2
    assert common_prompt([first, other, third]) == 1
    assert common_prompt([first, replace(first, input_ids=(9, 6, 7, 8, 9, END))]) == 0


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kind", ["llama", "absolute positions"])
def test_different_last_prompt_tokens(language_task, count_shared, kind, shift):
    model = make_model(kind)
    rows = [(5, 6, 7, 8, 9, END), (5, 6 + shift, 11, 12, END)]
    answers = [LanguageExample("q", str(row), row, 4 if index == 0 else 3, END) for index, row in enumerate(rows)]
    example_set = ExampleSet("forget", [replace(answers[0], perturbed=(answers[1],))])
    scores = score_answers(model, language_task, example_set, batch_size=2)
    expected = plain_nll(model, language_task, answers)
    np.testing.assert_allclose([scores.likelihood.nll_sum[0], scores.perturbed.nll_sum[0]], expected, rtol=1e-5)
    assert len(count_shared) == (kind != "llama")


@pytest.mark.parametrize("kind", ["llama", "absolute positions"])
def test_prompts_of_one_token_and_sets_without_alternatives(language_task, count_shared, kind):
    model = make_model(kind)
    one = LanguageExample("q", "a", (5, 6, END), 1, END)
    with_one = ExampleSet("forget", [replace(one, perturbed=(one,)), *question_set()])
    scores = score_answers(model, language_task, with_one, batch_size=5)
    np.testing.assert_allclose(scores.likelihood.nll_sum, plain_nll(model, language_task, with_one), rtol=1e-5)
    assert scores.paraphrased is None
    alone = ExampleSet("forget", [replace(example, paraphrased=None, perturbed=()) for example in question_set()])
    scores = score_answers(model, language_task, alone, batch_size=5)
    assert (scores.paraphrased, scores.perturbed, scores.num_perturbed) == (None, None, None)
    assert count_shared == []


def family(*rows, num_prompt_tokens=3):
    """One question with these texts as its answers."""
    first, *others = (LanguageExample("q", str(row), row, num_prompt_tokens, END) for row in rows)
    return replace(first, perturbed=tuple(others))


def test_what_answers_begin_with_is_read_once(language_task):
    """Prompt and first words of three answers, in one row with those of another question; the ends are not read."""
    model = make_model("llama")
    question = family((5, 6, 7, 8, 9, 10, END), (5, 6, 7, 8, 9, 11, END), (5, 6, 7, 8, 12, END))
    other = family((3, 4, 5, 6, END), (3, 4, 5, 6, END))
    expected = plain_nll(model, language_task, [question, *question.perturbed, other, *other.perturbed])
    sizes = rows_read(model)
    scores = score_answers(model, language_task, ExampleSet("x", [question, other]), batch_size=5)
    assert sizes == [(1, 8 + 4)]
    nll = [scores.likelihood.nll_sum[0], *scores.perturbed.nll_sum[:2]]
    np.testing.assert_allclose([*nll, scores.likelihood.nll_sum[1], scores.perturbed.nll_sum[2]], expected, rtol=1e-5)


def test_what_all_prompts_begin_with_is_read_once_for_the_set(language_task, monkeypatch):
    monkeypatch.setattr(answer_trees, "LEAST_BEGINNING", 2)
    model = make_model("llama")
    first = family((5, 6, 7, 8, 9, END), (5, 6, 7, 8, 10, END), num_prompt_tokens=4)
    second = family((5, 6, 11, 8, END), (5, 6, 11, 9, END), (5, 6, 11, 10, END))
    answers = [first, second, *first.perturbed, *second.perturbed]
    expected = plain_nll(model, language_task, answers)
    sizes = rows_read(model)
    scores = score_answers(model, language_task, ExampleSet("x", [first, second]), batch_size=3)
    assert sizes == [(1, 2), (1, 4), (1, 4)], "5 and 6, and the trees of both questions behind them"
    np.testing.assert_allclose([*scores.likelihood.nll_sum, *scores.perturbed.nll_sum], expected, rtol=1e-5)


def test_what_questions_begin_with_alike_is_read_once(language_task):
    """In one row without padding, large and small ones."""
    generator = np.random.default_rng(3)
    answers = [(*range(5, 20), *generator.integers(8, 23, size=8).tolist(), END) for _ in range(4)]
    large = family(*answers, num_prompt_tokens=15)
    small = [family((3, 4, place, 9, 10, END), (3, 4, place, 11, 12, END)) for place in range(5, 20)]
    model, questions = make_model("llama"), ExampleSet("x", [*small[:7], large, *small[7:]])
    everything = [answer for question in questions for answer in (question, *question.perturbed)]
    expected = plain_nll(model, language_task, everything)
    sizes = rows_read(model)
    scores = score_answers(model, language_task, questions, batch_size=40)
    assert sizes == [(1, (15 + 4 * 8) + 2 + 15 * 5)]
    found = iter(scores.perturbed.nll_sum)
    values = [nll for own in scores.likelihood.nll_sum[:7] for nll in (own, next(found))]
    values += [scores.likelihood.nll_sum[7], *(next(found) for _ in range(3))]
    values += [nll for own in scores.likelihood.nll_sum[8:] for nll in (own, next(found))]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_more_answers_than_a_batch_continue_their_prompt(language_task, count_shared):
    """In two trees the prompt would be read twice."""
    model = make_model("llama")
    question = family((5, 6, 7, 8, 9, 10, END), (5, 6, 7, 8, 9, 11, END), (5, 6, 7, 8, 12, END))
    other = family((3, 4, 5, 6, END), (3, 4, 5, 7, END))
    expected = plain_nll(model, language_task, [other, question, *other.perturbed, *question.perturbed])
    sizes = rows_read(model)
    scores = score_answers(model, language_task, ExampleSet("x", [other, question]), batch_size=2)
    assert sizes[0] == (1, 5), "the tree of the second question"
    assert len(count_shared) == 1
    np.testing.assert_allclose([*scores.likelihood.nll_sum, *scores.perturbed.nll_sum], expected, rtol=1e-5)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "linear"])
def test_positions_that_depend_on_what_is_beside_a_text(language_task, count_shared, rope_type):
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16} if rope_type == "longrope" else {}
    scaling = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4, **factors}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, **WIDE, rope_parameters=scaling)).eval()
    example_set = question_set()
    scores = score_answers(model, language_task, example_set, batch_size=5)
    np.testing.assert_allclose(scores.likelihood.nll_sum, plain_nll(model, language_task, example_set), rtol=1e-5)
    assert (count_shared == []) is (rope_type != "longrope")


def test_several_heads_that_share_keys_and_an_adapter_that_is_not_merged(language_task, count_shared):
    torch.manual_seed(0)
    grouped = LlamaConfig(**{**SMALL, "num_attention_heads": 4}, **WIDE, num_key_value_heads=2)
    model = get_peft_model(AutoModelForCausalLM.from_config(grouped), BoundedLoraConfig(r=2, init_seed=0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bounded_lora_B" in name:
                weight.normal_(std=0.1)
    example_set = question_set()
    scores = score_answers(model, language_task, example_set, batch_size=5)
    np.testing.assert_allclose(scores.likelihood.nll_sum, plain_nll(model, language_task, example_set), rtol=1e-5)
    assert count_shared == []


def test_the_output_head_sees_what_answers_share_once(language_task):
    model, question = make_model("llama"), family((5, 6, 7, 8, 9, END), (5, 6, 7, 8, 10, END))
    seen = []
    model.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[-2]))
    score_answers(model, language_task, ExampleSet("x", [question]), batch_size=2)
    assert seen == [4], "what follows 7, 8, 9 and 10"


def test_a_window_that_no_text_leaves(language_task, count_shared):
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, **WIDE, num_key_value_heads=1, sliding_window=21)
    model, example_set = AutoModelForCausalLM.from_config(config).eval(), question_set()
    assert max(len(answer.input_ids) for example in example_set for answer in (example, *example.perturbed)) <= 21
    scores = score_answers(model, language_task, example_set, batch_size=5)
    np.testing.assert_allclose(scores.likelihood.nll_sum, plain_nll(model, language_task, example_set), rtol=1e-5)
    assert count_shared == []


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_half_precision(language_task, implementation):
    model, example_set = make_model("llama", implementation).bfloat16(), question_set()
    scores = score_answers(model, language_task, example_set, batch_size=4)
    np.testing.assert_allclose(scores.likelihood.nll_sum, plain_nll(model, language_task, example_set), rtol=0.03)


def test_copies_do_not_show_in_the_original(language_task):
    """A second batch from the same prompts must not see the answers of the first."""
    model, example_set = make_model("absolute positions"), question_set(count=1)
    wrong = tuple(LanguageExample("q", "a", (*example_set[0].input_ids[:-1], 7, END), 2, END) for _ in range(5))
    same = ExampleSet("forget", [replace(example_set[0], perturbed=wrong)])
    values = score_answers(model, language_task, same, batch_size=1).perturbed.nll_sum
    assert len(set(values.round(9))) == 1


def test_real_model_on_tofu():
    folder = shared_data("models/stories260K")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, task = AutoModelForCausalLM.from_pretrained(folder).eval(), LanguageTask(tokenizer)
    rows = load_rows(str(shared_data("tofu/forget01_perturbed.json"))).first(4)
    example_set = language_examples(rows, tokenizer, name="forget", columns=LanguageColumns("question", "answer"))
    scores = score_answers(model, task, example_set, batch_size=8)
    assert scores.num_perturbed.tolist() == [5] * 4
    answers = [answer for example in example_set for answer in example.perturbed]
    twin = padded_nll(model, tokenizer, answers, batch_size=5)
    np.testing.assert_allclose(scores.perturbed.nll_sum, twin, rtol=1e-5)
    twin = padded_nll(model, tokenizer, [example.paraphrased for example in example_set], batch_size=2)
    np.testing.assert_allclose(scores.paraphrased.nll_sum, twin, rtol=1e-5)
