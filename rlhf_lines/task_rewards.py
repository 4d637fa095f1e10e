"""The reward models of a run, and how a config names them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import reward_models
from reward_models import Classifier, Format, Generative, RewardModel, Similarity
from reward_models.base import is_number
from reward_models.conversation import CHAT
from reward_models.generative import PREFIX as GENERATIVE
from reward_models.load import check_grading
from reward_models.service import SETTINGS, asks_a_service
from reward_models.similarity import PREFIX as SIMILARITY
from rlhf_lines.config import A_NAME, from_json, is_name
from rlhf_lines.distributed import leads
from rlhf_lines.errors import about, alternatives, closest
from rlhf_lines.models import LOAD_DTYPES
from rlhf_lines.native_dtypes import tell_if_slow
from rlhf_lines.redaction import redact, without_secrets


# What an entry may load, as the help of a config has it.
KINDS = (
    "folders of the reward stage, presets, Hub ids, module:function, rule:name, similarity:ENCODER, "
    "generative:MODEL or addresses of services"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardEntry:
    """One item of `rewards` in a config.

    Inside PPO the reward of a completion is

        sum_i weight_i clip((score_i - mean_i) / std_i, -clip_i, clip_i) - kl_coef KL

    with mean 0 and standard deviation 1 where `normalize` is false, and no limit where `clip` is absent.

    Attributes:
        model: what to load: a folder of the reward stage, a preset, a Hub id, `module:function`, `rule:name`,
            `similarity:` or `generative:` and a folder or Hub id, the address of a service, or `judge:` and that of a
            chat model.
        name: what the score is called; None is the folder, preset, model, function, rule, kind or host.
        weight: factor in the sum (mu of MORLHF).
        normalize: whether mean and standard deviation are measured on samples of the SFT model before training.
        clip: largest absolute value after that.
        dtype: of the weights of a model; None is float32.
        batch_size: most texts in one forward pass of a model, or in one request to a service; None leaves it to the
            stage.
        options: of a rule, a similarity, a generative reward model, a service or a function.
        template: what a classifier or service is shown: a text with `{prompt}` and `{completion}`, two of them, or
            `chat`, the chat template of its tokenizer; of a function `chat`, for lists of messages. None is what its
            folder or preset says, or else the prompt's text and the completion's.
        label: which output of a classifier or service is the score, by index or name, or two for their difference;
            None likewise, or else the first.
        system: the system prompt that a classifier or service is shown by `template: chat`, in place of one in the
            data; None likewise, or else that of the data. Of a generative reward model its own.
    """

    model: str
    name: str | None = None
    weight: float = 1.0
    normalize: bool = False
    clip: float | None = None
    dtype: str | None = None
    batch_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    template: str | Sequence[str] | None = None
    label: int | str | Sequence[int] | Sequence[str] | None = None
    system: str | None = None

    @classmethod
    def of(cls, item: str | Mapping[str, Any] | RewardEntry) -> RewardEntry:
        """The entry that an item of a config stands for: a text names the model; a mapping, also as JSON, all.

        An entry stands for itself.

        Raises:
            ValueError: a key is unknown, the model is missing, or a value is wrong.
        """
        if isinstance(item, cls):
            return item
        if isinstance(item, str) and item.lstrip().startswith("{"):
            item = from_json("rewards", item)
        if isinstance(item, str):
            return cls(item)
        if not isinstance(item, Mapping) or not isinstance(item.get("model"), str):
            raise ValueError(f"rewards holds {item!r}, expected the text of a model or a mapping with the key model")
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in item:
            if key not in known:
                near = closest(key, known)
                hint = f"did you mean {near!r}?" if near else f"expected {', '.join(known)}"
                raise ValueError(f"rewards: {item['model']} has the unknown key {key!r}: {hint}")
        return cls(**item)

    @property
    def folder(self) -> Path | None:
        """The folder that a model is loaded from; None of all else."""
        source = Path(self.model.removeprefix(self._kind))
        return source if source.is_dir() else None

    @property
    def _kind(self) -> str:
        return next((kind for kind in (SIMILARITY, GENERATIVE) if self.model.startswith(kind)), "")

    def identity(self) -> dict[str, Any]:
        """What the scores depend on: the model, a folder by its absolute path, dtype, options, template and label.

        How a service is asked, such as its timeout, changes no score, and an address is without what is secret in it.
        """
        kind, folder = self._kind, self.folder
        model = self.model if folder is None else f"{kind}{folder.resolve()}"
        options = self.options
        if asks_a_service(model):
            model = redact(model)
            options = {key: value for key, value in options.items() if key not in SETTINGS}
        given = {"template": self.template, "label": self.label, "system": self.system}
        return {
            "model": model,
            "dtype": self.dtype or "float32",
            "options": without_secrets(options),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None},
        }

    def shared_pass(self) -> str | None:
        """What entries have in common of whose scores one pass of one model makes all; None of any that says no label.

        A model with several objectives has an output for each: several entries that differ in their labels.
        """
        if self.label is None or asks_a_service(self.model):
            return None
        identity = {key: value for key, value in self.identity().items() if key != "label"}
        return json.dumps([identity, self.batch_size], sort_keys=True)

    def shared_weights(self) -> str | None:
        """What generative reward models have in common that ask one loaded model; None of any other."""
        if not self.model.startswith(GENERATIVE):
            return None
        return json.dumps({key: self.identity()[key] for key in ("model", "dtype")}, sort_keys=True)

    def __post_init__(self) -> None:
        for key, expected, holds in (
            ("name", A_NAME, self.name is None or is_name(self.name)),
            ("weight", "a finite number", is_number(self.weight)),
            ("normalize", "true or false", isinstance(self.normalize, bool)),
            ("clip", "a positive number", self.clip is None or (is_number(self.clip) and self.clip > 0)),
            ("dtype", alternatives(LOAD_DTYPES), self.dtype in (None, *LOAD_DTYPES)),
            ("batch_size", "a whole number from 1", self.batch_size is None or _is_count(self.batch_size)),
            ("options", "a mapping", isinstance(self.options, Mapping)),
        ):
            if not holds:
                raise ValueError(f"rewards: {self.model} has {key} {getattr(self, key)!r}, expected {expected}")
        try:
            known = Format(template=CHAT) if self.template is None and self.system else Format()
            known.with_changes(self.template, self.label, self.system)
        except ValueError as error:
            raise ValueError(f"rewards: {self.model}: {error}") from None


def reward_entries(items: Sequence[str | Mapping[str, Any]]) -> list[RewardEntry]:
    """What the items of `rewards` in a config stand for.

    Raises:
        ValueError: there is none, or one is wrong.
    """
    check_some(items)
    return [RewardEntry.of(item) for item in items]


def check_some(rewards: Sequence[object]) -> None:
    """Refuse an empty list of rewards."""
    if not rewards:
        raise ValueError("rewards is empty, expected one reward model or more")


def reward_folders(entries: Iterable[RewardEntry]) -> list[Path]:
    """The folders that the models of a config are loaded from."""
    return [entry.folder for entry in entries if entry.folder is not None]


def load_reward_models(
    entries: Sequence[RewardEntry], *, batch_size: int = 32, trust_remote_code: bool = False
) -> list[RewardModel]:
    """The reward models that the entries name, in their order.

    Args:
        entries: of a config.
        batch_size: of an entry that does not name its own.
        trust_remote_code: whether a model may bring code of its own.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: an entry names nothing that can be loaded, or two have one name.
    """
    models: list[RewardModel] = []
    read: dict[str, Classifier | Generative] = {}  # by what they share
    for entry in entries:
        shared = entry.shared_pass() or entry.shared_weights()
        with about(f"reward {entry.model!r} cannot be loaded"):
            if shared in read:
                models.append(_beside(read[shared], entry, batch_size))
                continue
            loaded = reward_models.load(
                entry.model,
                name=entry.name,
                dtype=entry.dtype,
                batch_size=entry.batch_size or batch_size,
                options=entry.options,
                template=entry.template,
                label=entry.label,
                system=entry.system,
                trust_remote_code=trust_remote_code,
            )
        if entry.dtype is not None and isinstance(loaded, Classifier | Generative | Similarity):
            tell_if_slow(entry.dtype, what=f"reward {loaded.name}", instead=f"dtype: float32 of {loaded.name}")
        if shared is not None and isinstance(loaded, Classifier | Generative):
            read[shared] = loaded
        models.append(loaded)
    check_names([model.name for model in models])
    for model in models:
        if leads() and (guessed := getattr(model, "guessed", None)) is not None:
            logger.warning("%s", guessed)
    return models


def _beside(first: Classifier | Generative, entry: RewardEntry, batch_size: int) -> RewardModel:
    """The reward model of an entry whose weights another one has loaded."""
    if isinstance(first, Classifier):
        return first.beside(name=entry.name or first.name, label=entry.label)
    given = {"template": entry.template, "label": entry.label, "system": entry.system}
    grading = check_grading(entry.model, name=entry.name, options=entry.options, **given)
    return first.beside(grading, batch_size=entry.batch_size or batch_size)


def check_names(names: Sequence[str]) -> None:
    """Refuse two rewards of one name."""
    if len(set(names)) < len(names):
        raise ValueError(f"rewards have the names {', '.join(names)}: two are equal, so give one another name")


def raw_score_problems(entries: Sequence[RewardEntry]) -> list[str]:
    """What is wrong with entries where raw scores are read: they have no weight, normalize or clip."""
    return [
        f"rewards: {entry.model} has a weight, normalize or clip, which are for PPO; here raw scores are read: leave "
        "them out"
        for entry in entries
        if (entry.weight, entry.normalize, entry.clip) != (1.0, False, None)
    ]


def reward_weights(entries: Sequence[RewardEntry], given: Sequence[float] | None) -> list[float]:
    """The weight of every reward: of its entry, or of TRL's flag `reward_weights`, not of both.

    Raises:
        ValueError: there are both, or not as many as rewards, one is not finite, or all are 0.
    """
    if given is None:
        found = [entry.weight for entry in entries]
    else:
        if any(entry.weight != 1.0 for entry in entries):
            raise ValueError("reward_weights was given and rewards holds weights: keep one of the two")
        found = list(given)
    check_weights(found, len(entries))
    return found


def check_weights(weights: Sequence[float], count: int) -> None:
    """Refuse weights of so many rewards that are not as many, no finite numbers, or all 0."""
    if len(weights) != count:
        raise ValueError(f"reward_weights has {len(weights)} values, but rewards has {count}")
    if not all(map(is_number, weights)):
        raise ValueError(f"reward_weights holds {', '.join(map(str, weights))}, expected finite numbers")
    if not any(weights):
        raise ValueError("every reward has the weight 0, so the policy would be trained for nothing: give one another")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
