"""A greedy sweep by vLLM has the same run store as the local engine's."""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
from pathlib import Path

import pytest
import yaml

from rlhf_lines.stages import run_stage


COMPLETIONS = "SELECT spec, prompt, sample, text, tokens, token_ids, kl FROM completions ORDER BY spec, prompt, sample"
SCORES = "SELECT * FROM scores ORDER BY spec, prompt, sample, reward"
NLL = "SELECT spec, text, nats FROM control ORDER BY spec, text"


@pytest.fixture
def config(sft, adapters, tmp_path) -> dict:
    """The settings of a small sweep with texts outside the task."""
    words = random.Random(0)
    for name, column, count in (("prompts", "prompt", 60), ("control", "text", 8)):
        rows = [{column: " ".join(f"w{words.randrange(3, 40)}" for _ in range(3 + i % 5))} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "sft_model": str(sft),
        "policies": [adapter.path for adapter in adapters[:2]],
        "rewards": [
            {"model": "rule:length", "name": "short", "options": {"target": "shorter", "scale": 10}},
            {"model": "rule:length", "name": "long", "options": {"target": "longer", "scale": 10}},
        ],
        "dataset_name": str(tmp_path / "prompts.jsonl"),
        "control": str(tmp_path / "control.jsonl"),
        "control_texts": 4,
        "num_weights": 3,
        "validation_weights": 2,
        "validation_prompts": 3,
        "test_prompts": 4,
        "temperature": 0.0,
        "max_new_tokens": 12,
    }


def run(tmp_path: Path, config: dict, **changes) -> dict[str, list[tuple]]:
    """Run the stage, and return what its store holds."""
    folder = tmp_path / changes["engine"]
    file = tmp_path / f"{changes['engine']}.yaml"
    file.write_text(yaml.safe_dump({**config, **changes, "output_dir": str(folder)}))
    run_stage("sweep", ["--config", str(file)])
    assert (folder / "front.json").is_file()
    database = sqlite3.connect(folder / "run.sqlite")
    try:
        return {query: database.execute(query).fetchall() for query in (COMPLETIONS, SCORES, NLL)}
    finally:
        database.close()


def test_the_store_is_that_of_the_local_engine(config, tmp_path):
    local = run(tmp_path, config, engine="local")
    vllm = run(tmp_path, config, engine="vllm", vllm={"enforce_eager": True, "max_num_seqs": 16})
    assert len(local[COMPLETIONS]) > 50
    assert vllm[SCORES] == local[SCORES]
    for query in (COMPLETIONS, NLL):
        assert [row[:-1] for row in vllm[query]] == [row[:-1] for row in local[query]]
        assert [row[-1] for row in vllm[query]] == pytest.approx([row[-1] for row in local[query]], abs=1e-3)
    assert not multiprocessing.active_children()
