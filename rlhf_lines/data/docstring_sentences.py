"""The task for a language model: say in one sentence what a documented Python function or class does.

The corpus is that of the task `docstrings`: those entries with a public name whose docstring goes on after its summary.
More of them are held out, since a comparison of policies needs more prompts than a short training does; what
`docstrings` holds out is held out here, too.
The model reads the name and what follows the summary; the summary itself is the demonstration. One example:

    prompt      "Say in one sentence what this Python function or class does.

                textwrap.wrap: Reformat the single paragraph in 'text' so it fits in lines of no more than 'width' ..."
    completion  " Wrap a single paragraph of text, returning a list of wrapped lines."

The column `docstring`, the summary and what follows it, is a source to be faithful to; two wishes conflict:

    faithful    means what the docstring means (`similarity:` with `source: docstring`)
    readable    short words in a short sentence (`rule:readability`)
"""

from __future__ import annotations

import json
import textwrap

from rlhf_lines.data.docstrings import Entry, completion, entries


INSTRUCTION = "Say in one sentence what this Python function or class does."
SHARE = 0.24  # for test, and as much for validation: 400 prompts of at most 88 tokens of SmolLM2
SHORTEST_BODY = 60  # characters: of less than that nothing can be said
LONGEST_BODY = 140  # characters: cut between words


def body(entry: Entry) -> str:
    """What the docstring says after its summary, on one line, at most `LONGEST_BODY` characters."""
    _, _, rest = entry.docstring.strip().partition("\n\n")
    return textwrap.shorten(rest, LONGEST_BODY, placeholder=" ...")


def prompt(entry: Entry) -> str:
    """What the policy reads: what to do, the name, and what follows the summary."""
    return f"{INSTRUCTION}\n\n{entry.name}: {body(entry)}"


def demonstrations(split: str) -> list[dict[str, str]]:
    """Rows `{"prompt", "completion"}` for supervised fine-tuning."""
    return [{"prompt": prompt(e), "completion": completion(e)} for e in _documented(split)]


def prompts(split: str) -> list[dict[str, str]]:
    """Rows `{"prompt", "columns"}`; the column is `docstring`."""
    return [
        {"prompt": prompt(e), "columns": json.dumps({"docstring": f"{e.summary} {body(e)}"})}
        for e in _documented(split)
    ]


def _documented(split: str) -> list[Entry]:
    return [e for e in entries(split, SHARE) if len(body(e)) >= SHORTEST_BODY and _is_public(e.name)]


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))
