"""From what a config file says to a reward model."""

import difflib
import importlib
from pathlib import Path
from typing import Any

from reward_models.base import FunctionReward, RewardModel
from reward_models.checkpoint import ADAPTER_FILE
from reward_models.classifier import Classifier
from reward_models.presets import PRESETS


def load(
    source: str | Path,
    *,
    name: str | None = None,
    device: Any = None,
    dtype: Any = None,
    batch_size: int = 32,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Returns the reward model that ``source`` names, tried in this order.

    1. The name or Hub id of a preset, with the preset's text format.
    2. A folder with a classifier or a PEFT adapter of one; ``reward_model.json`` there says the text format.
    3. ``package.module:function`` or ``package.module.function``, a function of (prompts, completions).
    4. A Hub id ``owner/model``, read as a classifier with the text ``{prompt}{completion}`` and output 0. A classifier
       with another text format needs a folder with a ``reward_model.json``.

    Args:
        source: What to load; a folder named like a preset is written with ``./`` before it.
        name: What the score is called; None is the preset, the folder, the function or the model.
        device: Torch device of a classifier; None is the first CUDA device, or the CPU.
        dtype: Torch dtype of a classifier or its name; None is float32.
        batch_size: Most texts in one forward pass of a classifier.
        trust_remote_code: Whether code that comes with a classifier may run.

    Raises:
        FileNotFoundError: If ``source`` looks like a folder that does not exist, or is one without a model.
        ValueError: If it is nothing of the above; lists the presets and the closest name.
    """
    text = str(source)
    options = {"device": device, "dtype": dtype, "batch_size": batch_size, "trust_remote_code": trust_remote_code}
    for preset_name, preset in PRESETS.items():
        if text in (preset_name, preset.model):
            return _from_hub(preset.model, preset.format, name=name or preset_name, **options)
    if Path(text).is_dir():
        if not any((Path(text) / file).is_file() for file in ("config.json", ADAPTER_FILE)):
            raise FileNotFoundError(
                f"the folder {text} holds neither config.json nor {ADAPTER_FILE}, so it is no reward model; "
                "make one with: rlhf-lines reward, or check the path"
            )
        return Classifier.from_pretrained(Path(text).resolve(), name=name, **options)
    if _looks_local(text):
        raise FileNotFoundError(
            f"the reward model {text} does not exist; make it with: rlhf-lines reward, or check the path"
        )
    if ":" in text or ("." in text and "/" not in text):
        return FunctionReward(_function(text), name=name)
    if text.count("/") == 1:
        return _from_hub(text, None, name=name, **options)
    raise ValueError(f"the reward model {text!r} is not known; {_known(text)}")


def _from_hub(model: str, format: Any, *, name: str | None, **options: Any) -> Classifier:
    try:
        return Classifier.from_pretrained(model, format, name=name, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"the reward model {model!r} cannot be loaded from the Hub as safetensors ({reason}); {_known(model)}"
        ) from error


def _looks_local(text: str) -> bool:
    parts = Path(text).parts
    return (
        text.startswith(("/", ".", "~"))
        or text.endswith("/")
        or text.count("/") > 1
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _function(text: str) -> Any:
    module_name, _, attribute = text.partition(":") if ":" in text else text.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists and lacks something of its own is not a mistake in the name.
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise ValueError(
            f"the reward model {text!r} names the module {module_name!r}, which cannot be found; {_known(text)}"
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(
            f"the reward model {text!r} names {attribute!r}, which is no function of {module_name!r}; "
            "expected a function of (prompts, completions) that returns one number per pair"
        )
    return function


def _known(text: str) -> str:
    names = [*PRESETS, *(preset.model for preset in PRESETS.values())]
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    return f"{suggestion}expected a folder, a function as 'module:function', a Hub id, or one of {', '.join(PRESETS)}"
