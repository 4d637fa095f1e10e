"""How long a pass takes on this machine: the real modules run, few layers deep, and depth is multiplied.

A pass through L layers takes a + b L. Two models of the planned shape, of `DEPTHS` layers, tell a and b in about a
second: with the device, the dtype, the number of threads and the kernels that the stage will have, and with all that it
does beside matrix products. Their weights are one number: what is computed means nothing, and takes as long.

On a CPU the clock is that of the thread that leads: it takes part in all that is computed, and stands still while other
programs have its core. So a plan tells the time of a machine that is otherwise idle, also on one that is not.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter, Factors
from rlhf_lines.plan.rehearsal import hidden_states, leave_meta
from rlhf_lines.plan.time import Tokens, at_depth
from rlhf_lines.progress import beat
from rlhf_lines.reading import Reader
from rlhf_lines.sampling import chosen_logprobs, gumbel
from rlhf_lines.sweep.engines.batches import free_bytes
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from rlhf_lines.plan.adapters import AdapterSizes

DEPTHS = (1, 3)
NUMBER = 0.01  # of every weight: no pass meets infinities or denormal numbers, which are slow
FIRST_TOKENS = 16  # of the pass that tells how many take LONG_ENOUGH
LONG_ENOUGH = 0.1  # seconds of a pass through the shallow model
REPEATS = 2  # of which the faster counts: what else runs on the machine only adds
# In these lists of a config every layer has an entry; by these names it says how many layers there are.
_DEPTH_NAMES = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers", "num_layers")

Pass = Callable[[], object]
Rows = Callable[[int], contextlib.AbstractContextManager]  # inside, so many rows of a pass are policies


class TooLarge(ValueError):
    """Models of few layers do not fit beside what is in memory."""


class Short(NamedTuple):
    """A model of few layers with weights.

    Attributes:
        model: the model.
        rows: of a sweep, what makes rows policies.
    """

    model: nn.Module
    rows: Rows


class Trial:
    """Models of few layers, on which passes are timed.

    Args:
        make: a model of that many layers without weights.
        layers: of the planned model.
        device: `cuda` or `cpu`.
        autocast: bfloat16 or float16 where passes run under autocast, else None.
        policies: of a sweep, whose mixtures are rows of a batch.

    Raises:
        TooLarge: half of the free memory does not hold them.
    """

    def __init__(
        self,
        make: Callable[[int], nn.Module],
        layers: int,
        *,
        device: str,
        autocast: torch.dtype | None = None,
        policies: Sequence[AdapterSizes] = (),
    ) -> None:
        self._layers, self._device, self._autocast = layers, torch.device(device), autocast
        made = {depth: make(depth) for depth in (DEPTHS if layers >= DEPTHS[-1] else (layers,))}
        needed = sum(p.nbytes for model in made.values() for p in model.parameters())
        if needed > free_bytes(self._device) / 2:
            raise TooLarge(f"too little memory is free for a trial ({needed / 2**30:,.1f} GiB)")
        self._models = {depth: _filled(model, self._device) for depth, model in made.items()}
        self._models = {depth: Short(model, _policy_rows(model, policies)) for depth, model in self._models.items()}

    def seconds(self, prepare: Callable[[Short], Pass]) -> float:
        """The seconds of a pass at the depth of the planned model.

        Args:
            prepare: makes the pass of a model.
        """
        return at_depth({depth: self._fastest(prepare(short)) for depth, short in self._models.items()}, self._layers)

    def seconds_of(
        self, prepare: Callable[[Short, Tokens], Pass], wanted: Tokens, *, through_layers: bool = True
    ) -> float:
        """The seconds of passes over so many tokens; as many of them as take `LONG_ENOUGH` are timed.

        Args:
            prepare: makes the pass of a model over tokens.
            wanted: rows and their length.
            through_layers: whether a pass takes longer the deeper the model is.
        """
        shallow, tokens = self._models[min(self._models)], wanted.at_most(FIRST_TOKENS)
        for _ in range(2):
            run = prepare(shallow, tokens)
            self._timed(run)
            tokens = wanted.at_most(int(tokens.count * LONG_ENOUGH / self._timed(run)))
        if through_layers:
            seconds = self.seconds(lambda short: prepare(short, tokens))
        else:
            seconds = self._fastest(prepare(shallow, tokens))
        return seconds * wanted.count / tokens.count

    def _fastest(self, run: Pass) -> float:
        self._timed(run)  # what only the first one does
        return min(self._timed(run) for _ in range(REPEATS))

    def _timed(self, run: Pass) -> float:
        beat("timing passes of a model of few layers")
        start = self._now()
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            run()
        return self._now() - start

    def _now(self) -> float:
        """Seconds that this thread has computed; of a GPU, when it is done."""
        if self._device.type == "cpu":
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config of a model with so many layers, the first ones where they differ."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:layers])
    for name in _DEPTH_NAMES:
        if getattr(text, name, None) is not None:
            setattr(text, name, layers)
    return config


def reading(short: Short, tokens: Tokens, *, policies: bool = False) -> Pass:
    """A pass over texts without gradients, up to the last hidden states, by policies of a sweep or by the model."""

    def run() -> None:
        with torch.no_grad(), short.rows(tokens.rows) if policies else contextlib.nullcontext():
            hidden_states(short.model.eval(), tokens.rows, tokens.length)

    return run


def learning(short: Short, tokens: Tokens) -> Pass:
    """A forward and a backward pass over texts, to the last hidden states and back."""

    def run() -> None:
        hidden = hidden_states(short.model.train(), tokens.rows, tokens.length)
        hidden.backward(torch.ones_like(hidden))

    return run


def updating(short: Short) -> Pass:
    """A step of Adam on what is trained, its gradients clipped."""
    trained = [p for p in short.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)

    def run() -> None:
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return run


def writing(short: Short, tokens: Tokens, *, distinct: int) -> Pass:
    """The draw of one more token of every row, after so many tokens of it.

    Args:
        short: a causal language model.
        tokens: rows and their length.
        distinct: how many rows have noise of their own.
    """
    model = _base(short.model).eval()
    ids = torch.zeros(1, tokens.length, dtype=torch.long, device=model.device)
    with torch.no_grad(), short.rows(1):
        reader = Reader(model, ids, torch.ones_like(ids))
        reader.next_logits()
    reader.append(ids[:, 0])
    reader.keep(torch.zeros(tokens.rows, dtype=torch.long, device=model.device))  # one row, many times
    keys = torch.arange(distinct, device=model.device)
    noise_of = torch.arange(tokens.rows, device=model.device) % distinct

    def run() -> None:
        with torch.no_grad(), short.rows(tokens.rows):
            logits = reader.next_logits()
            noise = gumbel(0, keys, keys, 0, logits.shape[1])
            chosen = (logits.double() + noise[noise_of]).argmax(dim=1)
            chosen_logprobs(logits, chosen, 1.0)
            reader.append(chosen)

    return run


def judging(short: Short, tokens: Tokens, *, tile: int, learns: bool) -> Pass:
    """The log-probabilities of tokens from their hidden states, as TRL makes them, in tiles of so many words."""
    from trl.kernels import ChunkedLogProbFunction

    weight = _base(short.model).get_output_embeddings().weight
    hidden = torch.full((tokens.count, weight.shape[1]), NUMBER, dtype=weight.dtype, device=weight.device)
    hidden.requires_grad_(learns)
    targets = torch.zeros(tokens.count, dtype=torch.long, device=weight.device)

    def run() -> None:
        with torch.set_grad_enabled(learns):
            outputs = ("log_probs", "entropy")
            logprobs, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, tile, None, 1.0, outputs)
            if learns:
                logprobs.sum().backward()

    return run


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _policy_rows(model: nn.Module, sizes: Sequence[AdapterSizes]) -> Rows:
    """Add policies of these sizes to a model; without any its rows are the model itself."""
    if not sizes:
        return lambda rows: contextlib.nullcontext()
    modules = dict(model.named_modules())
    adapters = []
    for size in sizes:
        factors = {}
        for name in filter(modules.__contains__, size.widths):
            shape = modules[name].weight.shape
            outputs, inputs = shape if isinstance(modules[name], nn.Linear) else shape[::-1]
            down, up = torch.full((size.rank, inputs), NUMBER), torch.full((outputs, size.rank), NUMBER)
            factors[name] = Factors(down, up, 1.0)
        adapters.append(Adapter("planned", factors))
    multi_lora, spec = MultiLoRA(model, adapters), MergeSpec("linear", (1 / len(sizes),) * len(sizes))
    return lambda rows: multi_lora.rows([spec] * rows)


def _filled(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with `NUMBER` as every weight, on the device."""

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        number = NUMBER if tensor.is_floating_point() else 0
        return torch.full(tensor.shape, number, dtype=tensor.dtype, device=device)

    leave_meta(model, filled)
    return model
