"""A service as the reward of whole runs: PPO, a sweep, scores that are added, their plans; its key stays a secret."""

from __future__ import annotations

import json

import pytest

from reward_models import service
from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.merge.inputs.fingerprints import reward_fingerprint
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.finished.export import export
from rlhf_lines.task_rewards import RewardEntry
from tests import tiny
from tests.served import Answer, served


KEY, OTHER_KEY = "a-very-secret-key", "another-very-secret-key"  # of the header, and in the address


def share_of_a(text):
    """How many of the words of a text are `a`: what the service scores."""
    words = text.split()
    return words.count("a") / max(1, len(words))


@pytest.fixture(scope="module")
def server():
    def answer(request):
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return Answer(401, {"detail": "no such key"})
        return Answer(200, {"rewards": [share_of_a(query) for query in request.body["query"]]})

    with served(answer) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("RATERS", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(service, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an SFT model and a data set."""
    folder = tmp_path_factory.mktemp("service")
    tokenizer = tiny.word_tokenizer(padding_side="left")
    tiny.save(tiny.llama(tokenizer, num_hidden_layers=2), tokenizer, folder / "sft")
    rows = [{"prompt": f"{a} {b}"} for a in "abcd" for b in "efgh"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def entry(address, **changes):
    return json.dumps({"model": address, "name": "rated", "options": {"key_env": "RATERS"}, **changes})


def ppo_flags(folder, reward, output):
    quiet = [word for key, value in tiny.QUIET.items() for word in (f"--{key}", str(value).lower())]
    sizes = "--per_device_train_batch_size 4 --num_iterations 1 --max_steps 1 --max_completion_length 4 --lora_r 2"
    return [
        "--model_name_or_path", str(folder / "sft"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--rewards", reward, *sizes.split(), *quiet, "--output_dir", str(folder / output),
    ]  # fmt: skip


def sweep_flags(folder, reward, output):
    settings = {
        "sft_model": folder / "sft", "policies": folder / "ppo", "dataset_name": folder / "prompts.jsonl",
        "test_size": "all", "test_prompts": 12, "num_weights": 2, "controls": "false", "alphas": "1", "betas": "1",
        "max_new_tokens": 4, "output_dir": folder / output,
    }  # fmt: skip
    return [*(word for key, value in settings.items() for word in (f"--{key}", str(value))), "--rewards", reward]


@pytest.fixture(scope="module")
def sweep(folder, server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATERS", KEY)
        patch.setenv("NO_PROXY", "127.0.0.1")
        reward = entry(f"{server.address}/get_reward?api_key={OTHER_KEY}")
        run_stage("ppo", ppo_flags(folder, reward, "ppo"))
        return run_stage("sweep", sweep_flags(folder, reward, "sweep"))


def rows_of(sweep, folder):
    import pyarrow.parquet

    export(sweep, folder, format="parquet")
    return pyarrow.parquet.read_table(next(folder.glob("completions.parquet"))).to_pylist()


def test_completions_have_the_scores_of_the_service(folder, sweep, server, tmp_path):
    (row, *_) = [row for row in read_record(folder / "ppo")["history"] if "rewards/rated/mean" in row]
    assert 0 <= row["rewards/rated/mean"] <= 1
    found = rows_of(sweep, tmp_path / "rows")
    assert len(found) >= 24 and len({row["score_rated"] for row in found}) > 3
    for row in found:
        assert row["score_rated"] == pytest.approx(share_of_a(row["prompt_text"] + row["completion"]))
    added = entry(server.address + "/get_reward", name="again", batch_size=5, template="{completion}")
    assert cli.main(["score", str(sweep), "--rewards", added]) == 0
    for row in rows_of(sweep, tmp_path / "more"):
        assert row["score_again"] == pytest.approx(share_of_a(row["completion"]))


def test_the_key_is_written_nowhere(folder, sweep):
    read = 0
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content and OTHER_KEY.encode() not in content, path
            read += 1
    assert read > 10


@pytest.mark.parametrize("stage", ["ppo", "sweep"])
@pytest.mark.parametrize("fault", ["dead", "key"])
def test_what_cannot_be_asked_is_refused_before_the_work(folder, sweep, server, monkeypatch, capsys, stage, fault):
    monkeypatch.setenv("RATERS", KEY if fault == "dead" else "another-key")
    with served(lambda request: Answer()) as gone:
        address = (gone if fault == "dead" else server).address + "/get_reward"
    flags = {"ppo": ppo_flags, "sweep": sweep_flags}[stage](folder, entry(address), "refused")
    assert cli.main([stage, *flags]) == 2
    told = capsys.readouterr().err
    expected = "cannot be reached (ConnectError" if fault == "dead" else "refused a request: 401 Unauthorized: no such"
    assert expected in told and "Traceback" not in told and "another-key" not in told
    assert not list(folder.glob("*refused*"))


def test_a_plan_asks_nobody(folder, sweep, server, monkeypatch, capsys):
    monkeypatch.delenv("RATERS")
    before = len(server.requests)
    reward = entry(server.address + "/get_reward", template="{prompt} |{completion}")
    assert cli.main(["plan", "ppo", *ppo_flags(folder, reward, "planned")]) == 0
    told = capsys.readouterr().out
    assert "reward rated" in told and "'a e | a e'" in told and "a service elsewhere, which takes no memory" in told
    assert len(server.requests) == before
    reward = entry(server.address + "/get_reward", options={"labels": "answer"})
    assert cli.main(["plan", "ppo", *ppo_flags(folder, reward, "planned")]) == 2
    assert "sends the column 'answer', which the data lacks" in capsys.readouterr().err


def test_what_identifies_a_service_is_what_changes_its_scores():
    address = "https://host/classify?api-key=very-secret"
    one = RewardEntry(address, options={"model": "a", "timeout": 1, "key_env": "RATERS"}, label=1)
    other = RewardEntry(address, options={"model": "a", "retries": 2, "concurrency": 3}, label=1)
    assert one.identity() == other.identity()
    assert one.identity()["options"] == {"model": "a"} and "very-secret" not in json.dumps(one.identity())
    assert one.identity() != RewardEntry(address, options={"model": "b"}, label=1).identity()
    assert reward_fingerprint(address) == {}
