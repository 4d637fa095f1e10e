"""Tiny tasks of lm-eval from local files: multiple choice with an example before it, likelihoods of answers and of
whole texts, generation, generation with filters, and groups of these with and without a metric of their own.
"""

from __future__ import annotations

import json
from pathlib import Path


CHOICES = [
    {"question": "the cat sat on", "choices": ["a mat", "the sky", "no"], "gold": 0},
    {"question": "a dog", "choices": ["barks", "meows", "is a very long tree"], "gold": 0},
    {"question": "one and one", "choices": ["three", "two", "x"], "gold": 1},
    {"question": "up", "choices": ["down", "left", "a b"], "gold": 0},
    {"question": "zz top", "choices": ["q", "w", "e"], "gold": 2},
    {"question": "the end of it", "choices": ["n", "no", "never"], "gold": 2},
]
ANSWERS = [{"question": text, "answer": text[::-1]} for text in ("ab", "hello there", "xyz", "mm mm", "q")]
LIKELY = [{"question": text, "answer": text[:2]} for text in ("abab", "so so", "the dog and the", "x")]
TEXTS = [{"text": "some words of a text"}, {"text": "others."}]
CONFIGS = {
    "tiny_choice": """
        training_split: train
        test_split: test
        output_type: multiple_choice
        num_fewshot: 1
        doc_to_text: "q: {{question}}\\na:"
        doc_to_target: gold
        doc_to_choice: "{{choices}}"
        metric_list:
          - {metric: acc}
          - {metric: acc_norm}
        metadata: {version: 3.0}
    """,
    "tiny_answer": """
        test_split: test
        output_type: generate_until
        num_fewshot: 0
        doc_to_text: "{{question}} &"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: ["\\n", "ee"], max_gen_toks: 12, do_sample: false}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
        metadata: {version: 1.5}
    """,
    "tiny_likely": """
        training_split: train
        test_split: test
        output_type: loglikelihood
        doc_to_text: "{{question}}"
        doc_to_target: " {{answer}}"
        metric_list:
          - {metric: perplexity}
          - {metric: acc, aggregation: mean, higher_is_better: true}
        metadata: {version: 1.0}
    """,
    "tiny_filtered": """
        training_split: train
        test_split: test
        output_type: generate_until
        num_fewshot: 1
        description: "now "
        doc_to_text: "{{question}}"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
        filter_list:
          - name: last
            filter:
              - {function: regex, regex_pattern: "([a-z])", group_select: -1}
              - {function: take_first}
          - name: whole
            filter:
              - {function: take_first}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
        metadata: {version: 1.0}
    """,
    "tiny_text": """
        test_split: test
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list:
          - {metric: word_perplexity}
        metadata: {version: 2.0}
    """,
}
ROWS = {
    "tiny_choice": CHOICES,
    "tiny_answer": ANSWERS,
    "tiny_likely": LIKELY,
    "tiny_filtered": ANSWERS,
    "tiny_text": TEXTS,
}
GROUP = """
group: tiny_both
task: [tiny_choice, tiny_answer]
"""
GROUP_WITH_A_MEAN = """
group: tiny_mean
task: [tiny_choice, tiny_likely]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata: {version: 1.0}
"""


def write_tasks(folder: Path) -> Path:
    """Write the configs and their data into a folder, and return it."""
    folder.mkdir(parents=True)
    for name, config in CONFIGS.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        lines = [f"task: {name}", "dataset_path: json", "dataset_kwargs:", "  data_files:"]
        lines += [f"    {split}: {path}" for split in ("train", "test")]
        body = [line.removeprefix("        ") for line in config.strip("\n").splitlines()]
        (folder / f"{name}.yaml").write_text("\n".join([*lines, *body]) + "\n")
    (folder / "tiny_both.yaml").write_text(GROUP)
    (folder / "tiny_mean.yaml").write_text(GROUP_WITH_A_MEAN)
    return folder
