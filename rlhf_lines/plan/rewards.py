"""What the reward models of a run take: parameters, memory, and whether they exist."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import reward_models
from reward_models import Format, RewardModel
from reward_models.checkpoint import ADAPTER_FILE, check_causal
from reward_models.encoder import Encoder, guesses
from reward_models.generative import PREFIX as GENERATIVE
from reward_models.grading import GradeEncoder, question_room
from reward_models.load import check_grading, check_similarity
from reward_models.presets import PRESETS, preset_of
from reward_models.service import asks_a_service
from reward_models.similarity import PREFIX as SIMILARITY
from reward_models.similarity import SimilaritySettings
from rlhf_lines import skeleton
from rlhf_lines.plan import counts
from rlhf_lines.plan.memory import FLOAT64
from rlhf_lines.plan.rehearsal import Rehearsal
from rlhf_lines.plan.shapes import find_shape, makers


if TYPE_CHECKING:
    from rlhf_lines.task_rewards import RewardEntry

QUESTION = 200  # tokens of a question beside prompt, completion and rubric, where no tokenizer is at hand


@dataclass(frozen=True)
class RewardPlan:
    """One reward model.

    Attributes:
        name: what the score will be called.
        source: where its shape is from.
        model: without weights, or None for a function, rule or service, which takes nothing.
        batch_size: most texts in one pass.
        reader: what shows a row as the reward model reads it; None where its tokenizer is not at hand.
        guessed: what is assumed of it, in one line, or None.
        make: what makes another model of its config.
        asked: of a generative reward model, tokens of the question beside prompt and completion.
        reasoning: of one, most tokens that it writes.
        shares: whether another one holds its weights.
    """

    name: str
    source: str
    model: object | None = None
    batch_size: int = 32
    reader: Encoder | GradeEncoder | RewardModel | SimilaritySettings | None = None
    guessed: str | None = None
    make: Callable[..., object] = skeleton.classifier
    asked: int = 0
    reasoning: int = 0
    shares: bool = False

    @property
    def weights(self) -> int:
        """Bytes of its parameters and buffers."""
        if self.model is None or self.shares:
            return 0
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def forward(self, texts: int, length: int) -> int:
        """The bytes of scoring so many texts of so many of the policy's tokens."""
        if self.model is None:
            return 0
        config, dtype = self.model.config, next(self.model.parameters()).dtype
        other = self.make(config, dtype=str(dtype).removeprefix("torch."))  # a rehearsal changes its model
        rows, length = min(texts, self.batch_size), self.length(length) + self.reasoning
        passes = Rehearsal(other).forward(rows, length, use_cache=self.reasoning > 0)
        if self.make is not skeleton.causal_lm:
            return passes
        # Logits of one token of each text, as they come and twice in float64.
        return passes + rows * config.get_text_config().vocab_size * (dtype.itemsize + 2 * FLOAT64)

    def length(self, tokens: int) -> int:
        """The tokens that it reads of a text of so many of the policy's."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(tokens + self.asked, (longest or tokens + self.asked + self.reasoning) - self.reasoning)


def plan_rewards(entries: Sequence[RewardEntry], *, beside: Path | None, batch_size: int = 32) -> list[RewardPlan]:
    """The plans of the rewards, in their order.

    Raises:
        FileNotFoundError, ValueError: a source is nothing that can be loaded, as `reward_models.load` says it.
    """
    plans: list[RewardPlan] = []
    read: dict[str, str] = {}  # by what they share, the name of the first
    for entry in entries:
        plan, shared = _plan(entry, beside, batch_size), entry.shared_pass() or entry.shared_weights()
        if shared in read and entry.shared_weights() is not None:
            plan = dataclasses.replace(plan, source=f"the weights of {read[shared]}, once in memory", shares=True)
        elif shared in read and plan.model is not None:
            found = f"further outputs of the pass for {read[shared]}, which take no memory of their own"
            plan = dataclasses.replace(plan, source=found, model=None)
        elif shared is not None:
            read[shared] = plan.name
        plans.append(plan)
    return plans


def _plan(entry: RewardEntry, beside: Path | None, batch_size: int) -> RewardPlan:
    source = entry.model
    if source.startswith(SIMILARITY):
        return _similarity(entry, beside, batch_size)
    if source.startswith(GENERATIVE):
        return _generative(entry, beside, batch_size)
    preset_name = preset_of(source)
    made = next(makers(source, beside), None)
    is_hub_id = source.count("/") == 1 and ":" not in source and not Path(source.split("/")[0]).is_dir()
    if preset_name is None and made is None and not Path(source).is_dir() and not is_hub_id:
        # A service, a function or a rule; anything else is refused by its own sentence.
        given = {"options": entry.options, "template": entry.template, "label": entry.label, "system": entry.system}
        loaded = reward_models.load(source, name=entry.name, dtype=entry.dtype, **given)
        kind = "a service elsewhere" if asks_a_service(source) else "a function"
        return RewardPlan(loaded.name, f"{kind}, which takes no memory that is counted here", reader=loaded)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in ("config.json", ADAPTER_FILE)):
        reward_models.load(source)  # refused: no model in it
    shape = find_shape(PRESETS[preset_name].model if preset_name else source, beside=beside, what="reward model")
    if made is not None and not Path(source).is_dir():
        shape.config.num_labels = 1
    model = skeleton.classifier(shape.config, dtype=entry.dtype)
    found = f"{counts.count(model):,} parameters; {shape.source}"
    name = entry.name or preset_name or Path(source).name
    tokenizer = tokenizer_at_hand(PRESETS[preset_name].model if preset_name else source)
    stated = PRESETS[preset_name].format if preset_name else reward_models.read_settings(source)
    given, reader, guessed = {"template": entry.template, "label": entry.label, "system": entry.system}, None, None
    if tokenizer is not None:
        reader = Encoder(model.config, tokenizer, (stated or Format()).with_changes(**given), name=name)
        guessed = (
            guesses(model.config, tokenizer, name=name, template=entry.template, label=entry.label)
            if stated is None
            else None
        )
    return RewardPlan(name, found, model, entry.batch_size or batch_size, reader, guessed)


def _similarity(entry: RewardEntry, beside: Path | None, batch_size: int) -> RewardPlan:
    source = entry.model.removeprefix(SIMILARITY)
    given = {"options": entry.options, "template": entry.template, "label": entry.label, "system": entry.system}
    reader = check_similarity(entry.model, name=entry.name, **given)
    shape = find_shape(source, beside=beside, what="sentence encoder")
    model = skeleton.encoder(shape.config, dtype=entry.dtype)
    found = f"{counts.count(model):,} parameters; {shape.source}"
    return RewardPlan(reader.name, found, model, entry.batch_size or batch_size, reader, make=skeleton.encoder)


def _generative(entry: RewardEntry, beside: Path | None, batch_size: int) -> RewardPlan:
    source = entry.model.removeprefix(GENERATIVE)
    given = {"options": entry.options, "template": entry.template, "label": entry.label, "system": entry.system}
    grading = check_grading(entry.model, name=entry.name, **given)
    shape = find_shape(source, beside=beside, what="language model")
    check_causal(shape.config, source)
    model = skeleton.causal_lm(shape.config, dtype=entry.dtype)
    found = f"{counts.count(model):,} parameters; {shape.source}"
    question_room(grading, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    tokenizer, reader, asked = tokenizer_at_hand(source), None, QUESTION
    if tokenizer is not None:
        reader = GradeEncoder(model.config, tokenizer, grading)
        asked = len(reader.encode("", "")) + len(reader.at_once.token_ids)
    return RewardPlan(
        grading.name, found, model, entry.batch_size or batch_size, reader, make=skeleton.causal_lm, asked=asked,
        reasoning=grading.reasoning,
    )  # fmt: skip


def tokenizer_at_hand(source: str):
    """The tokenizer of a folder, or of a Hub id in the cache; None where it would have to be fetched."""
    from transformers import AutoTokenizer

    folder = Path(source)
    if (folder / ADAPTER_FILE).is_file() and not (folder / "tokenizer_config.json").is_file():
        source = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        return None
