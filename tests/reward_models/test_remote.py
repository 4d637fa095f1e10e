"""Reward models behind an address: a real server speaks each form and fails in each way; no failure is a score."""

from __future__ import annotations

import json
import math
import threading

import pytest

from reward_models import Classifier, Format, RemoteReward, RewardModel, load, service
from reward_models.remote import OPTIONS
from reward_models.wire import WIRES
from tests.served import Answer, served


PROMPTS = ["the cat", "a dog", "the cat", "how do I boil an egg?"]
COMPLETIONS = [" sat", " is good", " looked at the dog", " put it in hot water"]
TURNS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
NAMES = ("helpful", "honest", "brief")
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(service, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def classifiers(make_model, make_tokenizer):
    """Returns a maker of local classifiers, of a model with one output or of one with three that have names."""
    names = dict(enumerate(NAMES))
    one, three = make_model("gpt2", num_labels=1), make_model("gpt2", num_labels=3, id2label=names)
    three.config.label2id = {name: i for i, name in names.items()}

    def make(template, label=0, num_labels=3):
        tokenizer = make_tokenizer("bos")
        tokenizer.chat_template = CHAT
        return Classifier(one if num_labels == 1 else three, tokenizer, Format(template, label=label), name="local")

    return make


def outputs(classifiers, template, prompts, completions, num_labels=3):
    """The outputs of the local classifier, by pair."""
    columns = [classifiers(template, label, num_labels).score(prompts, completions) for label in range(num_labels)]
    return [list(row) for row in zip(*columns, strict=True)]


def speaks(classifiers):
    """A server of that classifier, in the form of the path; rows come in another order where they have an index."""

    def answer(request):
        body, raw = request.body, {"use_activation": False}
        path = request.path.removeprefix("/v1").partition("?")[0]
        if path == "/get_reward":
            assert set(body) == {"query", "prompts", "labels"} and len(body["labels"]) == len(body["query"])
            found = outputs(classifiers, "{completion}", body["prompts"], body["query"], 1)
            return Answer(200, {"rewards": [row[0] for row in found], "extra_logs": {}})
        if path in ("/classify", "/pooling"):
            assert raw.items() <= body.items()
            if "messages" in body:
                *prompt, last = body["messages"]
                found = outputs(classifiers, "chat", [prompt], [last["content"]])
            else:
                found = outputs(classifiers, "{completion}", body["input"], body["input"])
            if path == "/classify":
                rows = [{"index": i, "label": None, "probs": row, "num_classes": 3} for i, row in enumerate(found)]
            else:  # the outputs by token, as of a token-wise reward model
                rows = [{"index": i, "object": "pooling", "data": [[9.0] * 3, row]} for i, row in enumerate(found)]
            return Answer(200, {"object": "list", "model": body.get("model"), "data": rows[::-1]})
        if path == "/score":
            assert raw.items() <= body.items()
            found = outputs(classifiers, ("{prompt}", "{completion}"), body["text_1"], body["text_2"], 1)
            rows = [{"index": i, "object": "score", "score": row[0]} for i, row in enumerate(found)]
            return Answer(200, {"data": rows[::-1]})
        assert body["raw_scores"] is True
        if path == "/predict":
            pairs = body["inputs"]
            template = ("{prompt}", "{completion}") if len(pairs[0]) == 2 else "{completion}"
            found = outputs(classifiers, template, [pair[0] for pair in pairs], [pair[-1] for pair in pairs])
            named = [[{"label": n, "score": s} for n, s in zip(NAMES, row, strict=True)] for row in found]
            return Answer(200, [sorted(row, key=lambda p: -p["score"]) for row in named])
        assert path == "/rerank"
        queries = [body["query"]] * len(body["texts"])
        found = outputs(classifiers, ("{prompt}", "{completion}"), queries, body["texts"], 1)
        ranks = [{"index": i, "score": row[0]} for i, row in enumerate(found)]
        return Answer(200, sorted(ranks, key=lambda rank: -rank["score"]))

    return answer


@pytest.fixture(scope="module")
def server(classifiers):
    with served(speaks(classifiers)) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "template", "label"),
    [
        ("/get_reward", None, None),
        ("/classify", None, 1),
        ("/classify", "Q: {prompt}\nA:{completion}", (2, 0)),
        ("/classify", "chat", 2),
        ("/v1/score", None, None),
        ("/score", ("Q: {prompt}", "{completion}"), None),
        ("/pooling", None, 0),
        ("/pooling", "chat", 1),
        ("/predict", None, "honest"),
        ("/predict", ("{prompt}", "{completion}"), ("brief", "helpful")),
        ("/rerank", None, None),
    ],
)
def test_a_service_scores_as_the_model_in_it(server, classifiers, path, template, label):
    model = load(server.address + path, template=template, label=label, batch_size=3)
    assert isinstance(model, RemoteReward) and isinstance(model, RewardModel) and model.name == "127.0.0.1"
    own = template or WIRES[path.rpartition("/")[2]].template
    local = classifiers(own, 0 if label is None else label, 1 if label is None else 3)
    prompts = TURNS if template == "chat" else PROMPTS
    before = len(server.requests)
    assert model.score(prompts, COMPLETIONS) == pytest.approx(local.score(prompts, COMPLETIONS), abs=1e-5)
    # Four in requests of three; a conversation goes alone, and so does the query of a ranking.
    expected = 4 if template == "chat" else 3 if path == "/rerank" else 2
    assert len(server.requests) - before == expected
    assert model.score([], []) == [] and len(server.requests) - before == expected


def test_what_is_shown_is_what_is_sent(server):
    for path, template in (("classify", "Q {prompt}{completion}"), ("score", None), ("classify", "chat")):
        model = load(f"{server.address}/{path}", template=template, label=0 if path == "classify" else None)
        model.score(["a dog"], [" is"])
        body = server.requests[-1].body
        sent = body["input"][0] if "input" in body else body.get("messages") or [body["text_1"][0], body["text_2"][0]]
        assert model.shown("a dog", " is") == (sent if isinstance(sent, str) else json.dumps(sent))


def test_a_cost_is_negated_and_a_model_is_named(server):
    options = {"format": "classify", "sign": -1, "model": "helpful-rm"}
    model = load(server.address + "/classify?version=1", label=1, options=options)
    plain = load(server.address + "/classify", label=1)
    assert model.score(PROMPTS, COMPLETIONS) == [-score for score in plain.score(PROMPTS, COMPLETIONS)]
    named, unnamed = server.requests[-2].body, server.requests[-1].body
    assert named["model"] == "helpful-rm" and "model" not in unnamed


def test_a_conversation_has_the_system_prompt(server):
    model = load(server.address + "/classify", template="chat", label=0, system="judge kindly")
    model.score(["a dog"], [" is"])
    turns = [("system", "judge kindly"), ("user", "a dog"), ("assistant", "is")]
    assert [(turn["role"], turn["content"]) for turn in server.requests[-1].body["messages"]] == turns


def test_a_column_of_the_data_goes_along():
    with served(lambda request: Answer(200, {"rewards": [float(label) for label in request.body["labels"]]})) as server:
        model = load(server.address + "/get_reward", options={"labels": "answer"})
        assert model.reads_columns and model.score(["p", "q"], ["a", "b"], {"answer": [4, 2]}) == [4.0, 2.0]
        assert server.requests[-1].body["query"] == ["pa", "qb"] and server.requests[-1].body["prompts"] == ["p", "q"]
        with pytest.raises(ValueError, match="sends the column 'answer', which the data lacks; did you mean 'answers'"):
            model.score(["p"], ["a"], {"answers": [1]})


def counted(*statuses, then=None, headers=None):
    """A server's answer that has these statuses first, then scores of 1."""
    left, lock = list(statuses), threading.Lock()

    def answer(request):
        with lock:
            status = left.pop(0) if left else 200
        if status != 200:
            return Answer(status, {"error": {"message": "busy with the key sk-very-secret"}}, headers or {})
        return then or Answer(200, {"rewards": [1.0] * len(request.body["query"])})

    return answer


def test_what_may_pass_is_asked_again():
    with served(counted(503, 429, 500, headers={"Retry-After": "0.001"})) as server:
        model = load(server.address + "/get_reward", options={"retries": 3})
        assert model.score(["p"], ["a"]) == [1.0]
        assert len(server.requests) == 4 and model.service.retried == 3
        assert len({str(request.body) for request in server.requests}) == 1


def test_an_answer_that_is_damaged_on_its_way_is_asked_again():
    answers = iter([Answer(200, {"rewards": [1.0]}, {"Content-Encoding": "gzip"}), Answer(200, {"rewards": [2.0]})])
    with served(lambda request: next(answers)) as server:
        model = load(server.address + "/get_reward", options={"retries": 1})
        assert model.score(["p"], ["a"]) == [2.0] and model.service.retried == 1


def test_after_the_last_try_the_run_ends():
    with served(counted(503, 503, 503)) as server:
        model = load(server.address + "/get_reward", name="helpful", options={"retries": 1})
        with pytest.raises(ValueError, match=r"'helpful' \(http://.*get_reward\) gave no answer in 2 tries, .* 503 "):
            model.score(["p"], ["a"])
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 424, 307])
def test_what_does_not_pass_ends_the_run_at_once(status):
    with served(counted(*[status] * 9, headers={"Location": "/elsewhere"})) as server:
        with pytest.raises(ValueError, match=rf"refused a request: {status} .*: busy with"):
            load(server.address + "/get_reward", batch_size=1, options={"concurrency": 1}).score(["p"] * 5, ["a"] * 5)
        assert len(server.requests) == 1, "nor is anything further asked"


def test_a_slow_service_is_given_up_and_a_dead_one_told_at_once():
    release = threading.Event()

    def slow(request):
        release.wait(5)
        return Answer(200, {"rewards": [1.0]})

    with served(slow) as server:
        model = load(server.address + "/get_reward", options={"timeout": 0.05, "retries": 1})
        with pytest.raises(ValueError, match=r"gave no answer in 2 tries, the last time ReadTimeout"):
            model.score(["p"], ["a"])
        release.set()
    with pytest.raises(ValueError, match=r"get_reward\) cannot be reached \(ConnectError.*\); start the service, or"):
        load(server.address + "/get_reward").score(["p"], ["a"])


def test_a_service_that_restarts_is_waited_for():
    with served(counted()) as server:
        model = load(server.address + "/get_reward", options={"retries": 1})
        assert model.score(["p"], ["a"]) == [1.0]
    with pytest.raises(ValueError, match="gave no answer in 2 tries, the last time Connect"):
        model.score(["p"], ["a"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"rewards": [1.0]}, "its answer has 1 scores for 2 completions; expected as many"),
        ({"rewards": [1.0, 2.0, 3.0]}, "its answer has 3 scores for 2"),
        ({"rewards": [1.0, math.nan]}, "returned nan for the pair at index 1"),
        ({"rewards": [1.0, math.inf]}, "returned inf for the pair at index 1"),
        ({"rewards": [1.0, None]}, "None, for 'does not apply', would leave a gap"),
        ({"rewards": [1.0, "2"]}, "expected numbers, not texts"),
        ({"scores": [1.0, 2.0]}, r"which is not OpenRLHF's form \(KeyError: 'rewards'\)"),
        ([1.0, 2.0], "which is not OpenRLHF's form"),
        ("<html>login</html>", "answered '<html>login</html>'; expected JSON"),
    ],
)
def test_an_answer_of_another_form_is_no_score(content, told):
    with (
        served(lambda request: Answer(200, content)) as server,
        pytest.raises(ValueError, match=told),
    ):
        load(server.address + "/get_reward").score(["p", "q"], ["a", "b"])


def test_rows_without_their_index_are_no_scores():
    rows = [{"index": 1, "score": 1.0}, {"index": 1, "score": 2.0}]
    with (
        served(lambda request: Answer(200, {"data": rows})) as server,
        pytest.raises(ValueError, match=r"the indices \[1, 1\] do not count from 0"),
    ):
        load(server.address + "/score").score(["p", "q"], ["a", "b"])


def test_of_several_outputs_one_is_said(server):
    with pytest.raises(ValueError, match="it has the outputs 0, 1, 2, and no label is given; set one"):
        load(server.address + "/classify").score(["p"], ["a"])
    with pytest.raises(ValueError, match=r"the outputs .*, and the label is 'honset'; did you mean 'honest'"):
        load(server.address + "/predict", label="honset").score(["p"], ["a"])
    with pytest.raises(ValueError, match="the outputs 0, 1, 2, and the label is 3"):
        load(server.address + "/classify", label=3).score(["p"], ["a"])


def test_as_many_requests_at_a_time_as_are_allowed():
    together = threading.Barrier(3)  # broken, and so an error, where fewer come

    def answer(request):
        together.wait(10)
        return Answer(200, {"rewards": [float(text[1:]) for text in request.body["query"]]})

    with served(answer) as server:
        model = load(server.address + "/get_reward", batch_size=1, options={"concurrency": 3})
        assert model.score(["p"] * 9, [str(i) for i in range(9)]) == [float(i) for i in range(9)]
        assert server.most == 3 and len(server.requests) == 9


def test_the_key_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv("SERVICE_PASS", "sk-very-secret")
    with served(counted(400)) as server:
        model = load(server.address + "/get_reward", options={"key_env": "SERVICE_PASS"})
        with pytest.raises(ValueError, match=r"busy with the key \*\*\*") as error:
            model.score(["p"], ["a"])
        assert "secret" not in str(error.value)
        assert server.requests[0].headers["Authorization"] == "Bearer sk-very-secret"
        monkeypatch.delenv("SERVICE_PASS")
        with pytest.raises(ValueError, match="environment variable SERVICE_PASS, which is not set"):
            load(server.address + "/get_reward", options={"key_env": "SERVICE_PASS"}).score(["p"], ["a"])
        with pytest.raises(
            ValueError, match=r"key_env of 127.0.0.1 is something else; expected the name of an"
        ) as error:
            load(server.address + "/get_reward", options={"key_env": "sk-very-secret"})
        assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="holds a name or password") as error:
        load("http://me:very-secret@host/classify")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "settings", "told"),
    [
        ("http://host:8000", {}, r"does not say its format; .*ends in one of get_reward, classify"),
        ("http://host/x", {"options": {"format": "clasify"}}, "has format 'clasify'; did you mean 'classify'"),
        ("http://host/classify", {"options": {"tiemout": 1}}, "no option 'tiemout'; did you mean 'timeout'"),
        ("http://host/classify", {"options": {"timeout": 0}}, "timeout of host is 0; expected a positive number"),
        ("http://host/classify", {"options": {"concurrency": 0}}, "concurrency of host is 0; expected requests at a"),
        ("http://host/classify", {"options": {"retries": -1}}, "retries of host is -1; expected tries after the first"),
        ("http://host/classify", {"options": {"sign": 2}}, "the sign is 2"),
        ("http://host/classify", {"options": {"labels": "a"}}, "has the option labels, which classify does not send"),
        ("http://host/predict", {"options": {"model": "a"}}, "has the option model, which predict does not send"),
        ("http://host/score", {"template": "{prompt}{completion}"}, "score takes two texts"),
        ("http://host/get_reward", {"template": "chat"}, "get_reward takes a text"),
        ("http://host/classify", {"template": "{prompt}{completion}{eos_token}"}, "has {eos_token}, and its tokenizer"),
        (
            "http://host/classify",
            {"dtype": "bfloat16"},
            "has dtype 'bfloat16', but a service has its weights elsewhere",
        ),
        ("http://host/classify", {"batch_size": 0}, "batch size of reward model 'host' is 0"),
        ("http:///classify", {}, "names no host"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_sent(address, settings, told):
    with pytest.raises(ValueError, match=told):
        load(address, **settings)


def test_the_options_are_those_that_are_known():
    assert set(OPTIONS) >= set(service.SETTINGS)
    for option in OPTIONS:
        with pytest.raises(ValueError) as error:
            load("http://host/classify", options={option: object()})
        assert "no option" not in str(error.value)
