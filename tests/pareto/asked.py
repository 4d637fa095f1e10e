"""Results of two benchmarks for some of the synthetic points."""

from __future__ import annotations

from rlhf_lines.pareto.benchmarks import Result


# By the ids of points, which of ten documents they answered: SFT, two of the soup, two of LiNeS, of which 7 is best.
ANSWERS = {
    0: [1, 1, 1, 0, 0, 1, 0, 1, 0, 1],
    1: [1, 1, 1, 0, 0, 1, 0, 1, 0, 0],
    3: [0, 1, 1, 0, 0, 1, 0, 0, 0, 1],
    6: [1, 0, 1, 0, 0, 1, 0, 0, 0, 1],
    7: [1, 1, 1, 0, 0, 1, 1, 1, 0, 0],
}
PERPLEXITIES = {0: 6.0, 1: 6.5, 3: 6.25, 6: 7.0, 7: 6.0}
TASK = {"version": 1.0, "hash": "0a", "documents": 10, "num_fewshot": 0}
ABOUT = {"lm_eval": "0.4.13", "limit": 10, "apply_chat_template": False, "system_instruction": None}
BENCHMARKS = {
    "quiz": {**ABOUT, "tasks": {"quiz": TASK}, "metrics": {"quiz/acc": True}},
    "text": {**ABOUT, "tasks": {"text": TASK}, "metrics": {"text/perplexity": False}},
}


def results_of(point: int) -> dict[str, Result]:
    """What the benchmarks found of a point; nothing of one that was not asked."""
    if point not in ANSWERS:
        return {}
    answers = list(map(float, ANSWERS[point]))
    share = sum(answers) / len(answers)
    stderr = (share * (1 - share) / (len(answers) - 1)) ** 0.5
    return {"quiz/acc": Result(share, stderr, answers), "text/perplexity": Result(PERPLEXITIES[point], 0.2)}


def with_results(points: list[dict]) -> list[dict]:
    """The points with their results."""
    return [{**point, "results": results_of(point["id"])} for point in points]
