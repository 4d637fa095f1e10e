"""A language model that grades: its probabilities by hand, whatever the batch, and what is refused or told."""

from __future__ import annotations

import logging
import math
import string

import pytest
import torch

from reward_models import Generative, Grader, RewardModel, load
from reward_models.grading import GradeEncoder, Grading
from reward_models.next_token import continuations
from tests import tiny


CHARACTERS = string.ascii_letters + string.digits + " .,:;|?!'<>/\n"
QUESTION = "{prompt}|{completion}|"
GRADES = {"1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0, "5": 5.0}
ASKED = ["how do I boil an egg? put it in hot water.", "the cat", "a short one is good, and the cat sat on the mat"]
SAID = [" the dog looked at it \n", "a mat 1 2 3", "no"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    "llama": {**SMALL, "num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},  # learned positions
    "mistral": {**SMALL, "num_key_value_heads": 1, "sliding_window": 5},
    "gemma2": {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 3.0},  # squashed logits
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},  # no positions are given to it
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},  # runs over padding, too
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.character_tokenizer(CHARACTERS)


@pytest.fixture(scope="module")
def make_model(tokenizer):
    """Returns a maker of tiny random language models by transformers' model type."""

    def make(kind="llama", **changes):
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        tokens = {
            "vocab_size": len(tokenizer), "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD, "bos_token_id": None,
            "max_position_embeddings": 256,
        }  # fmt: skip
        config = AutoConfig.for_model(kind, **{**tokens, **KINDS[kind], **changes})
        return tiny.widened(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))

    return make


@pytest.fixture(scope="module")
def make(make_model, tokenizer):
    """Returns a maker of reward models of these tiny models, which ask a short question."""

    def made(kind="llama", batch_size=32, **options):
        given = {"question": QUESTION, **options}
        return Generative(make_model(kind), tokenizer, Grading("graded", **given), batch_size=batch_size)

    return made


def next_logs(model, ids):
    """The log-probabilities of the next token in float64, of one unpadded text, without a cache."""
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits.log_softmax(dim=0)


def by_hand(model, tokenizer, texts, answer="Grade: "):
    """The expected grade after each text: one after the other, grade by grade."""
    scores = []
    for text in texts:
        ids = tokenizer(text + answer)["input_ids"]
        logs = next_logs(model, ids)
        p = {grade: math.exp(logs[tokenizer(grade)["input_ids"][0]]) for grade in GRADES}
        scores.append(sum(value * p[grade] for grade, value in GRADES.items()) / sum(p.values()))
    return scores


def questions():
    return [f"{prompt}|{said.strip()}|" for prompt, said in zip(ASKED, SAID, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_expected_grade_by_hand_whatever_the_batch(make, make_model, tokenizer, kind):
    expected = by_hand(make_model(kind), tokenizer, questions())
    assert max(expected) - min(expected) > 1e-3
    for batch_size in (1, 2, 32):
        made = make(kind, batch_size)
        assert isinstance(made, RewardModel)
        assert made.score(ASKED, SAID) == pytest.approx(expected, abs=1e-5)
        assert made.score(ASKED[1:2], SAID[1:2]) == pytest.approx(expected[1:2], abs=1e-5)


def greedy_by_hand(model, tokenizer, text, most):
    """What the model writes in float64, one token after the other, each time from the start."""
    ids, written = tokenizer(text)["input_ids"], []
    while len(written) < most:
        token = int(next_logs(model, [*ids, *written]).argmax())
        if token == tiny.EOS:
            break
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_the_grade_comes_after_what_the_model_writes(make, make_model, tokenizer, kind):
    exact = make_model(kind)
    reasons = [greedy_by_hand(exact, tokenizer, text, 6).strip() for text in questions()]
    texts = [f"{text}{said}\n" if said else text for text, said in zip(questions(), reasons, strict=True)]
    expected = by_hand(exact, tokenizer, texts)
    assert any(reasons) and expected != pytest.approx(by_hand(exact, tokenizer, questions()), abs=1e-4)
    for batch_size in (1, 2, 32):
        assert make(kind, batch_size, reasoning=6).score(ASKED, SAID) == pytest.approx(expected, abs=1e-5)


def test_a_text_ends_where_its_model_ends_it(make_model, tokenizer):
    """Where one of the tokens that it writes is made an end, each text stops before it."""
    model = make_model()
    rows = [tokenizer(text)["input_ids"] for text in questions()]
    settings = {"most": 6, "pad_token_id": tiny.PAD, "batch_size": 2}
    whole = continuations(model, rows, eos_token_ids=[], **settings)
    assert [len(row) for row in whole] == [6, 6, 6]
    end = whole[0][3]
    cut = [row[: min((row.index(token) for token in {end, tiny.EOS} & {*row}), default=6)] for row in whole]
    assert len(cut[0]) <= 3
    assert continuations(model, rows, eos_token_ids=[end, tiny.EOS], **settings) == cut


def test_what_a_model_brings_for_its_own_generation_does_not_count(make):
    plain, other = make(reasoning=6), make(reasoning=6)
    other.model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=3.0, min_new_tokens=5)
    assert other.score(ASKED, SAID) == plain.score(ASKED, SAID)
    assert other.model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("changes", [{"padding_side": "right"}, {"pad_token": None}, {"pad_token": "<eos>"}])
def test_how_a_tokenizer_pads_does_not_matter(make, make_model, changes):
    expected, tokenizer = make().score(ASKED, SAID), tiny.character_tokenizer(CHARACTERS)
    for key, value in changes.items():
        setattr(tokenizer, key, value)
    other = Generative(make_model(), tokenizer, Grading("graded", question=QUESTION), batch_size=2)
    assert other.score(ASKED, SAID) == pytest.approx(expected, abs=1e-6)


def test_reasons_end_where_the_model_gives_its_grade(make, tokenizer, monkeypatch):
    said = "It boils.\n**Grade:** 3\nGrade: 5"
    monkeypatch.setattr(
        "reward_models.next_token.continuations", lambda model, rows, **_: [tokenizer(said)["input_ids"]] * len(rows)
    )
    made = make(reasoning=50)
    (expected,) = by_hand(make().model, tokenizer, [f"{questions()[0]}It boils.\n"])
    assert made.score(ASKED[:1], SAID[:1]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("reasoning", [0, 40])
def test_a_prompt_that_is_too_long_loses_its_start(make, tokenizer, reasoning):
    made = make("gpt2", reasoning=reasoning)
    cue = len("Grade: ")
    assert made.encoder.max_length == 256 - cue - reasoning
    long = "x" * 300 + "the end"
    room = made.encoder.max_length - len("|yes|")
    assert tokenizer.decode(made.encoder.encode(long, "yes")) == f"{long[-room:]}|yes|"
    assert made.truncated == 1
    turns = [{"role": "user", "content": long}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    assert tokenizer.decode(made.encoder.encode(turns, "yes")) == "b|yes|"
    short = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}, turns[-1]]
    assert tokenizer.decode(made.encoder.encode(short, "yes")) == "User: x\n\nAssistant: a\n\nUser: b|yes|"
    made.encoder.shown(long, "yes")
    assert made.truncated == 2, "looking is not scoring"
    (score,) = made.score([long], ["y" * 300])  # a completion that does not fit alone keeps its beginning
    assert 1 < score < 5 and made.truncated == 3


def test_reasons_that_take_more_tokens_than_were_written_are_cut(make):
    made = make("gpt2", reasoning=4)
    question = made.encoder.encode("x" * 300, "yes")
    row = made.encoder.graded(question, "abcdefgh")
    assert len(row.token_ids) == 256 and made.tokenizer.decode(row.token_ids).endswith("|yes|abc\nGrade: ")


def test_a_model_that_would_say_something_else_is_told_once(make, caplog):
    caplog.set_level(logging.WARNING)
    made = make()
    made.score(ASKED, SAID)
    made.score(ASKED, SAID)
    assert (made.graded, made.strayed) == (6, 6)
    (told,) = [record.getMessage() for record in caplog.records if "its grades" in record.getMessage()]
    share = float(made.grade_log_probabilities(ASKED, SAID).exp().sum(dim=1).mean())
    assert f"'graded' has {share:.2g} of its probability on its grades (1, 2, 3, 4, 5; mean of 3)" in told
    # Of all characters: what is left is for the three special tokens.
    caplog.clear()
    every = {character: float(i) for i, character in enumerate(CHARACTERS) if character.strip()}
    sure = make(grades=every)
    shares = sure.grade_log_probabilities(ASKED, SAID).exp().sum(dim=1)
    sure.score(ASKED, SAID)
    assert sure.strayed == int((shares < 0.5).sum()) == 0 and not caplog.records


def test_words_are_worth_what_is_said(make, make_model, tokenizer):
    made = make(grades={"Yes": 1, "No": 0}, cue="")
    logs = next_logs(make_model(), tokenizer(questions()[0])["input_ids"])
    yes, no = (math.exp(logs[tokenizer(letter)["input_ids"][0]]) for letter in "YN")
    assert made.score(ASKED[:1], SAID[:1]) == pytest.approx([yes / (yes + no)], abs=1e-6)


def test_the_words_are_those_of_a_judge(make):
    rubric = "Better is what says {more}."
    judge = load("judge:http://host/v1", options={"model": "m", "rubric": rubric, "scale": [1, 5]})
    assert isinstance(judge, Grader)
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    reasoned, at_once = (Grading("g", rubric=rubric, reasoning=n).text(turns, " {x} ", {}) for n in (1, 0))
    assert reasoned == judge.shown(turns, "{x}")
    assert at_once.partition("Answer with")[0] == reasoned.partition("Give your reasons")[0]
    assert at_once.endswith("alone, a number from 1 to 5, where 5 is best, in this form:\nGrade: NUMBER")
    words = Grading("g", rubric=rubric, grades={"Yes": 1, "No": 0, "Partly": 0.5}).text("p", "c", {})
    assert "alone, one of No, Partly, Yes, from worst to best, in this form:\nGrade: GRADE" in words


def test_a_chat_template_is_used_and_a_system_prompt_stands_first(make_model):
    tokenizer = tiny.character_tokenizer(CHARACTERS)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
        "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    encoder = GradeEncoder(make_model().config, tokenizer, Grading("g", question=QUESTION, system="You grade."))
    assert encoder.shown("p", "c") == "<system>You grade.\n<user>p|c|\n<assistant>Grade: "
    reasons = GradeEncoder(make_model().config, tokenizer, Grading("g", question=QUESTION, reasoning=3))
    assert reasons.shown("p", "c") == "<user>p|c|\n<assistant>...\nGrade: "
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ValueError, match=r"refuses what it is asked .*no system here"):
        encoder.encode("p", "c")


def test_a_token_with_the_blank_before_it_is_found(make_tokenizer):
    from transformers import LlamaConfig

    tokenizer = make_tokenizer("encoder")  # of pieces, and it adds tokens to a text's start and end
    encoder = GradeEncoder(LlamaConfig(), tokenizer, Grading("g", rubric="r"))
    assert tokenizer.decode(encoder.at_once.token_ids).rstrip() == "Grade:"
    assert [tokenizer.decode([token]).strip() for token in encoder.at_once.grades] == list(GRADES)
    question = tokenizer.decode(encoder.encode("p", "c"))
    assert question.startswith("<bos>Grade the reply") and question.endswith("NUMBER\n\n"), "no <eos> where it answers"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "generative has neither of the options rubric and question; expected"),
        ({"rubric": "r", "question": QUESTION}, "has both of the options rubric and question"),
        ({"rubric": " "}, "option rubric of generative is ' '; expected a text"),
        ({"question": "{prompt}"}, "option question of generative: the template '{prompt}' has no {completion}"),
        ({"question": "chat"}, "option question of generative is 'chat'; expected all that is asked"),
        ({"rubric": "r", "cue": "Yes?"}, "asks for 'Grade:'; leave it out"),
        ({"rubric": "r", "reasoning": -1}, "option reasoning of generative is -1; expected a number of tokens"),
        ({"rubric": "r", "reasoning": True}, "option reasoning of generative is True"),
        ({"question": QUESTION, "cue": "", "reasoning": 3}, "has reasoning and an empty cue"),
        ({"rubric": "r", "grades": [True, False]}, "YAML reads Yes and No as true and false; write them in quotes"),
        ({"rubric": "r", "grades": {True: 1, False: 0}}, "YAML reads Yes and No as true and false"),
        ({"rubric": "r", "grades": [3]}, r"option grades of generative is \[3\]; expected two numbers or more"),
        ({"rubric": "r", "grades": [1, 1]}, r"option grades of generative is \[1, 1\]"),
        ({"rubric": "r", "grades": {"a": 1, "b": 1}}, "option grades of generative is"),
        ({"rubric": "r", "grades": {"a": 1, 2: 0}}, "or texts in quotes with the numbers"),
        ({"rubric": "r", "grades": "1-5"}, "option grades of generative is '1-5'"),
        ({"rubric": "r", "scale": [1, 5]}, "has no option 'scale'; known: rubric, question, grades"),
    ],
)
def test_a_wrong_setting_is_refused_before_weights_are_read(options, told):
    with pytest.raises(ValueError, match=told.replace("{", r"\{").replace("?", r"\?")):
        load("generative:nowhere/at/all", options=options)


def test_keys_of_classifiers_are_refused():
    for key, value in {"template": "chat", "label": 1}.items():
        with pytest.raises(ValueError, match=f"has {key} .*leave it out"):
            load("generative:owner/model", options={"rubric": "r"}, **{key: value})
    with pytest.raises(ValueError, match="names no language model; expected generative:FOLDER"):
        load("generative:", options={"rubric": "r"})
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load("generative:./nowhere", options={"rubric": "r"})


def test_grades_that_one_token_does_not_tell_apart_are_refused(make, make_model, tokenizer):
    with pytest.raises(ValueError, match="the grades '1' and '10' of graded begin with the same token"):
        make(grades=list(range(1, 11)))
    with pytest.raises(ValueError, match="the grades 'good' and 'great' of graded begin with the same token"):
        make(grades={"good": 1, "great": 2, "bad": 0})
    with pytest.raises(ValueError, match="reasoning of graded is 250, but the model reads 256 tokens"):
        make("gpt2", reasoning=250)
    with pytest.raises(ValueError, match=r"system prompt 'You\.', but its tokenizer has no chat template"):
        make(system="You.")
    with pytest.raises(ValueError, match="is longer than the 249 tokens that it reads, without any prompt"):
        make("gpt2", question="x" * 300 + "{completion}").score(["p"], ["c"])
    with pytest.raises(ValueError, match="batch size of reward model 'graded' is 0"):
        make(batch_size=0)


def test_a_grade_that_the_tokenizer_does_not_know_is_refused(make):
    """Its probability would have been that of any unknown text."""
    with pytest.raises(
        ValueError, match=r"the grade 'ü' of graded begins with what its tokenizer does not know \(<unk>"
    ):
        make(grades={"good": 1, "ü": 0})


def test_nothing_is_scored_without_a_pair(make):
    assert make().score([], []) == make(reasoning=3).score([], []) == []


@pytest.mark.parametrize(
    ("kind", "told"), [("bert", r"is an encoder \(bert\)"), ("t5", r"is an encoder-decoder \(t5\)")]
)
def test_a_model_that_reads_what_comes_later_is_refused(tokenizer, tmp_path, kind, told):
    """transformers makes a language model of a masked one, whose scores said nothing."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    shapes = {
        "bert": {**SMALL, "vocab_size": len(tokenizer)},
        "t5": {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    }
    maker = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}[kind]
    model = maker.from_config(AutoConfig.for_model(kind, **shapes[kind]))
    folder = tiny.save(model, tokenizer, tmp_path / "judge")
    with pytest.raises(ValueError, match=f"judge {told}; expected a causal language model"):
        load(f"generative:{folder}", options={"question": QUESTION})
    if kind == "bert":
        with pytest.raises(ValueError, match=f"reward model 'graded' {told}"):
            Generative(model, tokenizer, Grading("graded", question=QUESTION))


def test_a_folder_and_an_adapter_are_loaded(make, make_model, tokenizer, tmp_path):
    folder = tiny.save(make_model(), tokenizer, tmp_path / "judge")
    loaded = load(f"generative:{folder}", options={"question": QUESTION})
    expected = make().score(ASKED, SAID)
    assert loaded.name == "generative" and loaded.score(ASKED, SAID) == pytest.approx(expected, abs=1e-5)
    half = load(f"generative:{folder}", options={"question": QUESTION}, dtype="bfloat16", name="half", batch_size=2)
    assert half.name == "half" and half.model.dtype == torch.bfloat16 and half.batch_size == 2
    assert half.score(ASKED, SAID) == pytest.approx(loaded.score(ASKED, SAID), abs=0.2)
    adapter = tiny.save_adapter(folder, tmp_path / "adapter", seed=1)
    from peft import AutoPeftModelForCausalLM

    adapted = AutoPeftModelForCausalLM.from_pretrained(adapter)
    expected = by_hand(adapted, tokenizer, questions())
    assert expected != pytest.approx(loaded.score(ASKED, SAID), abs=1e-2)
    score = load(f"generative:{adapter}", options={"question": QUESTION}).score(ASKED, SAID)
    assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_is_no_language_model_and_the_other_way_round(make_model, tokenizer, tmp_path, tied):
    from transformers import AutoModelForSequenceClassification

    model = make_model(tie_word_embeddings=tied)
    folder = tiny.save(model, tokenizer, tmp_path / "judge")
    with pytest.raises(ValueError, match="or write generative: before it to let a language model grade"):
        load(folder)
    config = model.config
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config)
    tiny.save(classifier, tokenizer, tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"classifier is a classifier \(LlamaForSequenceClassification\).*without gen"):
        load(f"generative:{tmp_path / 'classifier'}", options={"rubric": "r"})
    config.architectures = None  # as of a config that does not say so
    config.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"classifier holds score\.weight, the head of a classifier"):
        load(f"generative:{tmp_path / 'classifier'}", options={"rubric": "r"})
