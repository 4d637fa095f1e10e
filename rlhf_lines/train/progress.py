"""One progress bar per stage, with the numbers that say whether it learns."""

from __future__ import annotations

import logging

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf_lines.distributed import leads
from rlhf_lines.native_dtypes import tell_if_slow
from rlhf_lines.progress import Bar, beat


logger = logging.getLogger(__name__)
SHOWN = ("loss", "accuracy", "reward", "kl")


class StageProgress(TrainerCallback):
    """A bar over the updates; every logged value stays in the trainer's history and goes to its trackers."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._bar: Bar | None = None
        self._batches = 0  # of the update that is being made

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar, in the process that speaks."""
        if leads():
            self._bar = Bar(total=state.max_steps, initial=state.global_step, desc=self._description, unit="updates")

    def on_substep_end(self, args, state, control, **kwargs):
        """Show life before an update is done: it may take many batches."""
        self._batches += 1
        beat(f"batch {self._batches} of {args.gradient_accumulation_steps} of an update")

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar to the update that is done."""
        self._batches = 0
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the numbers of `SHOWN` that are logged."""
        if self._bar is not None:
            # A policy's loss says nothing; its reward does.
            names = [name for name in SHOWN if name in logs and not (name == "loss" and "reward" in logs)]
            self._bar.numbers({name: f"{logs[name]:z.3g}" for name in names})

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def show_progress(trainer: Trainer, description: str) -> None:
    """Replace the trainer's own bar and printed dictionaries by one bar."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(StageProgress(description))


def tell_chosen(training, model_config, model) -> None:
    """Say what was left open and what it became, what has no effect, and what is slow on this machine."""
    for sentence in training.without_effect if leads() else ():
        logger.warning("%s", sentence)
    if leads() and training.chosen:
        logger.warning("chosen, because not given: %s", describe_chosen(training, model_config, model))
    loaded = str(model.dtype).removeprefix("torch.")
    instead = ["bf16: false"] * training.bf16 + ["dtype: float32"] * (loaded != "float32")
    tell_if_slow("bfloat16" if training.bf16 else loaded, instead=", ".join(instead), cpu=training.use_cpu)


def describe_chosen(training, model_config, model) -> str:
    """The settings that were left open, with what was chosen: `bf16 true (...), save_steps 500`.

    Args:
        training: the settings of the trainer.
        model_config: settings of model and LoRA.
        model: with the adapter, where there is one.
    """
    chosen = dict(training.chosen)
    if model_config.use_peft and not (model_config.lora_target_modules or model_config.lora_target_parameters):
        targets = model.peft_config["default"].target_modules
        chosen["lora_target_modules"] = targets if isinstance(targets, str) else " ".join(sorted(targets))
    return ", ".join(f"{name} {value}" for name, value in chosen.items())
