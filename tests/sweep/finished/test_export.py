"""Exported tables give back what the store holds, whatever the texts, whole or not at all."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from rlhf_lines import cli
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.spreadsheet import ENDS
from rlhf_lines.sweep.finished import export as verb
from rlhf_lines.sweep.finished.export import export
from rlhf_lines.sweep.store import Store
from tests.sweep.small_run import GROUPS, HOSTILE, ROWS, write_run


REWARDS = ["rule:length", {"model": "rule:length", "name": 'r "2", kl', "options": {"unit": "characters"}}]
SCORES = ["score_length", 'score_r "2", kl']
SPEC = ["rule", "weight_1", "weight_2", "weight_3", "alpha", "beta", "schedule", "options", "lines"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished sweep with texts outside the task under every test spec."""
    folder = write_run(tmp_path_factory.mktemp("export") / "run", REWARDS)
    with Store(folder) as store:
        texts = store.add_forgetting_texts({text: 3 + i for i, text in enumerate(HOSTILE)})
        specs = {point.spec_id for point in store.points("test")}
        store.add_nll((spec, text, spec + text / 7) for spec in specs for text in texts)
    return folder


def tables(folder: Path, format: str) -> dict[str, list[dict]]:
    """The rows of every table; those of CSV as the texts that any reader of the format sees."""
    found = {}
    for path in folder.glob(f"*.{format}"):
        if format == "parquet":
            found[path.stem] = parquet.read_table(path).to_pylist()
            continue
        with path.open(newline="", encoding="utf-8") as file:
            found[path.stem] = list(csv.DictReader(file))
    return found


def read(run: Path, query: str) -> list[tuple]:
    database = sqlite3.connect(run / "run.sqlite")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def of_spec(text: str) -> dict:
    """The columns of a spec, by hand."""
    spec = json.loads(text)
    weights = spec["weights"] + [0.0] * (3 - len(spec["weights"]))
    return {
        "rule": spec["rule"],
        **{f"weight_{k + 1}": weights[k] for k in range(3)},
        "alpha": None if spec["alpha"] == "auto" else spec["alpha"],
        "beta": spec["beta"],
        "schedule": spec["schedule"],
        "options": json.dumps(spec["options"]),
        "lines": "after",
    }


def completions_by_hand(run: Path) -> list[dict]:
    scores = {tuple(key): score for *key, score in read(run, "SELECT spec, prompt, sample, reward, score FROM scores")}
    rows = read(
        run,
        "SELECT p.split, c.spec, c.prompt, c.sample, p.text, c.text, c.tokens, c.token_ids, c.kl, s.spec "
        "FROM completions c JOIN prompts p ON p.id = c.prompt JOIN specs s ON s.id = c.spec "
        "ORDER BY p.split, c.spec, c.prompt, c.sample",
    )
    names = ["split", "spec", "prompt", "sample", "prompt_text", "completion", "tokens", "token_ids", "kl"]
    found = []
    for *values, spec in rows:
        row = dict(zip(names, values, strict=True))
        row["token_ids"] = json.loads(row["token_ids"])
        ids = row["spec"], row["prompt"], row["sample"]
        of_rewards = {name: scores[*ids, name.removeprefix("score_")] for name in SCORES}
        found.append({**row, **of_rewards, **of_spec(spec)})
    return found


MEANS = [*SCORES, "kl", "tokens", "share_empty", "share_cut", "repetition", "distinct", "perplexity"]


def points_by_hand(run: Path) -> list[dict]:
    """What is known of every point, and of what was measured the means that take no other point."""
    completions, found = completions_by_hand(run), []
    nll = {row["spec"]: [] for row in forgetting_by_hand(run)}
    for row in forgetting_by_hand(run):
        nll[row["spec"]].append((row["nats"], row["tokens"]))
    query = 'SELECT p.id, p.split, p."group", p.spec, s.spec FROM points p JOIN specs s ON s.id = p.spec ORDER BY p.id'
    for point, split, group, spec, text in read(run, query):
        rows = [row for row in completions if (row["split"], row["spec"]) == (split, spec)]
        means = {name: np.mean([row[name] for row in rows]) for name in (*SCORES, "kl", "tokens")}
        texts = [row["completion"] for row in rows]
        means |= {
            "share_empty": np.mean([text.strip() == "" for text in texts]),
            "share_cut": None,  # this run does not say how long a completion may be
            "repetition": 0.0,  # no token occurs twice in a completion
            "distinct": len(set(texts)) / len(texts),
            "perplexity": np.exp(np.divide(*np.sum(nll[spec], axis=0))) if spec in nll else None,
        }
        prompts = len({row["prompt"] for row in rows})
        ids = {"point": point, "split": split, "group": group, "spec": spec, "prompts": prompts}
        found.append({**ids, **of_spec(text), **{f"{name}_mean": means[name] for name in MEANS}})
    return found


def assert_points(rows: list[dict], run: Path) -> None:
    """The rows of the table, whose numbers are read from texts where they are texts, are those by hand."""
    expected = points_by_hand(run)
    assert len(rows) == len(expected)
    for row, by_hand in zip(rows, expected, strict=True):
        for name, value in by_hand.items():
            if name.endswith("_mean"):
                number = None if row[name] in (None, "") else float(row[name])
                assert number == (None if value is None else pytest.approx(value, rel=1e-12))
            else:
                assert row[name] in (value, as_csv(by_hand)[name])


def forgetting_by_hand(run: Path) -> list[dict]:
    rows = read(
        run,
        "SELECT c.spec, c.text, t.text, t.tokens, c.nats, s.spec FROM control c JOIN control_texts t ON t.id = c.text "
        "JOIN specs s ON s.id = c.spec ORDER BY c.spec, c.text",
    )
    names = ["spec", "text", "control_text", "tokens", "nats"]
    return [{**dict(zip(names, values, strict=True)), **of_spec(spec)} for *values, spec in rows]


def key(row: dict) -> tuple:
    """Which completion a row is."""
    return row["split"], int(row["spec"]), int(row["prompt"]), int(row["sample"])


def as_csv(row: dict) -> dict[str, str]:
    """What a reader of CSV sees of a row: floats with all digits, lists as JSON, nothing for null."""

    def text(value) -> str:
        if isinstance(value, list):
            return json.dumps(value)
        return "" if value is None else value if isinstance(value, str) else repr(value)

    return {name: text(value) for name, value in row.items()}


@pytest.mark.parametrize("batch", [7, 4096])
def test_parquet_gives_back_the_store(run, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(verb, "BATCH", batch)
    paths = export(run, tmp_path / "made" / "here")
    assert {path.name for path in paths} == {"completions.parquet", "points.parquet", "control.parquet"}
    assert {path.name for path in (tmp_path / "made" / "here").iterdir()} == {path.name for path in paths}
    found = tables(tmp_path / "made" / "here", "parquet")
    completions = sorted(found["completions"], key=key)
    assert completions == completions_by_hand(run) and len(completions) == ROWS
    assert_points(found["points"], run)
    assert len(found["points"]) == sum(len(specs) for groups in GROUPS.values() for specs in groups.values())
    assert found["control"] == forgetting_by_hand(run) and len(found["control"]) == 9 * len(HOSTILE)
    of_row = ["split", "spec", "prompt", "sample", "prompt_text", "completion", "tokens", "token_ids", "kl"]
    names = [*of_row, *SCORES, *SPEC]
    schema = parquet.read_schema(tmp_path / "made" / "here" / "completions.parquet")
    assert schema.names == names
    types = dict(zip(names, map(str, schema.types), strict=True))
    assert (types["token_ids"], types["kl"], types[SCORES[1]], types["alpha"]) == (
        "list<element: int32>", "double", "double", "double",
    )  # fmt: skip
    # Texts that files find hard to hold are among them, letter by letter.
    for text in HOSTILE:
        assert any(text and row["completion"].startswith(text) for row in completions) or text == ""
    assert any(row["completion"] == "" for row in completions)


def test_csv_gives_back_the_store(run, tmp_path):
    export(run, tmp_path, format="csv")
    found = tables(tmp_path, "csv")
    assert sorted(found["completions"], key=key) == [as_csv(row) for row in completions_by_hand(run)]
    assert found["control"] == [as_csv(row) for row in forgetting_by_hand(run)]
    assert_points(found["points"], run)
    assert any(row["completion"].startswith("=SUM(A1)") for row in found["completions"])  # verbatim, no mark before it


def test_points_are_those_of_the_front(run, tmp_path):
    export(run, tmp_path)
    front = json.loads((run / "front.json").read_text())
    rows = {row["point"]: row for row in tables(tmp_path, "parquet")["points"] if row["split"] == "test"}
    assert rows.keys() == {point["id"] for point in front["points"]}
    with (run / "front.csv").open(newline="", encoding="utf-8") as file:
        of_file = {int(row["point"]): row for row in csv.DictReader(file)}
    columns = [name for name in next(iter(of_file.values())) if name.endswith(("_mean", "_low", "_high"))]
    assert {"win_rate_length_low", "all_worse_mean", "length_correlation_length_high"} < set(columns)
    for point in front["points"]:
        row = rows[point["id"]]
        assert row["group"] == point["group"]
        for name in columns:
            if not name.startswith("perplexity"):  # its texts were read after this front was made
                written = of_file[point["id"]][name]
                assert (float(written) if written else None) == row[name]
        wins = point["metrics"]["win_rate"]
        assert row["all_better_mean"] == wins["all_better"]["mean"]
        assert [row[f"win_rate_length_{end}"] for end in ENDS] == [wins["by_objective"]["length"][end] for end in ENDS]


def test_points_of_a_sweep_are_the_rows_of_front_csv(sweep, tmp_path):
    """Every number, digit by digit; with eight prompts the ends of intervals depend on the seed."""
    export(sweep, tmp_path)
    rows = {row["point"]: row for row in tables(tmp_path, "parquet")["points"] if row["split"] == "test"}
    with (sweep / "front.csv").open(newline="", encoding="utf-8") as file:
        for expected in csv.DictReader(file):
            row = rows[int(expected["point"])]
            for name in [name for name in expected if name.endswith(tuple(f"_{end}" for end in ENDS))]:
                assert (float(expected[name]) if expected[name] else None) == row[name], name


def test_points_of_validation_have_intervals_too(run, tmp_path):
    """Of the scores those of a bootstrap of the means of each prompt; no point there is the SFT model's."""
    export(run, tmp_path)
    rows = [row for row in tables(tmp_path, "parquet")["points"] if row["split"] == "validation"]
    completions = completions_by_hand(run)
    assert rows
    for row in rows:
        assert row["win_rate_mean"] is row["all_worse_low"] is row["at_matched_length_length_mean"] is None
        own = [one for one in completions if (one["split"], one["spec"]) == ("validation", row["spec"])]
        for name in (*SCORES, "kl", "tokens"):
            prompts = sorted({one["prompt"] for one in own})
            means = np.array([np.mean([one[name] for one in own if one["prompt"] == prompt]) for prompt in prompts])
            resampling = Resampling(seed=3)
            expected = resampling.scores({name: means})[name] if name in SCORES else resampling.mean(means)
            for end in ENDS:
                value = row[f"{name}_{end}"]
                assert value is expected[end] is None or value == pytest.approx(expected[end], rel=1e-12)


def test_without_control_texts_there_is_no_such_table(tmp_path, capsys):
    folder = write_run(tmp_path / "run", REWARDS)
    assert cli.main(["export", str(folder), "--format", "both"]) == 0
    files = [f"{name}.{suffix}" for name in ("completions", "points") for suffix in ("parquet", "csv")]
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder / 'export' / file}" for file in files]
    assert {path.name for path in (folder / "export").iterdir()} == set(files)


def test_what_exists_is_refused_or_replaced(run, tmp_path, capsys):
    (tmp_path / "points.csv").write_text("mine")
    flags = ["export", str(run), "--format", "both", "--output_dir", str(tmp_path)]
    assert cli.main(flags) == 2
    assert "points.csv exists: choose another output_dir, or add --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["points.csv"]
    assert cli.main([*flags, "--overwrite"]) == 0
    assert len(tables(tmp_path, "csv")["points"]) == len(points_by_hand(run))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_files_appear_whole_or_not_at_all(run, tmp_path, monkeypatch, error):
    export(run, tmp_path, format="csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rows, calls = Store.rows, []

    def stops(self, *args):
        for number, row in enumerate(rows(self, *args)):
            calls.append(number)
            if len(calls) > ROWS + 20:  # in the middle of the second file
                raise error("stop")
            yield row

    monkeypatch.setattr(Store, "rows", stops)
    with pytest.raises(error):
        export(run, tmp_path, format="both", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(error):  # nor does the folder stay that was made for them
        export(run, tmp_path / "made" / "here", format="csv")
    assert {path.name for path in tmp_path.iterdir()} == before.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--format", "xlsx"], "format is 'xlsx', expected parquet, csv or both"),
        (["{run}/nowhere"], "nowhere has no run.sqlite: expected the output_dir of rlhf-lines sweep"),
        (["{run}", "--output_dir", "{run}/front.json"], "front.json is a file: give a folder"),
        ([], "the following arguments are required: RUN_DIR"),
    ],
)
def test_mistakes_are_told_in_one_sentence(run, capsys, arguments, words):
    before = sorted(run.rglob("*"))
    assert cli.main(["export", *(argument.replace("{run}", str(run)) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
    assert sorted(run.rglob("*")) == before
