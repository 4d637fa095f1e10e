"""A chat model as a judge: a real server answers its questions, in order and out of it, readably and not."""

from __future__ import annotations

import re

import pytest

from reward_models import Comparer, Grader, RewardModel, load, service
from reward_models.conversation import conversation_text
from reward_models.judge_prompts import AGAIN
from tests.served import Answer, served


RUBRIC = "Better is what says {more}."  # braces are just characters
TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "so?"}]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(service, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def between(tag, text):
    return re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)[1]


def said(text):
    return Answer(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})


def grades(request):
    """One more than the number of `a` in the reply; a reply with `mute` gets its grade when asked again."""
    first, *later = [turn["content"] for turn in request.body["messages"]]
    reply = between("reply", first)
    if "never" in reply or ("mute" in reply and not later):
        return said("I would rather not say. Grade: 99" if "never" in reply else None)
    assert not later or later[-1] == AGAIN
    return said(f"The reply says Grade: 1 of itself. So:\n**Grade:** {1 + reply.count('a')}")


def compares(request):
    """The longer reply is better, equally long ones are equal; `first` is always found first."""
    first = request.body["messages"][0]["content"]
    a, b = between("reply_a", first), between("reply_b", first)
    if "never" in a + b:
        return said("Both are fine")
    verdict = "A" if len(a) > len(b) or "first" in a + b else "B" if len(b) > len(a) else "tie"
    return said(f"Verdict: A would be hasty.\nVerdict: {verdict}")


@pytest.fixture
def make():
    """Returns a maker of judges behind this server."""

    def make(server, **options):
        given = {"model": "m", "rubric": RUBRIC, "retries": 0, **options}
        return load(f"judge:{server.address}/v1", name="judged", options=given)

    return make


def test_a_completion_has_its_grade(make):
    with served(grades) as server:
        judge = make(server, sampling={"temperature": 0.5, "max_tokens": 99})
        assert isinstance(judge, Grader) and isinstance(judge, RewardModel)
        assert judge.score(["p", TURNS, "q"], [" banana\n", "a", "mute aa"]) == [4.0, 2.0, 3.0]
        assert judge.unread == 1 and len(server.requests) == 4
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    body = next(r.body for r in server.requests if "banana" in str(r.body))
    assert body.keys() == {"model", "messages", "temperature", "max_tokens"}
    (question,) = [turn["content"] for turn in body["messages"]]
    assert question == judge.shown("p", "banana") and RUBRIC in question and "from 1 to 10" in question
    of_turns = next(r.body["messages"][0]["content"] for r in server.requests if "2+2" in str(r.body))
    assert between("conversation", of_turns) == "User: 2+2?\n\nAssistant: 4\n\nUser: so?" == conversation_text(TURNS)


@pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions/"])
@pytest.mark.parametrize("query", ["", "?api-version=2024-06-01"])
def test_an_address_may_be_cut_and_have_a_query(end, query):
    judge = load(f"judge:https://host/deployments/d{end}{query}", options={"model": "m", "rubric": "r"})
    assert judge.service.url == f"https://host/deployments/d/chat/completions{query}"


def test_braces_and_tags_in_texts_are_characters(make):
    with served(grades) as server:
        question = make(server).shown("{reply} {0}", "{rubric} {")
    assert between("conversation", question) == "{reply} {0}" and between("reply", question) == "{rubric} {"


def test_a_grade_that_cannot_be_read_is_no_score(make):
    with (
        served(grades) as server,
        pytest.raises(ValueError, match=r"no grade from 1 to 10 in 3 answers, for the prompt"),
    ):
        make(server).score(["p"], ["never"])
    assert len(server.requests) == 3
    for answer in ({"choices": []}, said([{"type": "text", "text": "Grade: 3"}]).content):
        with (
            served(lambda request, answer=answer: Answer(200, answer)) as server,
            pytest.raises(ValueError, match="not the form of OpenAI's chat completions"),
        ):
            make(server).score(["p"], ["a"])


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("Grade: 7", 7.0),
        ("**Grade:** 7", 7.0),
        ("**Grade**: 7", 7.0),
        ("`Grade` = **7**/10", 7.0),
        ("Grade: [[7]]", 7.0),
        ("__Grade__: **[[ 7.5 ]]**", 7.5),
        ("Grade: +3", 3.0),
        ("Grade: -3.", -3.0),
        ("Grade: 8,5", 8.5),
        ("Grade: 8, for it is short", 8.0),
        ("Grade: 2. No:\nGrade: 1,000", None),  # a thousand, or one
        ("Grade [1-10]: 7", None),
        ("Grade: great", None),
    ],
)
def test_a_grade_is_read_as_judges_write_it(make, answer, grade):
    with served(lambda request: said(answer)) as server:
        judge = make(server, scale=[-10, 1000])
        if grade is not None:
            assert judge.score(["p"], ["a"]) == [grade] and judge.unread == 0
        else:
            with pytest.raises(ValueError, match="gave no grade from -10 to 1000 in 3 answers"):
                judge.score(["p"], ["a"])


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("Verdict: A", 1.0),
        ("**Verdict**: B", 0.0),
        ("Verdict: [[A]]", 1.0),
        ("Verdict: **A** is better", 1.0),
        ("verdict: b is better", 0.0),
        ("Verdict: A, for it is short", 1.0),
        ("Verdict: tie", 0.5),
        ("Verdict: a tie", 0.5),
        ("**Verdict**: A **tie**.", 0.5),
        ("Verdict: [[Tie]]", 0.5),
        ("Verdict: A\nTie was close.", 1.0),
        ("Verdict: a close win for B", 0.0),
        ("Verdict: A draw", 0.5),
        ("Verdict: A because it is shorter", 1.0),
        ("Verdict: B has the edge", 0.0),
        ("Verdict: B over A", 0.0),
        ("Draft verdict: B.\nVerdict: A because it is shorter", 1.0),
        ("The verdict: tie? No.\nVerdict: B since A rambles", 0.0),
        ("Verdict: neither", None),
    ],
)
def test_a_verdict_is_read_as_judges_write_it(make, answer, outcome):
    back = {1.0: "B", 0.0: "A"}.get(outcome, "tie")  # where the other reply stands first

    def says(request):
        first = between("reply_a", request.body["messages"][0]["content"])
        return said(answer if first == "own" else f"Verdict: {back}")

    with served(says) as server:
        judge = make(server, against="sft")
        assert judge.score(["p"], ["own"], {"rival": ["other"]}) == [0.5 if outcome is None else outcome]
        assert judge.undecided == (outcome is None) and judge.changed == 0


def test_a_grade_off_the_scale_is_asked_for_again(make):
    with served(grades) as server:
        judge = make(server, scale=[0, 2])
        assert judge.score(["p"], ["a"]) == [2.0]
        with pytest.raises(ValueError, match="no grade from 0 to 2"):
            judge.score(["p"], ["aaa"])


def test_the_better_one_wins_in_both_orders_or_it_is_a_tie(make):
    with served(compares) as server:
        judge = make(server, against="sft")
        assert isinstance(judge, Comparer) and isinstance(judge, RewardModel)
        own = ["long one", "no", "same", "abcd", "first", "never"]
        rival = ["short", "longer", " same\n", "wxyz", "is first", "x"]
        assert judge.score(["p"] * 6, own, {"rival": rival}) == [1.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    # Equal texts are not asked for; the others in both orders, and what could not be read twice more in each.
    assert len(server.requests) == 2 * 5 + 2 * 2
    assert (judge.compared, judge.changed, judge.undecided, judge.unread) == (5, 1, 1, 6)


def test_who_compares_needs_others(make):
    with served(compares) as server:
        for columns in (None, {"answer": ["a"]}):
            with pytest.raises(ValueError, match="give it to rlhf-lines score, or leave out the option against"):
                make(server, against=3).score(["p"], ["a"], columns)
        assert server.requests == []


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ("judge:model", {}, "names no address; expected one as in judge:http://localhost:8000/v1"),
        ("judge:http://host/v1", {"rubric": "r"}, "option model of judge is None; expected a text"),
        ("judge:http://host/v1", {"model": "m", "rubric": " "}, "option rubric of judge is ' '; expected a text"),
        ("judge:http://host/v1", {"rubic": "r"}, "no option 'rubic'; did you mean 'rubric'"),
        ("judge:http://host/v1", {"model": "m", "rubric": "r", "scale": [5, 1]}, r"scale of judge is \[5, 1\]"),
        ("judge:http://host/v1", {"model": "m", "rubric": "r", "scale": [1, 5], "against": "sft"}, "gives no grade"),
        ("judge:http://host/v1", {"model": "m", "rubric": "r", "against": True}, "against of judge is True"),
        ("judge:http://host/v1", {"model": "m", "rubric": "r", "against": ""}, "the name of a group, or the id of a"),
        ("judge:http://host/v1", {"model": "m", "rubric": "r", "sampling": {"n": 2}}, "holds 'n', which is not its"),
        ("judge:http://host/v1", {"model": "m", "rubric": "r", "timeout": -1}, "timeout of judge is -1"),
        ("judge:http://me:secret@host/v1", {"model": "m", "rubric": "r"}, "holds a name or password"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_sent(source, options, told):
    with pytest.raises(ValueError, match=told):
        load(source, options=options)
    with pytest.raises(ValueError, match="has label 1, but a judge has its weights and prompts elsewhere"):
        load("judge:http://host/v1", options={"model": "m", "rubric": "r"}, label=1)
