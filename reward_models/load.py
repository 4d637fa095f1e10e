"""From what a config file says to a reward model."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_models.base import RewardModel, did_you_mean
from reward_models.checkpoint import ADAPTER_FILE
from reward_models.classifier import Classifier
from reward_models.function import FunctionReward
from reward_models.generative import PREFIX as GENERATIVE
from reward_models.generative import Generative
from reward_models.grading import OPTIONS as GRADING_OPTIONS
from reward_models.grading import Grading
from reward_models.judge import make_judge
from reward_models.presets import PRESETS, preset_of
from reward_models.remote import remote
from reward_models.rules import PREFIX, RULES, make_rule
from reward_models.service import JUDGE, SCHEMES, check_options, is_address
from reward_models.similarity import OPTIONS, Similarity, SimilaritySettings
from reward_models.similarity import PREFIX as SIMILARITY


CONVERT = "as docs/reward_models.md shows"


def load(
    source: str | Path,
    *,
    name: str | None = None,
    device: Any = None,
    dtype: Any = None,
    batch_size: int = 32,
    trust_remote_code: bool = False,
    options: Mapping[str, Any] | None = None,
    template: str | Sequence[str] | None = None,
    label: int | str | Sequence[int] | Sequence[str] | None = None,
    system: str | None = None,
) -> RewardModel:
    """The reward model that `source` names, tried in this order.

    1. `http://` or `https://`, the address of a service as `RemoteReward` takes it, or that of a chat model after
       `judge:`, a `Judge`.
    2. `rule:length`, `rule:format`, `rule:lexical` or `rule:readability`, a rule of `reward_models.rules`; or
       `similarity:` and a folder or Hub id, a `Similarity` by that sentence encoder; or `generative:` and a folder or
       Hub id, a `Generative` by that language model.
    3. The name or Hub id of a preset, with the preset's text format.
    4. A folder with a classifier or a PEFT adapter of one; `reward_model.json` there says the text format.
    5. `package.module:function` or `package.module.function`, a function as `FunctionReward` takes it; the module may
       be in the current folder.
    6. A Hub id `owner/model`, read as a classifier with the text `{prompt}{completion}` and output 0, unless `template`
       and `label` say otherwise.

    Args:
        source: what to load; a folder named like a preset is written with `./` before it.
        name: what the score is called; None is the preset, the folder, the function or the model.
        device: torch device of a model; None is the current CUDA device, or the CPU.
        dtype: torch dtype of a model, or its name; None is float32.
        batch_size: most texts in one forward pass of a model, or in one request to a service.
        trust_remote_code: whether code that comes with a model may run.
        options: attributes of a rule, settings of a similarity, a language model, a judge or a service, or keyword
            arguments of a function; a classifier has none.
        template: what a classifier or service is shown, in place of what its folder or preset says: a text with
            `{prompt}` and `{completion}`, two such texts, or `chat` for its tokenizer's chat template. Of a function
            only `chat`, for lists of messages.
        label: the output of a classifier or service that is the score, by index or name, or two for their difference,
            likewise.
        system: the system prompt that a chat template begins with, likewise, or that a language model is given.

    Raises:
        FileNotFoundError: `source` looks like a folder that does not exist, or is one without a model.
        ValueError: it is nothing of the above (lists the presets and the closest name), or does not take an option.
    """
    text = str(source)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise ValueError(f"the options of the reward model {text!r} are {options!r}; expected names with their values")
    if is_address(text):
        _refuse(text, "a service has its weights elsewhere", device=device, dtype=dtype)
        given = {"template": template, "label": label, "system": system, "batch_size": batch_size}
        return remote(text, name=name, options=options, **given)
    if text.startswith(JUDGE):
        settings = {"device": device, "dtype": dtype, "template": template, "label": label, "system": system}
        _refuse(text, "a judge has its weights and prompts elsewhere", **settings)
        return make_judge(text, name=name, options=options)
    if text.startswith(PREFIX):
        _refuse(text, "a rule reads the texts as they are", template=template, label=label, system=system)
        _refuse(text, "a rule has no weights", dtype=dtype)
        return make_rule(text, options, name=name)
    settings = {"device": device, "dtype": dtype, "batch_size": batch_size, "trust_remote_code": trust_remote_code}
    if text.startswith(SIMILARITY):
        stated = check_similarity(text, name=name, options=options, template=template, label=label, system=system)
        make = functools.partial(Similarity.from_pretrained, name=stated.name, **options, **settings)
        return _whole(text.removeprefix(SIMILARITY), make, "a whole sentence encoder")
    if text.startswith(GENERATIVE):
        grading = check_grading(text, name=name, options=options, template=template, label=label, system=system)
        make = functools.partial(Generative.from_pretrained, grading=grading, **settings)
        return _whole(text.removeprefix(GENERATIVE), make)
    preset_name = preset_of(text)
    is_local = preset_name is None and (Path(text).is_dir() or _looks_local(text))
    if preset_name is None and not is_local:
        if ":" in text or ("." in text and "/" not in text):
            _refuse(text, "a function has one score", label=label)
            _refuse(text, "a function has no prompt of its own", system=system)
            _refuse(text, "a function has its weights, if any, to itself", dtype=dtype)
            return _from_function(text, options, name=name, template=template)
        if text.count("/") != 1:
            raise ValueError(f"the reward model {text!r} is not known; {_known(text)}")
    if options:
        raise ValueError(
            f"the reward model {text!r} takes no options, but got {', '.join(map(str, options))}; what a classifier "
            "reads and which output is its score is said by template and label, by its preset, or by reward_model.json "
            "in its folder"
        )
    settings |= {"template": template, "label": label, "system": system}
    if preset_name is not None:
        preset = PRESETS[preset_name]
        return _from_hub(preset.model, preset.format, name=name or preset_name, **settings)
    if is_local:
        return Classifier.from_pretrained(_folder(text), name=name, **settings)
    return _from_hub(text, None, name=name, **settings)


def _refuse(text: str, reason: str, **given: Any) -> None:
    for key, value in given.items():
        if value is not None:
            raise ValueError(f"the reward model {text!r} has {key} {value!r}, but {reason}; leave it out")


def check_similarity(
    text: str,
    *,
    name: str | None,
    options: Mapping[str, Any],
    template: Any = None,
    label: Any = None,
    system: Any = None,
) -> SimilaritySettings:
    """What is said of a similarity, before its encoder is read.

    Raises:
        ValueError: the encoder is missing, or there is no such setting, or it is wrong.
    """
    _refuse(text, "a sentence encoder reads completion and source alone", template=template, label=label, system=system)
    check_options(text, options, OPTIONS)
    if text == SIMILARITY:
        raise ValueError(f"the reward model {text!r} names no encoder; expected {text}FOLDER or {text}HUB_ID")
    return SimilaritySettings(name or SIMILARITY.removesuffix(":"), **options)


def check_grading(
    text: str,
    *,
    name: str | None,
    options: Mapping[str, Any],
    template: Any = None,
    label: Any = None,
    system: Any = None,
) -> Grading:
    """What is said of a generative reward model, before its weights are read.

    Raises:
        ValueError: the model is missing, or there is no such setting, or it is missing, wrong or without effect.
    """
    _refuse(text, "what it is asked stands in its options, as rubric or question", template=template)
    _refuse(text, "its score is the grade that it expects", label=label)
    check_options(text, options, GRADING_OPTIONS)
    if text == GENERATIVE:
        raise ValueError(f"the reward model {text!r} names no language model; expected {text}FOLDER or {text}HUB_ID")
    return Grading(name or GENERATIVE.removesuffix(":"), system=system, **options)


def _whole(source: str, make: Callable[[str | Path], Any], expected: str | None = None) -> Any:
    """What `make` makes of a folder or Hub id; an adapter is refused where something is expected in its place."""
    if not Path(source).is_dir() and not _looks_local(source) and source.count("/") == 1:
        return _opened(source, lambda: make(source))
    if expected is not None and (Path(source) / ADAPTER_FILE).is_file():
        raise ValueError(f"the folder {source} holds an adapter; expected {expected}")
    return make(_folder(source, "fetch one with: python scripts/fetch_models.py"))


def _folder(text: str, way_out: str = "make one with: rlhf-lines reward") -> Path:
    """The folder that the text names, absolute.

    Raises:
        FileNotFoundError: there is none, or none with a model in safetensors.
    """
    folder = Path(text)
    if not folder.is_dir():
        raise FileNotFoundError(f"the reward model {text} does not exist; {way_out}, or check the path")
    if (folder / ADAPTER_FILE).is_file():
        return folder.resolve()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"the folder {text} holds neither config.json nor {ADAPTER_FILE}, so it is no reward model; "
            f"{way_out}, or check the path"
        )
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"the folder {text} holds no weights as safetensors, and other files are not read, because a pickle can "
            f"run any code; convert it, if you trust it, {CONVERT}"
        )
    return folder.resolve()


def _from_hub(model: str, format: Any, *, name: str | None, **settings: Any) -> Classifier:
    make = functools.partial(Classifier.from_pretrained, model, format, name=name, **settings)
    return _opened(model, make, "" if format else f"; {_known(model)}")


def _opened(model: str, make: Callable[[], Any], hint: str = "") -> Any:
    """What `make` makes of a Hub id, or one sentence why it cannot."""
    from huggingface_hub.utils import httpx

    try:
        return make()
    except (OSError, httpx.HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the reward model {model!r} cannot be loaded from the Hub as safetensors ({reason}); if it holds a pickle "
            f"alone, convert it, if you trust it, {CONVERT}{hint}"
        ) from error


def _looks_local(text: str) -> bool:
    parts = Path(text).parts
    return (
        text.startswith(("/", ".", "~", "models/"))  # the last is where scripts/fetch_models.py writes
        or text.endswith("/")
        or text.count("/") > 1
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _from_function(text: str, options: Mapping[str, Any], *, name: str | None, template: Any) -> FunctionReward:
    function, own_name = _function(text)
    if options:
        try:
            inspect.signature(function).bind_partial(**options)
        except (TypeError, ValueError) as error:  # the second, for built-in functions that do not tell
            raise ValueError(
                f"the reward model {text!r} cannot be called with its options {', '.join(map(str, options))}: {error}"
            ) from None
        function = functools.partial(function, **options)
    return FunctionReward(function, name=name or own_name, template=template)


def _function(text: str) -> tuple[Any, str]:
    """The function that the text names, and its name in its module."""
    module_name, _, attribute = text.partition(":") if ":" in text else text.rpartition(".")
    look_here()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (module_name == missing or module_name.startswith(f"{missing}.")):
            here = [path.stem for path in Path.cwd().glob("*.py")]
            meant = did_you_mean(module_name.removesuffix(".py"), here)
            raise ValueError(
                f"the reward model {text!r} names the module {module_name!r}, which cannot be found; "
                f"{meant or _known(text)}".rstrip()
            ) from None
        # A module that exists and lacks something of its own is not a mistake in the name.
        raise ValueError(
            f"the reward model {text!r} names the module {module_name!r}, which cannot be imported; mend it "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"the reward model {text!r} names {attribute!r}, which is no function of {module_name!r}; "
            f"{did_you_mean(attribute, functions)}expected a function of prompts and completions that returns one "
            "number per pair"
        )
    return function, attribute


def look_here() -> None:
    """Let modules of the current folder be found, as a script finds them: an installed command does not look there."""
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)


def _known(text: str) -> str:
    rules = [PREFIX + rule for rule in RULES]
    names = [*PRESETS, *(preset.model for preset in PRESETS.values()), *rules]
    return (
        f"{did_you_mean(text, names, cutoff=0.5)}expected a folder, a function as 'module:function', a Hub id, "
        f"{SIMILARITY}FOLDER, {GENERATIVE}FOLDER, {SCHEMES[0]}ADDRESS, {JUDGE}{SCHEMES[0]}ADDRESS, or one of "
        f"{', '.join([*PRESETS, *rules])}"
    )
