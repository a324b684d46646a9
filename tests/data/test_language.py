import hashlib
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_paths import shared_data
from reference.data_twins import tokens_of_answer
from stable_forgetting.data.examples import LanguageExample
from stable_forgetting.data.language import (
    LanguageColumns,
    answer_tokens,
    generation_prompt_ids,
    language_examples,
)
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.sources import load_rows
from stable_forgetting.errors import DataError
from stable_forgetting.models.builtin import people_tokenizer

CHATML = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
PAIRS = [
    {"prompt": "Who wrote it?", "answer": "Ada wrote it."},
    {"prompt": "Wo wohnt Jürgen?", "answer": "In  Köln 🎉, nahe am Dom."},
    {"prompt": "end", "answer": "end"},
    {"prompt": "Two\nlines? ", "answer": "x"},
    {"prompt": "", "answer": "No prompt."},
]
NAMES = ["tiny", "people", "gpt2", "stories"]


def tiny_tokenizer(template=None):
    """Bytes with few merges that join the colon to what follows, and no token before the text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>", "<|turn|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["Question: Answer: Ada: Ada wrote: Ada", ":A:A:A:A:A:A"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        additional_special_tokens=["<|turn|>", "<|end|>"],
        chat_template=template,
    )


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request):
    if request.param == "tiny":
        return tiny_tokenizer()
    if request.param == "people":
        return people_tokenizer()
    folder = shared_data({"gpt2": "gpt2_tokenizer", "stories": "models/stories260K"}[request.param])
    return AutoTokenizer.from_pretrained(folder)


def examples_of(rows, tokenizer, **options):
    return language_examples(Rows(rows, "here"), tokenizer, name="forget", **options)


def test_boundary_is_the_slow_twins(tokenizer):
    for example in examples_of(PAIRS, tokenizer):
        before = f"Question: {example.prompt}\nAnswer: "
        text = before + example.answer
        encoded = tokenizer(text, return_offsets_mapping=True)
        expected = tokens_of_answer(encoded["offset_mapping"], len(before), len(text))
        assert example.num_prompt_tokens == expected[0]
        assert list(example.input_ids[:-1]) == encoded["input_ids"][: expected[-1] + 1]
        assert example.input_ids[-1] == tokenizer.eos_token_id
        assert example.input_ids.count(tokenizer.eos_token_id) - (tokenizer.bos_token == tokenizer.eos_token) in (0, 1)
        assert example.num_labels == len(expected) + 1


def test_labels_hold_the_whole_answer(tokenizer):
    for example in examples_of(PAIRS, tokenizer):
        labels = tokenizer.decode(example.input_ids[example.num_prompt_tokens : -1])
        assert labels.strip().endswith(example.answer.strip())
        assert generation_prompt_ids(example) == example.input_ids[: -example.num_labels]


def test_the_naive_boundary_would_be_wrong_here():
    """A token across the boundary belongs to the answer; counting the prompt's own tokens would cut it off."""
    tokenizer = tiny_tokenizer()
    columns = LanguageColumns(template="{prompt}:{answer}")
    example = examples_of([{"prompt": "wrote", "answer": "Ada"}], tokenizer, columns=columns)[0]
    naive = len(tokenizer("wrote:")["input_ids"])
    across = tokenizer.decode(example.input_ids[example.num_prompt_tokens])
    assert across.startswith(":A")
    assert example.num_prompt_tokens < naive


@pytest.mark.parametrize("seed", range(5))
def test_answer_tokens_equals_the_slow_twin(seed):
    import numpy as np

    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, 30, 12)).tolist()
    offsets = list(zip([0, *cuts], [*cuts, 30], strict=True))
    start, end = sorted(rng.choice(31, 2, replace=False).tolist())
    expected = tokens_of_answer(offsets, start, end)
    assert answer_tokens(offsets, (start, end)) == (expected[0], expected[-1] + 1)
    assert answer_tokens(offsets, (40, 41)) is None


def test_beginning_token_only_if_the_tokenizer_adds_one():
    people, tiny = people_tokenizer(), tiny_tokenizer()
    assert examples_of(PAIRS, people)[0].input_ids[0] == people.bos_token_id
    assert tiny.decode(examples_of(PAIRS, tiny)[0].input_ids[0]).startswith("Q")


def test_end_token_is_never_doubled():
    example = examples_of([{"prompt": "a", "answer": "b</s>"}], tiny_tokenizer())[0]
    assert example.input_ids.count(tiny_tokenizer().eos_token_id) == 1


def test_plain_text_has_no_end_token_and_all_labels_but_the_first(tokenizer):
    example = examples_of([{"text": "Once upon a time."}], tokenizer)[0]
    encoded = tokenizer("Once upon a time.")["input_ids"]
    assert list(example.input_ids) == encoded
    assert example.num_labels <= len(encoded) - 1
    assert example.num_prompt_tokens == 1
    assert (example.prompt, example.answer) == ("", "Once upon a time.")


@pytest.mark.parametrize("row", PAIRS[:4])
def test_chat_template(row):
    tokenizer = tiny_tokenizer(CHATML)
    example = examples_of([row], tokenizer)[0]
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(generation_prompt_ids(example)) == prompt
    assert tokenizer.convert_ids_to_tokens(example.input_ids[-1]) == "<|end|>"
    assert tokenizer.decode(example.input_ids[example.num_prompt_tokens : -1]) == row["answer"]


DATED = "{{ 'On ' + date_string if date_string is defined else 'Today' }}: " + CHATML


def test_a_chat_template_writes_the_same_date_on_every_day():
    tokenizer = tiny_tokenizer(DATED)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith("Today")
    assert tokenizer.decode(examples_of(PAIRS[:1], tokenizer)[0].input_ids).startswith("On 10 Apr 2025: ")
    columns = LanguageColumns(date="1 May 2026")
    assert tokenizer.decode(examples_of(PAIRS[:1], tokenizer, columns=columns)[0].input_ids).startswith("On 1 May 2026")


def test_a_chat_template_that_asks_for_today_is_given_the_same_date():
    tokenizer = tiny_tokenizer("{{ strftime_now('%d %B %Y') }}: " + CHATML)
    assert tokenizer.decode(examples_of(PAIRS[:1], tokenizer)[0].input_ids).startswith("10 Apr 2025: ")


def test_a_chat_template_that_refuses_a_system_prompt_is_one_sentence():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    columns = LanguageColumns(system_prompt="Be brief.")
    with pytest.raises(DataError, match=r"row 0 of the forget set: no system role\. Leave system_prompt out"):
        examples_of(PAIRS[:1], tiny_tokenizer(refuses), columns=columns)


def test_a_system_prompt_goes_before_prompts_that_have_none():
    tokenizer, columns = tiny_tokenizer(CHATML), LanguageColumns(system_prompt="Be brief.")
    own = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
    ]
    without, with_own = (
        tokenizer.decode(examples_of(rows, tokenizer, columns=columns)[0].input_ids)
        for rows in (PAIRS[:1], [{"messages": own}])
    )
    assert 0 <= without.find("Be brief.") < without.index(PAIRS[0]["prompt"])
    assert "Be kind." in with_own
    assert "Be brief." not in with_own
    with pytest.raises(DataError, match=r"system prompt 'Be brief\.' needs a chat template"):
        examples_of(PAIRS[:1], tokenizer, columns=columns, chat_template=False)


def test_messages_with_several_turns():
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Say Hello"},
        {"role": "assistant", "content": "Hello"},
    ]
    tokenizer = tiny_tokenizer(CHATML)
    example = examples_of([{"messages": messages, "id": 7}], tokenizer)[0]
    assert example.prompt == "Be kind.\nHi\nHello\nSay Hello"
    assert tokenizer.decode(example.input_ids[example.num_prompt_tokens :]) == "Hello<|end|>"
    assert example.metadata == {"id": 7}


def test_template_without_end_of_turn_gets_the_end_token():
    plain = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    tokenizer = tiny_tokenizer(plain)
    example = examples_of(PAIRS[:1], tokenizer)[0]
    assert tokenizer.decode(example.input_ids) == "user: Who wrote it?\nassistant: Ada wrote it.</s>"


def test_chat_template_can_be_switched_off():
    example = examples_of(PAIRS[:1], tiny_tokenizer(CHATML), chat_template=False)[0]
    assert tiny_tokenizer().decode(example.input_ids) == "Question: Who wrote it?\nAnswer: Ada wrote it.</s>"


def test_a_template_beside_a_chat_template_is_refused():
    columns = LanguageColumns(template="no placeholders at all")
    with pytest.raises(DataError, match=r"template 'no placeholders at all' is not used .* Set chat_template to false"):
        examples_of(PAIRS[:1], tiny_tokenizer(CHATML), columns=columns)
    columns = LanguageColumns(template="{prompt} {answer}")
    example = examples_of(PAIRS[:1], tiny_tokenizer(CHATML), columns=columns, chat_template=False)[0]
    assert tiny_tokenizer().decode(example.input_ids) == "Who wrote it? Ada wrote it.</s>"


def test_long_examples_are_cut_at_the_end(tokenizer):
    whole = examples_of(PAIRS[:1], tokenizer)[0]
    for length in (whole.num_prompt_tokens + 1, len(whole.input_ids) - 1):
        cut = examples_of(PAIRS[:1], tokenizer, max_length=length)[0]
        assert cut.input_ids == whole.input_ids[:length]
        assert cut.num_prompt_tokens == whole.num_prompt_tokens
    with pytest.raises(DataError, match=r"prompt in row 0 of the forget set has \d+ tokens, so max_length \d+ leaves"):
        examples_of(PAIRS[:1], tokenizer, max_length=whole.num_prompt_tokens)


def test_columns_by_name_and_metadata():
    columns = LanguageColumns(prompt="question", answer="reply", template="{prompt} {answer}")
    row = {"question": "Year {x}?", "reply": 1984, "paraphrase": "p", "prompt": "no"}
    example = examples_of([row], tiny_tokenizer(), columns=columns)[0]
    assert (example.prompt, example.answer) == ("Year {x}?", "1984")
    assert example.metadata == {"paraphrase": "p", "prompt": "no"}


@pytest.mark.parametrize(
    ("kind", "words"),
    [(kind, kind) for kind in ("prompt", "answer", "messages", "text")]
    + [("paraphrased", "paraphrased answer"), ("perturbed", "wrong answers")],
)
def test_a_misspelt_column_is_refused_though_the_row_could_be_read_otherwise(kind, words):
    row = {"prompt": "Who?", "answer": "Ada.", "text": "Who? Ada."}
    with pytest.raises(
        DataError, match=f"has no column 'ouput', which is named as its {words} .*Columns: prompt, answer"
    ):
        examples_of([row], tiny_tokenizer(), columns=LanguageColumns(**{kind: "ouput"}))


def test_not_a_number_is_no_text():
    """Tables of pandas have it where there is nothing."""
    with pytest.raises(DataError, match="Column 'answer' in row 0 of the forget set holds nan"):
        examples_of([{"prompt": "Who?", "answer": math.nan}], tiny_tokenizer())
    row = {"prompt": "Who?", "answer": "Ada.", "paraphrased_answer": math.nan, "perturbed_answer": math.nan}
    assert examples_of([row], tiny_tokenizer())[0].alternatives == ()
    example = examples_of([row | {"perturbed_answer": "Bob."}], tiny_tokenizer())[0]
    assert example.paraphrased is None
    assert [wrong.answer for wrong in example.perturbed] == ["Bob."]


@pytest.mark.parametrize("template", [None, CHATML])
def test_half_a_character_is_no_text(template):
    """JSON can write one of the two parts that a character beyond the first 65,536 has there."""
    for changes, where in (
        ({"prompt": "a \ud83d"}, ""),
        ({"perturbed_answer": ["b", "\ud83d"]}, r" \(perturbed_answer\)"),
    ):
        row = PAIRS[0] | changes
        message = rf"The text in row 1 of the forget set{where} has '\\ud83d', half of a character"
        with pytest.raises(DataError, match=message):
            examples_of([PAIRS[1], row], tiny_tokenizer(template))


ALTERNATIVES = {"paraphrased_answer": "It was Ada.", "perturbed_answer": ["Bob wrote it.", "Cleo did."]}


@pytest.mark.parametrize("template", [None, CHATML])
def test_alternative_answers_are_what_they_would_be_as_rows_of_their_own(template):
    tokenizer = tiny_tokenizer(template)
    example = examples_of([{**PAIRS[0], **ALTERNATIVES, "id": 7}], tokenizer)[0]
    texts = [ALTERNATIVES["paraphrased_answer"], *ALTERNATIVES["perturbed_answer"]]
    alone = examples_of([{"prompt": PAIRS[0]["prompt"], "answer": text} for text in texts], tokenizer)
    assert [answer.identity for answer in example.alternatives] == [answer.identity for answer in alone]
    assert example.paraphrased.answer == texts[0]
    assert [answer.answer for answer in example.perturbed] == texts[1:]
    assert example.metadata == {"id": 7}


def test_alternative_answers_of_messages_and_under_other_names():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    columns = LanguageColumns(paraphrased="other", perturbed="wrong")
    row = {"messages": messages, "other": None, "wrong": "Bye", "paraphrased_answer": "kept"}
    tokenizer = tiny_tokenizer(CHATML)
    example = examples_of([row], tokenizer, columns=columns)[0]
    assert example.paraphrased is None
    assert tokenizer.decode(example.perturbed[0].input_ids) == "<|turn|>user\nHi<|end|>\n<|turn|>assistant\nBye<|end|>"
    assert example.metadata == {"paraphrased_answer": "kept"}


@pytest.mark.parametrize("nothing", [None, float("nan"), "", "  ", np.float64("nan")])
def test_a_row_without_alternative_answers_among_others_has_none(nothing):
    rows = [{**PAIRS[0], **ALTERNATIVES}, {**PAIRS[1], "paraphrased_answer": nothing, "perturbed_answer": nothing}]
    assert [len(example.alternatives) for example in examples_of(rows, tiny_tokenizer())] == [3, 0]


def test_rows_of_numpy_values_are_those_of_plain_ones():
    rows = [{"prompt": "When?", "answer": 3, "perturbed_answer": ["x", "y"]}]
    of_numpy = [{"prompt": "When?", "answer": np.int64(3), "perturbed_answer": np.array(["x", "y"])}]
    assert examples_of(of_numpy, tiny_tokenizer()).sha256 == examples_of(rows, tiny_tokenizer()).sha256


def test_a_list_that_a_table_holds_as_text_is_refused():
    for text in ("['x', 'y']", '["x", "y"]', " ['It\\'s x'] "):
        with pytest.raises(DataError, match=r"'perturbed_answer' in row 0 of the forget set holds a list .* as text"):
            examples_of([{**PAIRS[0], "perturbed_answer": text}], tiny_tokenizer())
    for text in ("[sic]", "[1, 2]", "[]", "['x', 3]"):
        example = examples_of([{**PAIRS[0], "perturbed_answer": text}], tiny_tokenizer())[0]
        assert [answer.answer for answer in example.perturbed] == [text]


def test_bad_alternative_answers():
    with pytest.raises(DataError, match=r"row 0 of the forget set \(perturbed_answer\) is empty"):
        examples_of([{**PAIRS[0], "perturbed_answer": ["x", " "]}], tiny_tokenizer())
    with pytest.raises(DataError, match=r"row 0 of the forget set \(paraphrased_answer\) holds \['x'\]"):
        examples_of([{**PAIRS[0], "paraphrased_answer": ["x"]}], tiny_tokenizer())


def test_alternatives_change_what_is_measured_and_not_what_is_taught():
    tokenizer = tiny_tokenizer()
    plain = examples_of(PAIRS[:2], tokenizer)
    one, other = (
        examples_of([PAIRS[0], {**PAIRS[1], **changes}], tokenizer)
        for changes in (ALTERNATIVES, {"perturbed_answer": ["It was Ada.", "Bob wrote it.", "Cleo did."]})
    )
    assert len({plain.sha256, one.sha256, other.sha256}) == 3
    assert plain.taught_sha256 == one.taught_sha256 == other.taught_sha256 == plain.sha256
    assert plain.sha256 == hashlib.sha256("\x1f".join(example.identity for example in plain).encode()).hexdigest()


def test_the_source_says_how_many_answers_were_cut():
    tokenizer = tiny_tokenizer()
    rows = [{**PAIRS[0], **ALTERNATIVES}, {"prompt": "a", "answer": "b"}]
    whole = examples_of(rows, tokenizer)
    assert whole.source == "here"
    longest = max(len(answer.input_ids) for answer in (whole[0], *whole[0].alternatives))
    assert examples_of(rows, tokenizer, max_length=longest).source == "here"
    cut = examples_of(rows, tokenizer, max_length=longest - 1)
    assert cut.source == f"here, 1 of 5 answers cut at {longest - 1} tokens"


class SlowTokenizer:
    is_fast = False
    chat_template = None


def endless():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


BAD_MESSAGES = [{"role": "user", "content": "Hi"}]
MALFORMED = {
    "empty answer": ([*PAIRS, {"prompt": "a", "answer": " \n"}], {}, "answer in row 5 of the forget set is empty"),
    "missing answer": ([*PAIRS, {"prompt": "a"}], {}, "Column 'answer' in row 5 of the forget set holds None"),
    "answer is a list": ([{"prompt": "a", "answer": ["b"]}], {}, r"holds \['b'\], which is not text"),
    "empty text": ([{"text": ""}], {}, "text in row 0 of the forget set is empty"),
    "one token": ([{"text": "x"}], {}, "single token"),
    "columns": ([{"question": "a", "reply": "b"}], {}, "none of the columns 'prompt' and .*Columns: question, reply"),
    "no rows": ([], {}, r"The forget set is empty \(here\)"),
    "no template": (PAIRS, {"chat_template": True}, "has no chat template"),
    "messages without template": ([{"messages": BAD_MESSAGES}], {}, "need a chat template"),
    "bad template": (PAIRS, {"columns": LanguageColumns(template="{answer}")}, "must hold '{prompt}' once and end"),
    "no answer turn": ([{"messages": BAD_MESSAGES}], {"tokenizer": tiny_tokenizer(CHATML)}, "have the roles user"),
    "no list": ([{"messages": "Hi"}], {"tokenizer": tiny_tokenizer(CHATML)}, "must be a list of objects"),
    "empty chat answer": (
        [{"messages": [*BAD_MESSAGES, {"role": "assistant", "content": ""}]}],
        {"tokenizer": tiny_tokenizer(CHATML)},
        "answer in row 0 of the forget set is empty",
    ),
    "template changes the answer": (
        PAIRS,
        {"tokenizer": tiny_tokenizer(CHATML.replace("trim", "upper"))},
        "chat template changes the answer in row 0",
    ),
    "slow": (PAIRS, {"tokenizer": SlowTokenizer()}, "The tokenizer SlowTokenizer is a slow one"),
    "no end token": (PAIRS, {"tokenizer": endless()}, "no end token"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_rows_give_one_clear_error(case):
    rows, options, message = MALFORMED[case]
    options = {"tokenizer": tiny_tokenizer(), **options}
    with pytest.raises(DataError, match=message):
        examples_of(rows, **options)


def test_tofu_with_a_real_tokenizer():
    rows = load_rows(str(shared_data("tofu/forget01_perturbed.json")))
    tokenizer = AutoTokenizer.from_pretrained(shared_data("gpt2_tokenizer"))
    found = language_examples(rows, tokenizer, name="forget", columns=LanguageColumns("question", "answer"))
    assert len(found) == 40
    assert set(found[0].metadata) == {"paraphrased_question"}
    assert [example.answer for example in found] == [row["answer"] for row in rows]
    assert [example.paraphrased.answer for example in found] == [row["paraphrased_answer"] for row in rows]
    assert [[answer.answer for answer in example.perturbed] for example in found] == [
        row["perturbed_answer"] for row in rows
    ]
    for example in found:
        assert tokenizer.decode(example.input_ids[example.num_prompt_tokens : -1]).strip() == example.answer.strip()


@pytest.mark.parametrize("num_prompt_tokens", [0, 4, 5])
def test_an_example_needs_a_label_and_a_token_before_it(num_prompt_tokens):
    with pytest.raises(DataError, match=rf"has 4 tokens, of which {num_prompt_tokens} belong to the prompt \('q'\)"):
        LanguageExample("q", "a", (1, 5, 9, 20), num_prompt_tokens)
