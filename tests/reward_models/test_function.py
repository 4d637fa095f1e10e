"""Functions in TRL's form and in ours get what they ask for by name; what goes wrong inside is one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from reward_models import FunctionReward, load


PROMPTS, COMPLETIONS = ["2+2?", "1+1?"], [" 4", " 11"]
COLUMNS = {"answer": ["4", "2"], "completion_ids": [[7], [7, 8, 9]], "log_metric": print}
LENGTHS = [2.0, 3.0]


def of_completions(completions, **columns):
    assert set(columns) == {"prompts", *COLUMNS}
    return [len(text) for text in completions]


def other_order(completions, prompts, **kwargs):
    assert prompts == PROMPTS and "prompts" not in kwargs
    return [len(text) for text in completions]


def all_by_name(**kwargs):
    return [len(text) for text in kwargs["completions"]]


def one_column(completions, answer):
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def tokens(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]


def swapped_singular(completion, prompt):
    assert prompt == PROMPTS
    return [len(text) for text in completion]


def own_name_of_prompts(questions, completions):
    assert questions == PROMPTS
    return [len(text) for text in completions]


def own_names(p, c):
    return [len(text) for text in c]


def own_names_and_column(questions, replies, answer, *, absent=1.0):
    assert questions == PROMPTS
    return [absent * (text.strip() == right) for text, right in zip(replies, answer, strict=True)]


def own_names_and_all(questions, replies, **columns):
    assert questions == PROMPTS and set(columns) == set(COLUMNS)
    return [len(text) for text in replies]


def only_positions(p, c, /):
    return [len(text) for text in c]


async def waits(completions, **kwargs):
    await asyncio.sleep(0)
    return [len(text) for text in completions]


class Callable:
    def __call__(self, completions, **kwargs):
        return [len(text) for text in completions]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        *((f, LENGTHS) for f in (of_completions, other_order, all_by_name, swapped_singular, own_names, waits)),
        *((f, LENGTHS) for f in (own_name_of_prompts, own_names_and_all, only_positions, Callable())),
        (one_column, [1.0, 0.0]),
        (own_names_and_column, [1.0, 0.0]),
        (tokens, [1.0, 3.0]),
        (lambda *texts: [len(text) for text in texts[1]], LENGTHS),
        (lambda prompts, completions: (len(text) for text in completions), LENGTHS),
        (lambda prompts, completions: torch.tensor([len(text) for text in completions]), LENGTHS),
        (lambda prompts, completions: [len(text) > 2 for text in completions], [0.0, 1.0]),
    ],
)
def test_a_function_gets_what_it_asks_for(function, expected):
    model = FunctionReward(function, name="f")
    for _ in range(2):
        assert model.score(PROMPTS, COMPLETIONS, COLUMNS) == expected


def test_an_async_function_runs_where_a_loop_runs_as_in_a_notebook():
    async def cell():
        return FunctionReward(waits, name="f").score(["2+2?"], [" 4"])

    with ThreadPoolExecutor(1) as thread:  # in this one a browser test may have left a loop
        assert thread.submit(asyncio.run, cell()).result() == [2.0]


def test_what_a_function_does_to_its_lists_is_its_own():
    prompts, completions = list(PROMPTS), list(COMPLETIONS)

    def clears(prompts, completions):
        scores = [len(text) for text in completions]
        prompts.clear()
        completions.clear()
        return scores

    assert FunctionReward(clears).score(prompts, completions) == LENGTHS
    assert (prompts, completions) == (PROMPTS, COMPLETIONS)


def test_an_option_wins_over_a_column_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "limited.py").write_text(
        "def f(completions, limit):\n    return limit if isinstance(limit, list) else [limit] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load("limited:f", options={"limit": 3}).score(["p"], ["c"], {"limit": [9]}) == [3.0]
    assert load("limited:f").score(["p"], ["c"], {"limit": [9]}) == [9.0]


def test_a_function_of_messages_gets_trls_form():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    seen = []

    def judge(prompts, completions, **kwargs):
        seen.extend(zip(prompts, completions, strict=True))
        return [len(completion[0]["content"]) for completion in completions]

    model = FunctionReward(judge, template="chat")
    assert model.reads_turns and model.score(["2+2?", turns], [" 4", "Hello"]) == [1.0, 5.0]
    assert seen == [
        ([{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": "4"}]),
        (turns, [{"role": "assistant", "content": "Hello"}]),
    ]
    with pytest.raises(ValueError, match=r"the template of the function 'judge' is '{prompt}'; expected chat"):
        FunctionReward(judge, template="{prompt}")


def test_a_reward_function_of_trl_itself():
    pytest.importorskip("trl")
    text = "<think>\nhm\n</think>\n4"
    assert load("trl.rewards:think_format_reward", template="chat").score(["p", "p"], [text, "4"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"raised TypeError: .*; texts are given, and lists of messages, as TRL gives"):
        load("trl.rewards:think_format_reward").score(["p"], [text])


@pytest.mark.parametrize(
    ("function", "columns", "message"),
    [
        (
            lambda completions, answer: [0.0],
            {},
            "missing a required .*'answer'; .* because the data has no other column",
        ),
        (lambda completions, answer: [0.0], {"solution": ["4"]}, "missing a required .*'answer'; .* by name, solution"),
        (lambda prompts: [0.0], {}, "'f' cannot be called: too many positional arguments"),
        (lambda p, **more: [0.0], {}, "'f' cannot be called: too many positional arguments"),
        (lambda completions, solution, **more: [0.0], {}, "missing a required .*'solution'"),
        (lambda p, c, d: [0.0], {}, "missing a required .*'d'"),
    ],
)
def test_a_function_that_asks_for_more_than_there_is(function, columns, message):
    model = FunctionReward(function, name="f")
    with pytest.raises(ValueError, match=message):
        model.score(["p"], ["c"], columns)
    with pytest.raises(ValueError, match=message):
        model.check_form(list(columns))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({0: 1.0, 1: 2.0}, "dict is no list"),
        ({1.0, 2.0}, "set is no list"),
        (1.0, "'float' object is not iterable"),
        (["1.5", "2"], "expected numbers, not texts"),
        ("12", "str is no list"),
        ([1.0, None], "None, for 'does not apply', would leave a gap: return a number for every pair"),
        (torch.ones(2, 2), "expected one number per prompt"),
        ([1j, 2], "expected one number per prompt"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(returned, message):
    with pytest.raises(ValueError, match=f"reward model 'f' returned .*{message}"):
        FunctionReward(lambda prompts, completions: returned, name="f").score(PROMPTS, COMPLETIONS)


def test_an_error_inside_names_function_row_and_place(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text(
        "def numbers(prompts, completions, answer):\n"
        "    return [float(text == right) / (len(text) - 1)\n"
        "            for text, right in zip(completions, answer)]\n"
        "def leaves(completions, **kwargs):\n"
        "    raise SystemExit(0)\n"
        "def together(p, c):\n"
        "    return [1.0] if len(p) == 1 else [][1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    columns = {"answer": ["a", "b", "c"]}
    with pytest.raises(ValueError, match=r"one"):
        load("failing:numbers").score(["one"], ["x"], {"answer": ["a"]})
    with pytest.raises(ValueError) as error:
        load("failing:numbers").score(["first", "second", "third"], ["ab", "b", "c"], columns)
    assert str(error.value) == (
        "the reward function 'numbers' raised ZeroDivisionError: float division by zero (failing.py, line 2) at the "
        "row with the prompt 'second' and the completion 'b'"
    )
    with pytest.raises(ValueError, match=r"'leaves' raised SystemExit: 0 \(failing.py, line 5\) at the row with"):
        load("failing:leaves").score(["a"], ["b"])
    with pytest.raises(ValueError, match=r"IndexError.*line 7\) at the first of 2 rows, none of which fails alone"):
        load("failing:together").score(["a", "b"], ["c", "d"])
    with pytest.raises(KeyboardInterrupt):
        FunctionReward(lambda p, c: (_ for _ in ()).throw(KeyboardInterrupt()), name="f").score(["a"], ["b"])


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "beside_me.py").write_text("import sibling_of_it\ndef f(p, c):\n    return sibling_of_it.scores(c)\n")
    (tmp_path / "sibling_of_it.py").write_text("def scores(c):\n    return [float(len(text)) for text in c]\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert load("beside_me:f").score(PROMPTS, COMPLETIONS) == LENGTHS


def test_what_a_function_sets_for_all_of_torch_ends_with_it():
    def rude(completions, **_):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        if not completions[0]:
            raise RuntimeError("it fails, too")
        return [1.0] * len(completions)

    reward = FunctionReward(rude)
    for completion in ("a", ""):
        with contextlib.suppress(ValueError):
            reward.score(["q"], [completion])
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32


def test_a_class_is_no_function():
    class Brevity:
        def __call__(self, prompts, completions):
            return [-float(len(text)) for text in completions]

    assert FunctionReward(Brevity(), name="brevity").score(["q"], ["ab"]) == [-2.0]
    with pytest.raises(ValueError, match="'Brevity' is a class: name a function, or an object of the class"):
        FunctionReward(Brevity).check_form([])
