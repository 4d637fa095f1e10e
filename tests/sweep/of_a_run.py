"""What a finished sweep holds, read and worked out again without the code that made it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np


ALPHAS, BETAS = [0.5, 1.0], [0.5, 1.5]
VALIDATION, TEST, WEIGHTS = 6, 8, 5
# While choosing 3 weights, and the SFT model and the two policies.
ROWS = (len(ALPHAS) * len(BETAS) * 3 + 3) * VALIDATION + (1 + WEIGHTS + WEIGHTS) * TEST
REWARDS = '''
"""Two rewards that disagree, which count their calls and can fail."""

SCORED = []
FAIL_AT, ERROR = None, None


def short(prompts, completions):
    if FAIL_AT is not None and len(SCORED) >= FAIL_AT:
        raise ERROR("stop")
    return [-float(len(text)) for text in completions]


def early(prompts, completions):
    if not (len(prompts) == 1 and prompts[0].startswith(completions[0] or "-")):  # the trial before the run
        SCORED.append(list(zip(prompts, completions)))
    letters = [set("abcdefghijklm") ^ set(prompt) for prompt in prompts]  # a judge of the pair, not of the text alone
    return [sum(c in good for c in text) / (1 + len(text)) for good, text in zip(letters, completions)]


def constant(prompts, completions):
    return [1.0 for _ in completions]
'''
COMPLETIONS = (
    "SELECT s.spec, p.split, p.text, c.sample, c.text, c.tokens, c.token_ids, c.kl FROM completions c "
    "JOIN specs s ON s.id = c.spec JOIN prompts p ON p.id = c.prompt ORDER BY s.spec, p.split, p.text, c.sample"
)
SCORES = (
    "SELECT s.spec, p.split, p.text, c.sample, c.reward, c.score FROM scores c JOIN specs s ON s.id = c.spec "
    "JOIN prompts p ON p.id = c.prompt ORDER BY s.spec, p.split, p.text, c.sample, c.reward"
)


def words(settings: dict) -> list[str]:
    """The flags of a stage: a list is several words."""
    return [
        str(word)
        for key, value in settings.items()
        for word in (f"--{key}", *(value if isinstance(value, list) else [value]))
    ]


def read(folder: Path, query: str) -> list[tuple]:
    """The rows of a query to the run store."""
    database = sqlite3.connect(folder / "run.sqlite")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def means_by_hand(folder: Path, split: str, rewards) -> dict[int, np.ndarray]:
    """Mean scores of every point, from the stored completions and the functions themselves."""
    rows = read(
        folder,
        "SELECT o.id, p.scored_text, c.text FROM points o JOIN completions c ON c.spec = o.spec "
        f"JOIN prompts p ON p.id = c.prompt AND p.split = o.split WHERE o.split = '{split}'",
    )
    scores: dict[int, list] = {}
    for point, prompt, text in rows:
        scores.setdefault(point, []).append(rewards.short([prompt], [text]) + rewards.early([prompt], [text]))
    return {point: np.mean(values, axis=0) for point, values in scores.items()}


def area(points: np.ndarray, reference: np.ndarray) -> float:
    """The hypervolume of two rewards: rectangles under the staircase, from right to left."""
    total, height = 0.0, reference[1]
    for x, y in sorted(points.tolist(), key=lambda point: (-point[0], -point[1])):
        if x > reference[0] and y > height:
            total += (x - reference[0]) * (y - height)
            height = y
    return total


def strict_json(path: Path) -> dict:
    """The content of a JSON file that holds neither NaN nor infinities."""

    def refuse(constant: str):
        raise AssertionError(f"{path.name} holds {constant}, which is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def assert_same_store(one: Path, other: Path, *, kl: float = 1e-6) -> None:
    """Every row of every table is the same: texts, tokens and scores exactly, KL and nll up to rounding."""
    a, b = read(one, COMPLETIONS), read(other, COMPLETIONS)
    assert [row[:-1] for row in a] == [row[:-1] for row in b] and len(a) > 0
    np.testing.assert_allclose([row[-1] for row in a], [row[-1] for row in b], rtol=0, atol=kl)
    assert read(one, SCORES) == read(other, SCORES)
    for query in (
        "SELECT id, spec FROM specs ORDER BY id",
        'SELECT id, split, "group", spec FROM points ORDER BY id',
        "SELECT id, split, text, scored_text FROM prompts ORDER BY id",
        "SELECT id, text, tokens FROM control_texts ORDER BY id",
        "SELECT spec, text FROM control ORDER BY spec, text",
        "SELECT key, value FROM meta WHERE key != 'validation' ORDER BY key",
    ):
        assert read(one, query) == read(other, query)
    nll = "SELECT nats FROM control ORDER BY spec, text"
    np.testing.assert_allclose(np.array(read(one, nll)), np.array(read(other, nll)), rtol=1e-5)
