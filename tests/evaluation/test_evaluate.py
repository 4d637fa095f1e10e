"""Results of benchmarks become metrics of points; what was stopped goes on, and what does not fit is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.evaluation.evaluate import evaluate
from rlhf_lines.pareto import read_front
from rlhf_lines.sweep.finished.front import trace_front
from rlhf_lines.sweep.store import Store
from tests.evaluation.tasks import ANSWERS, CHOICES


HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not HAS_LM_EVAL, reason="needs lm-eval")
METRICS = ["tiny_choice/acc", "tiny_choice/acc_norm", "tiny_answer/exact_match"]


def stored(run) -> dict:
    with Store(run, reading=True) as store:
        return store.evaluations()


@pytest.fixture
def counted(monkeypatch):
    """The (task, weights) that lm-eval is asked, in their order, and where it stops."""
    from rlhf_lines.evaluation import harness

    asked, ask = [], harness.ask

    def counting(model, task, *others):
        if len(asked) == counting.stop_at:
            raise KeyboardInterrupt
        asked.append(task)
        return ask(model, task, *others)

    counting.stop_at, counting.asked = None, asked
    monkeypatch.setattr(harness, "ask", counting)
    return counting


@needs_lm_eval
def test_points_have_the_results_of_what_they_were_asked(run, tasks):
    before = read_front(run)
    outcome = evaluate(
        run, ["tiny_choice", "tiny_answer"], include_path=tasks, points=["all"], groups=["lines", "ties"]
    )
    front = read_front(run)
    assert front == outcome.front and list(front["benchmarks"]) == ["tiny_answer", "tiny_choice"]
    of_choice = front["benchmarks"]["tiny_choice"]
    assert (of_choice["limit"], of_choice["apply_chat_template"]) == (None, False)
    assert of_choice["metrics"] == {"tiny_choice/acc": True, "tiny_choice/acc_norm": True}
    asked = [point for point in front["points"] if point["group"] in ("sft", "lines", "ties")]
    specs = {json.dumps(point["spec"]) for point in asked}
    assert outcome.asked == dict.fromkeys(("tiny_choice", "tiny_answer"), len(specs))
    found = stored(run)["tiny_choice"]
    with Store(run, reading=True) as store:
        of_point = {point.id: point.spec_id for point in store.points("test")}
    assert set(found) == {of_point[point["id"]] for point in asked}
    for point in front["points"]:
        for metric in METRICS:
            assert (point["metrics"][metric] is not None) is (point in asked)
        if point in asked:
            values = found[of_point[point["id"]]]["metrics"]["tiny_choice/acc"]["values"]
            theirs = found[of_point[asked[0]["id"]]]["metrics"]["tiny_choice/acc"]["values"]
            assert len(values) == len(CHOICES) and set(values) <= {0.0, 1.0}
            assert point["metrics"]["tiny_choice/acc"]["mean"] == np.mean(values)
            change = point["benchmark_changes"]["tiny_choice/acc"]["value"]
            assert change == pytest.approx(np.mean(values) - np.mean(theirs))
    for key in ("fronts", "comparisons", "reference_point", "metrics"):  # they change no front
        assert front[key] == before[key]
    assert [point["scores"] for point in front["points"]] == [point["scores"] for point in before["points"]]


@needs_lm_eval
def test_what_was_stopped_goes_on_with_what_is_missing(run, tasks, counted, tmp_path, capsys):
    whole = shutil.copytree(run, tmp_path / "whole")
    ask = {"include_path": tasks, "points": ["all"], "groups": ["lines"]}
    counted.stop_at = 3
    arguments = ["evaluate", run, "--tasks", "tiny_choice,tiny_answer", "--include_path", tasks, "--points", "all"]
    assert cli.main([*map(str, arguments), "--group", "lines"]) == 130
    assert "interrupted; the results so far are kept" in capsys.readouterr().err
    assert counted.asked == ["tiny_choice", "tiny_answer", "tiny_choice"]
    assert {task: len(found) for task, found in stored(run).items()} == {"tiny_choice": 2, "tiny_answer": 1}
    half = trace_front(run)  # the run is whole, with what there is
    assert sum(point["metrics"]["tiny_choice/acc"] is not None for point in half["points"]) >= 2
    counted.stop_at = None
    outcome = evaluate(run, ["tiny_choice", "tiny_answer"], **ask)
    assert outcome.asked == {"tiny_choice": 2, "tiny_answer": 3}
    evaluate(whole, ["tiny_choice", "tiny_answer"], **ask)
    assert stored(run) == stored(whole) and read_front(run) == read_front(whole)
    counted.asked.clear()
    assert evaluate(run, ["tiny_answer"], **ask).asked == {"tiny_answer": 0} and counted.asked == []


@needs_lm_eval
def test_a_task_is_asked_otherwise_only_from_anew(run, tasks, capsys):
    asked = ["evaluate", str(run), "--include-path", str(tasks), "--tasks", "tiny_both", "--points"]
    assert cli.main([*asked, "front", "--group", "sft", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny_both: asked 1 policy\n") and "tiny_choice/acc" in out
    (found,) = stored(run)["tiny_both"].values()
    assert {leaf: about["documents"] for leaf, about in found["tasks"].items()} == {"tiny_choice": 2, "tiny_answer": 2}
    before = stored(run)
    assert cli.main([*asked, "all"]) == 2
    assert "points have results of tiny_both with limit 2, num_fewshot left out" in capsys.readouterr().err
    assert stored(run) == before
    assert cli.main([*asked, "front", "--group", "sft", "--overwrite"]) == 0
    (found,) = stored(run)["tiny_both"].values()
    assert {leaf: about["documents"] for leaf, about in found["tasks"].items()} == {
        "tiny_choice": len(CHOICES),
        "tiny_answer": len(ANSWERS),
    }
    rows = (tasks / "tiny_answer.jsonl").read_text()
    (tasks / "tiny_answer.jsonl").write_text(rows.replace("hello", "howdy"))
    before = stored(run)
    assert cli.main([*asked, "front", "--group", "lines"]) == 2
    assert "task tiny_answer asks something else than it asked other points" in capsys.readouterr().err
    assert stored(run) == before


@needs_lm_eval
def test_one_name_is_one_result(run, tasks, capsys):
    """Of a task alone, of the same in a group of tasks, and of a reward."""
    asked = ["evaluate", str(run), "--include_path", str(tasks), "--points", "front", "--group", "sft", "--tasks"]
    assert cli.main([*asked, "tiny_choice", "--limit", "2"]) == 0
    before = stored(run)
    assert cli.main([*asked, "tiny_both"]) == 2
    assert (
        "the run has tiny_choice/acc from task tiny_choice already: leave out task tiny_both" in capsys.readouterr().err
    )
    assert cli.main(["score", str(run), "--rewards", '{"model": "rule:length", "name": "tiny_choice/acc"}']) == 2
    assert "tiny_choice/acc is what the run has of a benchmark" in capsys.readouterr().err
    assert stored(run) == before and "tiny_choice/acc" not in json.loads((run / "front.json").read_text())["metrics"]


@needs_lm_eval
def test_a_model_that_has_changed_is_refused_before_the_work(run, tasks, policies, capsys):
    path = policies[0] / "adapter_config.json"
    before = path.read_text()
    try:
        path.write_text(before.replace('"lora_alpha": 8', '"lora_alpha": 16'))
        assert cli.main(["evaluate", str(run), "--tasks", "tiny_choice", "--include_path", str(tasks)]) == 2
    finally:
        path.write_text(before)
    assert "policy 1 (brief) has changed since the sweep in" in capsys.readouterr().err
    assert stored(run) == {}


@pytest.fixture
def own_tasks_only(monkeypatch):
    """lm-eval's own thousands of tasks, which take half a minute to read, are left out."""
    manager = pytest.importorskip("lm_eval.tasks").TaskManager
    monkeypatch.setattr(
        "rlhf_lines.evaluation.harness.TaskManager",
        lambda include_path, include_defaults=False: manager(include_path=include_path, include_defaults=False),
    )


@needs_lm_eval
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", "tiny_chioce"], "unknown task 'tiny_chioce'; did you mean 'tiny_choice'?"),
        (["--tasks", "tiny_answer", "--num_fewshot", "2"], "tiny_answer is asked without examples, as its config says"),
        (
            ["--tasks", "tiny_text", "--num_fewshot", "2"],
            "tiny_text reads whole texts, with nothing around them: leave",
        ),
        (["--tasks", "tiny_answer", "--apply_chat_template"], "the SFT model's tokenizer has no chat template"),
        (
            ["--tasks", "tiny_text", "--system_instruction", "so"],
            "tiny_text reads whole texts, with nothing around them",
        ),
        (["--tasks", "tiny_answer", "--system_instruction", " "], "system_instruction is empty: leave it out"),
        (["--tasks", "tiny_choice", "--num_fewshot", "7"], "has 6 examples for a question, and num_fewshot is 7"),
        (
            ["--tasks", "tiny_both,tiny_choice"],
            "tiny_choice is asked by tiny_both and by tiny_choice: leave out",
        ),
        (["--tasks", "tiny_answer", "--limit", "0"], "limit is 0, expected at least 1"),
        (["--tasks", ","], "no task is named: give --tasks"),
        (["--tasks", "tiny_answer", "--points", "99"], "--points has '99', expected front, all, or ids"),
    ],
)
@pytest.mark.usefixtures("own_tasks_only")
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, tasks, capsys, more, words):
    assert cli.main(["evaluate", str(run), "--include_path", str(tasks), *more]) == 2
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith("rlhf-lines evaluate: ") and words in sentence
    assert stored(run) == {}


ODD = """
task: odd
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: gold
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""
ROW = json.dumps(CHOICES[0])
FUNCTIONS = """
def fails(doc, found):
    return {"acc": doc.nothing}


def says(doc, found):
    return {"acc": "much"}
"""


@needs_lm_eval
@pytest.mark.usefixtures("own_tasks_only")
@pytest.mark.parametrize(
    ("rows", "before", "after", "words"),
    [
        ("", "", "", "cannot be loaded, by its config and its data: there are no documents"),
        ("{not json", "", "", "data: JSON parse error: Missing a name for object member. in row 0"),
        (None, "", "", "data: Unable to find "),
        (ROW, "test_split: test", "test_split: hidden", "data: KeyError 'hidden'"),
        (ROW, "{{question}}", "{{qestion}}", "data: UndefinedError 'qestion' is undefined"),
        (ROW, "metric: acc", "metric: of_mine", "data: of_mine not found in the evaluate library! Please check"),
        (
            ROW,
            "metric: acc",
            "metric: of_mine, aggregation: mean, higher_is_better: true",
            "data: of_mine not found in the evaluate library! Please check",
        ),
        (ROW, "metric: acc", "metric: bypass", "task odd has no metric that is a number: leave it out"),
        (
            ROW,
            "test_split:",
            "process_results: !function odd.fails\ntest_split:",
            "has no attribute 'nothing'",
        ),
        (ROW, "test_split:", "process_results: !function odd.says\ntest_split:", "odd cannot be asked, by"),
        (
            ROW,
            "task: odd",
            "group: odd\ntask: [tiny_choice, tiny_chioce]",
            "'tiny_chioce' of odd; did you mean 'tiny_ch",
        ),
        (ROW, "test_split:", "unsafe_code: true\ntest_split:", "task odd runs the code that a model wrote"),
    ],
)
def test_what_is_wrong_with_a_task_is_one_sentence(run, tasks, capsys, rows, before, after, words):
    data = tasks / "odd.jsonl"
    if rows is not None:
        data.write_text(rows and f"{rows}\n")
    config = (ODD % data).replace(before, after) if before else ODD % data
    (tasks / "odd.yaml").write_text(config.partition("dataset_path")[0] if "group" in config else config)
    (tasks / "odd.py").write_text(FUNCTIONS)
    assert cli.main(["evaluate", str(run), "--include_path", str(tasks), "--tasks", "odd", "--group", "sft"]) == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("evaluate: ")]
    assert len(sentences) == 1 and sentences[0].startswith("rlhf-lines evaluate: ") and words in sentences[0]
    assert stored(run) == {}


SYSTEM = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
REFUSED = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"


@needs_lm_eval
def test_a_system_instruction_is_the_systems_turn_where_the_template_has_one(run, tasks, capsys, monkeypatch):
    from rlhf_lines.sweep.engines import local

    load = local.load_tokenizer

    def with_template(template):
        def loaded(folder):
            tokenizer = load(folder)
            tokenizer.chat_template = template
            return tokenizer

        monkeypatch.setattr(local, "load_tokenizer", loaded)

    asked = ["evaluate", str(run), "--include_path", str(tasks), "--tasks", "tiny_choice", "--group", "sft"]
    asked += ["--apply_chat_template", "--system_instruction", "be so"]
    for template in (NO_SYSTEM, REFUSED):
        with_template(template)
        assert cli.main(asked) == 2
        assert "the chat template of the SFT model's tokenizer has no turn of the system" in capsys.readouterr().err
    with_template(SYSTEM)
    assert stored(run) == {} and cli.main(asked) == 0
    assert read_front(run)["benchmarks"]["tiny_choice"]["system_instruction"] == "be so"
    capsys.readouterr()
    assert cli.main(asked[:-2]) == 2
    assert "apply_chat_template True, system_instruction be so, and now it is" in capsys.readouterr().err


@needs_lm_eval
def test_results_of_an_earlier_version_are_of_no_system_instruction(run, tasks):
    asked = {"include_path": tasks, "groups": ["sft"]}
    assert evaluate(run, ["tiny_choice"], **asked).asked == {"tiny_choice": 1}
    with Store(run) as store:
        ((spec, found),) = store.evaluations()["tiny_choice"].items()
        del found["asked"]["system_instruction"]
        store.add_evaluation(spec, "tiny_choice", found)
        store.finish()
    outcome = evaluate(run, ["tiny_choice"], **asked)
    assert (
        outcome.asked == {"tiny_choice": 0} and outcome.front["benchmarks"]["tiny_choice"]["system_instruction"] is None
    )


@needs_lm_eval
def test_a_warning_is_told_once_for_all_points(run, tasks, caplog):
    (tasks / "tiny_choice.jsonl").write_text(f"{ROW}\n{json.dumps({**CHOICES[1], 'gold': 7})}\n")
    asked = {"include_path": tasks, "points": ["all"], "groups": ["lines"], "num_fewshot": 0}
    outcome = evaluate(run, ["tiny_choice"], **asked)
    assert outcome.asked["tiny_choice"] > 2
    warnings = [record for record in caplog.records if record.name.startswith("rlhf_lines.evaluation")]
    assert len(warnings) == 1 and "Label index was not in within range" in warnings[0].getMessage()


@needs_lm_eval
def test_the_example_of_the_page_runs(run, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    (block,) = (block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "quiz.jsonl" in block)
    *files, command = block.splitlines()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    subprocess.run(["bash", "-e"], input="\n".join(files), text=True, check=True)
    program, verb, folder, *flags = shlex.split(command)
    assert (program, verb, folder) == ("rlhf-lines", "evaluate", "outputs/demo/sweep")
    assert cli.main(["evaluate", str(run), *flags, "--group", "sft"]) == 0
    assert read_front(run)["benchmarks"]["quiz"]["tasks"]["quiz"]["documents"] == 4


@needs_lm_eval
def test_a_run_of_another_stage_is_refused(run, capsys):
    """Of learn, which has a run store as well."""
    record = run / "rlhf_lines.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "stage": "learn"}))
    assert cli.main(["evaluate", str(run), "--tasks", "tiny_choice"]) == 2
    said = f"rlhf-lines evaluate: {run} is of rlhf-lines learn: expected the output_dir of rlhf-lines sweep\n"
    assert capsys.readouterr().err == said


def test_without_lm_eval_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["evaluate", str(tmp_path), "--tasks", "arc_easy"]) == 2
    assert "evaluate needs the package lm-eval: pip install lm-eval" in capsys.readouterr().err
