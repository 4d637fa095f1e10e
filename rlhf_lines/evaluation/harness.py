"""lm-eval, asked about a model that is loaded already.

lm-eval's own model class for transformers reads and generates, so that a point is asked as its merged checkpoint would
be. Ours are the size of its batches and one bar in place of many. No request goes anywhere but to this model; the data
of a task come from where its config says, which for most is the Hub.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
import numpy as np
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import hash_string, set_torch_seed

from rlhf_lines.errors import Problems, closest, is_of_machine, is_ours, reason
from rlhf_lines.evaluation.asking import Asking
from rlhf_lines.progress import beat
from rlhf_lines.sweep.engines.batches import in_halves, rows_in_memory
from rlhf_lines.sweep.engines.sampling import rows_of_pass


if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.result_schema import EvalResults
    from lm_eval.tasks.manager import TaskDict
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOWS = 64  # of long texts that are read together, at most
DEFAULT_FILTER = "none"  # of answers that are taken as they are
WHOLE_TEXTS = "loglikelihood_rolling"  # what lm-eval calls it
DATA = ("datasets", "huggingface_hub")  # whose loggers write to the true stderr
# What a config, its functions or its data may raise; a RuntimeError is the model's.
OF_TASKS = (
    *(ValueError, AssertionError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError),
    TemplateError,
)
SAME = 1e-9  # how far a mean of the values of documents may be from what lm-eval calls the mean

logger = logging.getLogger(__name__)


class LoadedModel(HFLM):
    """lm-eval's model of transformers over one that is loaded.

    A pass that does not fit into the memory of a GPU is halved.

    Args:
        model: the policy that is asked, and may be another one the next time.
        tokenizer: its tokenizer.
        batch_size: texts in one pass; None is what fits.

    Attributes:
        warned: what has been said of it.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | None = None
    ) -> None:
        with _quietly():  # it warns that the model is loaded
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or WINDOWS)
        self._given = batch_size
        self.warned: set[str] = set()

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As lm-eval's, without its bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        """As lm-eval's, without its bar, in batches that fit, the longest prompts first."""
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        alike: dict[str, list[int]] = {}  # those of one batch are written in one way
        for i in sorted(range(len(requests)), key=lambda i: -lengths[i]):
            alike.setdefault(repr(requests[i].args[1]), []).append(i)
        found: dict[int, str] = {}
        for order in alike.values():
            written = normalize_gen_kwargs(requests[order[0]].args[1], self.max_gen_toks)["max_gen_toks"]
            longest = min(lengths[order[0]] + written, self.max_length)
            rows = self._given or rows_in_memory(self.model, longest)
            for start in range(0, len(order), rows):
                some = order[start : start + rows]
                found |= zip(some, in_halves(self._written, [requests[i] for i in some]), strict=True)
        return [found[i] for i in range(len(requests))]

    def _written(self, requests: list) -> list[str]:
        with self._together(len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As lm-eval's, in passes that fit, the longest first: what is too long fails at once."""
        of_row: dict[tuple[int, ...], list[int]] = {}  # texts that differ in their last token alone are one row
        for i, (_, before, after) in enumerate(requests):
            of_row.setdefault((*before, *after[:-1]), []).append(i)
        left = sorted(of_row, key=lambda row: (len(row), row))
        found: dict[int, tuple[float, bool]] = {}
        while left:
            rows = self._given or self._rows_of_pass(len(left[-1]))
            some, left = left[-rows:], left[:-rows]
            answers = in_halves(lambda part: self._read([[requests[i] for i in of_row[row]] for row in part]), some)
            for row, own in zip(some, answers, strict=True):
                found |= zip(of_row[row], own, strict=True)
        return [found[i] for i in range(len(requests))]

    def _rows_of_pass(self, length: int) -> int:
        length = min(length, self.max_length)
        return rows_of_pass(self.config.get_text_config().vocab_size, self.device.type, length, length - 1)

    def _read(self, rows: list[list[tuple]]) -> list[list[tuple[float, bool]]]:
        """What lm-eval says of the requests of each row, all rows in one pass."""
        with self._together(len(rows)):
            answers = iter(super()._loglikelihood_tokens([one for row in rows for one in row], disable_tqdm=True))
        return [list(itertools.islice(answers, len(row))) for row in rows]

    @contextlib.contextmanager
    def _together(self, rows: int) -> Iterator[None]:
        """Inside, so many rows are one batch of lm-eval's."""
        own, self.batch_size_per_gpu = self.batch_size_per_gpu, rows
        try:
            yield
        finally:
            self.batch_size_per_gpu = own

    def _model_call(self, inps: Tensor, *others: Tensor, **more: Tensor) -> Tensor:
        beat(f"reading {len(inps)} texts")
        return super()._model_call(inps, *others, **more)

    def _model_generate(self, context: Tensor, *others: Any, **more: Any) -> Tensor:
        beat(f"answering {len(context)} prompts")
        return super()._model_generate(context, *others, **more)


def load_tasks(names: Sequence[str], asking: Asking, include_path: str | Path | None = None) -> dict[str, TaskDict]:
    """The tasks with their data, by the names under which they are asked for: of a task, a group of tasks or a tag.

    Args:
        names: of lm-eval's own, or of those in `include_path`, which come first.
        asking: how they are asked.
        include_path: a folder of task configs (YAML).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a name is unknown, its data cannot be loaded, or it cannot be asked so.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise FileNotFoundError(f"include_path {include_path} is no folder: expected one of task configs of lm-eval")
    with _quietly():
        manager = _manager(names, include_path)
    problems = Problems()
    for group, name in itertools.chain.from_iterable(_with_members(manager, name) for name in names):
        if name not in manager.all_tasks:
            close = closest(name, manager.all_tasks)
            of, hint = f" of {group}" if group else "", f"; did you mean {close!r}?" if close else ""
            problems.add(f"unknown task {name!r}{of}{hint} (lm-eval ls tasks lists all; --include_path adds your own)")
    problems.check()
    loaded = {}
    for name in names:
        beat(f"loading {name}")
        loaded[name] = _load(manager, name)
        _check(name, loaded[name], asking, problems)
    _check_distinct(loaded, problems)
    problems.check()
    return loaded


def _with_members(manager: TaskManager, name: str, group: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name, and those of all tasks that it is a group of, each behind the group that names it."""
    yield group, name
    for member in manager.task_index[name].cfg["task"] if name in manager.all_groups else ():
        if isinstance(member, str):  # others are configs
            yield from _with_members(manager, member, name)


def _load(manager: TaskManager, name: str) -> TaskDict:
    """The task with its data."""
    what = f"task {name} cannot be loaded, by its config and its data"
    with _told(what, Exception) as said:
        loaded = manager.load([name])
    if said.errors:  # it would fail when it is asked
        raise ValueError(f"{what}: {said.errors[0]}")
    return loaded


def _meant(error: Exception) -> str:
    """What lm-eval or datasets say is wrong."""
    if isinstance(error, StopIteration):
        return "there are no documents"
    behind = isinstance(error, DatasetGenerationError) and error.__cause__  # it says no more than that it failed
    return reason(behind or error)


def _manager(names: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """What knows the tasks. To read lm-eval's own thousands takes half a minute, and is left out where it can be."""
    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(_is_whole(own, name) for name in names):
            return own
    return TaskManager(include_path=include_path)


def _is_whole(manager: TaskManager, name: object) -> bool:
    """Whether a task, or a group with all of its tasks, is known; a tag may also be one of lm-eval's."""
    if name in manager.all_groups:
        return all(_is_whole(manager, member) for member in manager.task_index[name].cfg["task"])
    return name in manager.all_subtasks


def _check(name: str, loaded: TaskDict, asking: Asking, problems: Problems) -> None:
    """Set the number of examples of every task, and find what it cannot be asked."""
    for leaf, task in loaded["tasks"].items():
        of = "" if leaf == name else f" of {name}"
        if getattr(task, "UNSAFE_CODE", False):
            problems.add(
                f"task {leaf}{of} runs the code that a model wrote, which is not done here: merge the point "
                "(rlhf-lines pick), and ask lm-eval itself in a place that is safe"
            )
        if getattr(task, "MULTIMODAL", False):
            problems.add(f"task {leaf}{of} shows images, which the models of a sweep do not read: leave it out")
        given = task.get_config("num_fewshot")
        if task.OUTPUT_TYPE == WHOLE_TEXTS:
            for setting in ("num_fewshot", "apply_chat_template", "system_instruction"):
                if getattr(asking, setting):
                    problems.add(f"task {leaf}{of} reads whole texts, with nothing around them: leave out {setting}")
        elif asking.num_fewshot and given == 0:
            problems.add(f"task {leaf}{of} is asked without examples, as its config says: leave out num_fewshot")
        if asking.num_fewshot is not None or given is None:
            task.set_config(key="num_fewshot", value=asking.num_fewshot or 0)
        if (shown := task.get_config("num_fewshot")) > (known := _known_examples(task)):
            problems.add(f"task {leaf}{of} has {known} examples for a question, and num_fewshot is {shown}: give fewer")


def _known_examples(task: Task) -> float:
    """From how many examples those before a question are drawn, where the task says so: never the question itself."""
    if not hasattr(task, "sampler"):
        return math.inf
    return len(task.sampler.df) - (task.fewshot_cfg.split == task.config.test_split)


def _check_distinct(loaded: Mapping[str, TaskDict], problems: Problems) -> None:
    """Find metrics that two of the tasks would have under one name."""
    owners: dict[str, str] = {}
    for name, one in loaded.items():
        for shown in _shown(name, one):
            if shown in owners:
                problems.add(f"task {shown} is asked by {owners[shown]} and by {name}: leave out one of them")
            owners.setdefault(shown, name)


def ask(model: LoadedModel, name: str, loaded: TaskDict, asking: Asking) -> dict[str, Any]:
    """What lm-eval finds, as JSON values.

    Returns:
        `lm_eval`, its version; `asked`, how; `tasks`, by name with `version`, `hash` (of documents, prompts and
        targets, as lm-eval makes it), `documents` and `num_fewshot`; `metrics`, by name with `value`, `stderr`,
        `higher_is_better` and, where the value is their mean, the `values` of the documents.

    Raises:
        ValueError: the model cannot be asked so.
    """
    random.seed(DEFAULT_RANDOM_SEED)  # these are lm-eval's own, under every point the same
    np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002 - which tasks draw from
    set_torch_seed(DEFAULT_OTHER_SEED)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    with _told(f"task {name} cannot be asked, by its config and its data", *OF_TASKS) as said:
        results = evaluate(
            model,
            loaded,
            limit=asking.limit,
            system_instruction=asking.system_instruction,
            apply_chat_template=asking.apply_chat_template,
            fewshot_as_multiturn=asking.apply_chat_template,
        )
    for warning in map(f"lm-eval on {name}: {{}}".format, said.warnings):
        if warning not in model.warned:  # of another point
            model.warned.add(warning)
            logger.warning("%s", warning)
    metrics = {key: value for shown in _shown(name, loaded) for key, value in _metrics(results, shown)}
    if not metrics:
        raise ValueError(f"task {name} has no metric that is a number: leave it out")
    return {
        "lm_eval": lm_eval.__version__,
        "asked": asdict(asking),
        "tasks": {leaf: _about_task(results, leaf) for leaf in loaded["tasks"]},
        "metrics": metrics,
    }


def _about_task(results: EvalResults, leaf: str) -> dict[str, Any]:
    hashes = [row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in results["samples"][leaf]]
    return {
        "version": results["versions"][leaf],
        "hash": hash_string("".join(hashes)),
        "documents": results["n-samples"][leaf]["effective"],
        "num_fewshot": results["n-shot"][leaf],
    }


def _shown(name: str, loaded: TaskDict) -> list[str]:
    """Whose metrics are kept: those of a group that has its own, else those of all tasks."""
    group = loaded["groups"].get(name)
    return [name] if group is not None and group.aggregate_metric_list else list(loaded["tasks"])


def _metrics(results: EvalResults, task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and values of the metrics of a task or group that are numbers."""
    found: Mapping[str, Any] = results["results"][task]
    for key, value in found.items():
        metric, comma, of_filter = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = found.get(f"{metric}_stderr,{of_filter}")
        own = "" if of_filter == DEFAULT_FILTER else f",{of_filter}"
        yield (
            f"{task}/{metric}{own}",
            {
                "value": float(value),
                "stderr": float(stderr) if _is_number(stderr) else None,
                "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                "values": _values(results["samples"].get(task, []), metric, of_filter, float(value)),
            },
        )


def _values(samples: Sequence[Mapping[str, Any]], metric: str, of_filter: str, mean: float) -> list[float] | None:
    """What each document counts, in their order, if the mean of these is the metric."""
    values = [row.get(metric) for row in samples if row["filter"] == of_filter]
    if not values or not all(map(_is_number, values)):
        return None
    return [float(value) for value in values] if abs(math.fsum(values) / len(values) - mean) <= SAME else None


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float, np.number)) and math.isfinite(value)


@dataclass
class _Said:
    """What lm-eval logged, each once: its warnings, and what it calls errors."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _told(what: str, *kinds: type[Exception]) -> Iterator[_Said]:
    """As `_quietly`, and an error of these kinds becomes one sentence: the first error that lm-eval logged, if it did.

    Raises:
        ValueError: in place of the error.
    """
    try:
        with _quietly() as said:
            yield said
    except kinds as error:
        if is_ours(error) or is_of_machine(error):
            raise
        raise ValueError(f"{what}: {said.errors[0] if said.errors else _meant(error)}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[_Said]:
    """Inside, nothing of lm-eval is seen: neither its bars nor what it prints. What it logs is in what is yielded."""
    found: dict[tuple[str, int], logging.LogRecord] = {}  # by where it is from: one may be about each document
    keeper = logging.Handler(logging.WARNING)
    keeper.emit = lambda record: found.setdefault((record.pathname, record.lineno), record)
    own, said = logging.getLogger("lm_eval"), _Said()
    own.addHandler(keeper)
    shown = {handler: handler.level for name in DATA for handler in logging.getLogger(name).handlers}
    for handler in shown:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield said
    finally:
        own.removeHandler(keeper)
        for handler, level in shown.items():
            handler.setLevel(level)
        for record in found.values():
            texts = said.errors if record.levelno >= logging.ERROR else said.warnings
            texts.append(" ".join(record.getMessage().split()))
