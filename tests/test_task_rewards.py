"""The reward models of a run, and that imports go one way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reward_models import forward
from rlhf_lines.plan.rewards import plan_rewards
from rlhf_lines.task_rewards import RewardEntry, load_reward_models, reward_entries, reward_weights
from tests import tiny


def test_two_reward_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="have the names split, split: two are equal"):
        load_reward_models(reward_entries(["posixpath:split", "ntpath:split"]))


@pytest.mark.parametrize("name", ["", " ", " length", "two\nlines", 3])
def test_a_reward_has_a_name_that_can_be_found_again(name):
    with pytest.raises(ValueError, match=r"rewards: rule:length has name .*, expected a text without line breaks"):
        RewardEntry.of({"model": "rule:length", "name": name})


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("rlhf_lines.pareto", ["trl", "rlhf_lines.train"]), ("reward_models", ["trl", "rlhf_lines"])],
)
def test_imports_go_one_way(package, forbidden):
    code = f"import sys, {package}; print([name for name in {forbidden} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_identity_of_a_reward_has_no_secrets():
    entry = RewardEntry.of({"model": "scores:ask", "options": {"api_key": "hunter2-is-no-word", "scale": 2.0}})
    assert entry.identity()["options"] == {"scale": 2.0} and entry.options["api_key"] == "hunter2-is-no-word"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The folder of a classifier with an output for each of three objectives, which have names."""
    from transformers import LlamaForSequenceClassification

    tokenizer = tiny.word_tokenizer()
    names = {0: "helpful", 1: "honest", 2: "brief"}
    label2id = {name: i for i, name in names.items()}
    config = tiny.llama_config(tokenizer, num_hidden_layers=1, id2label=names, label2id=label2id)
    model = tiny.widened(LlamaForSequenceClassification(config))
    return tiny.save(model, tokenizer, tmp_path_factory.mktemp("several") / "model")


PAIRS = [["a b", "c", "d e f"], [" d", " e f g", " h"]]


def of_several(folder, *labels, **changes):
    return reward_entries([{"model": str(folder), "name": str(i), "label": x, **changes} for i, x in enumerate(labels)])


def test_the_objectives_of_one_model_are_scores_of_one_pass(several, monkeypatch):
    entries = of_several(several, "honest", ["brief", "helpful"], 0)
    alone = [model.score(*PAIRS) for entry in entries for model in load_reward_models([entry])]
    passes, own = [], forward.logits
    monkeypatch.setattr(forward, "logits", lambda *args, **settings: passes.append(args) or own(*args, **settings))
    models = load_reward_models(entries)
    assert len({id(model.model) for model in models}) == 1 and [model.name for model in models] == ["0", "1", "2"]
    assert [model.score(*PAIRS) for model in models] == alone and len(passes) == 1
    assert len({tuple(scores) for scores in alone}) == 3
    other = [texts[::-1] for texts in PAIRS]
    assert [model.score(*other) for model in models] == [pytest.approx(scores[::-1], abs=1e-5) for scores in alone]
    assert len(passes) == 2, "other texts are read again"


def test_what_is_read_in_another_way_is_loaded_for_itself(several):
    one, other = of_several(several, 0, 1)
    for changes in ({"template": "{completion}"}, {"dtype": "bfloat16"}, {"batch_size": 1}):
        (changed,) = of_several(several, 1, **changes, name="x")
        first, second = load_reward_models([one, changed])
        assert first.model is not second.model
        assert one.shared_pass() == other.shared_pass() != changed.shared_pass()
    for model in ("rule:length", "http://host/classify", str(several)):
        assert RewardEntry(model, label=0 if "http" in model else None).shared_pass() is None


def test_a_plan_counts_a_shared_model_once(several):
    one, *others = plan_rewards(of_several(several, 0, "brief", 2), beside=None)
    assert one.weights > 0 and [plan.weights for plan in others] == [0, 0]
    assert others[0].source == "further outputs of the pass for 0, which take no memory of their own"


def test_a_sum_of_nothing_is_refused():
    entries = [RewardEntry("rule:length", weight=0.0), RewardEntry("rule:lexical", weight=0)]
    with pytest.raises(ValueError, match=r"^every reward has the weight 0, so the policy would be trained for nothing"):
        reward_weights(entries, None)
    plain = [RewardEntry("rule:length"), RewardEntry("rule:lexical")]
    for given in ([0.0, 0.0], [-0.0, 0.0]):
        with pytest.raises(ValueError, match=r"^every reward has the weight 0"):
            reward_weights(plain, given)
    with pytest.raises(ValueError, match=r"^reward_weights holds nan, 1.0, expected finite numbers$"):
        reward_weights(plain, [float("nan"), 1.0])
    assert reward_weights(plain, [0.0, -1.0]) == [0.0, -1.0] and reward_weights(plain, None) == [1.0, 1.0]
    assert reward_weights([entries[0], plain[1]], None) == [0.0, 1.0]
