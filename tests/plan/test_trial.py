"""What a trial runs is what the stage will run, and what it takes is multiplied as it should be. Nothing is timed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lines import skeleton
from rlhf_lines.plan import trial as of_trial
from rlhf_lines.plan.adapters import AdapterSizes
from rlhf_lines.plan.rehearsal import hidden_states
from rlhf_lines.plan.time import Tokens
from rlhf_lines.plan.trial import TooLarge, Trial, judging, learning, reading, shortened, updating, writing
from tests import tiny


# Of one layer of the tiny Llama: q and o 16 x 16, k and v 8 x 16, three maps of the feed-forward part 24 x 16.
LAYER = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16
HEAD = 64 * 16


@pytest.fixture
def config():
    return tiny.llama_config(vocab_size=64, num_hidden_layers=5, max_position_embeddings=256, pad_token_id=0)


@pytest.fixture
def trial(config):
    return Trial(lambda depth: skeleton.causal_lm(shortened(config, depth)), 5, device="cpu")


@pytest.fixture
def adapted(config):
    def make(depth):
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        return skeleton.adapt(skeleton.causal_lm(shortened(config, depth)), lora)

    return Trial(make, 5, device="cpu")


def products(run) -> int:
    """The floating point operations of a pass in matrix products, but for attention and what is added in place."""
    run()
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))


def shallow_and_deep(trial):
    return [trial._models[depth] for depth in of_trial.DEPTHS]


def test_a_shortened_config_has_fewer_layers_and_nothing_else(config):
    from transformers import AutoConfig

    config.layer_types = ["full_attention"] * 5
    short = shortened(config, 3)
    assert short.num_hidden_layers == len(short.layer_types) == 3 and config.num_hidden_layers == 5
    assert short.hidden_size == config.hidden_size
    bart = shortened(AutoConfig.for_model("bart", encoder_layers=6, decoder_layers=6), 1)
    assert (bart.encoder_layers, bart.decoder_layers) == (1, 1)
    for name in ("gpt2", "distilbert", "bert"):
        assert shortened(AutoConfig.for_model(name), 2).num_hidden_layers == 2


def test_reading_is_two_operations_for_each_weight_and_token(trial):
    shallow, deep = shallow_and_deep(trial)
    tokens = Tokens(3, 20)
    assert products(reading(shallow, tokens)) == pytest.approx(2 * 60 * LAYER, rel=0.01)  # and rotary angles
    extra = products(reading(deep, tokens)) - products(reading(shallow, tokens))
    assert extra == 2 * 2 * 60 * LAYER


def test_learning_goes_back_through_every_layer(adapted):
    shallow, deep = shallow_and_deep(adapted)
    extra = products(learning(deep, Tokens(3, 20))) - products(learning(shallow, Tokens(3, 20)))
    lora = 4 * (2 * 32 + 2 * 24 + 3 * 40)
    # Two layers: forward, and back to their inputs; factors have gradients of their own.
    assert extra == 2 * 60 * 2 * (2 * LAYER + 3 * lora)
    assert all(p.grad is not None for p in deep.model.parameters() if p.requires_grad)


def test_writing_draws_one_token_of_every_row(trial):
    shallow, _ = shallow_and_deep(trial)
    few, many = (products(writing(shallow, Tokens(rows, 20), distinct=2)) for rows in (2, 6))
    assert many - few == pytest.approx(2 * 4 * (LAYER + HEAD), rel=0.02)


def test_rows_of_a_sweep_read_all_policies(config):
    widths = {f"model.layers.{i}.self_attn.q_proj": 32 for i in range(5)}
    sizes = [AdapterSizes(5 * 64, "a", 2, widths), AdapterSizes(5 * 96, "b", 3, widths)]
    mixed = Trial(lambda depth: skeleton.causal_lm(shortened(config, depth)), 5, device="cpu", policies=sizes)
    for short, depth in zip(shallow_and_deep(mixed), of_trial.DEPTHS, strict=True):
        plain, policies = (products(reading(short, Tokens(3, 20), policies=on)) for on in (False, True))
        assert policies - plain == depth * 2 * 60 * (2 + 3) * 16  # and 16 outputs in place


def test_judging_reads_the_head_once_or_twice(trial):
    shallow, _ = shallow_and_deep(trial)
    forward = products(judging(shallow, Tokens(30, 1), tile=16, learns=False))
    assert forward == 2 * 30 * HEAD
    assert products(judging(shallow, Tokens(30, 1), tile=16, learns=True)) == 2 * forward  # and back in place


def test_updating_changes_what_is_trained(adapted):
    shallow, _ = shallow_and_deep(adapted)
    before = {name: p.clone() for name, p in shallow.model.named_parameters()}
    updating(shallow)()
    for name, p in shallow.model.named_parameters():
        assert torch.equal(p, before[name]) == (".lora_" not in name)


def test_what_is_computed_is_finite_and_ties_are_kept(config):
    config.tie_word_embeddings = True
    made = Trial(lambda depth: skeleton.causal_lm(shortened(config, depth)), 5, device="cpu")
    for short in shallow_and_deep(made):
        assert hidden_states(short.model, 2, 7).isfinite().all()
        assert short.model.get_output_embeddings().weight is short.model.get_input_embeddings().weight


def test_seconds_grow_with_depth_and_tokens(trial, monkeypatch):
    """A clock by which a pass of n tokens through L layers takes 0.5 + 0.001 n (2 + L)."""
    monkeypatch.setattr(Trial, "_timed", lambda self, run: run())

    def prepare(short, tokens):
        return lambda: 0.001 * tokens.count * (2 + short.model.config.num_hidden_layers)

    assert trial.seconds(partial(prepare, tokens=Tokens(1, 10))) == pytest.approx(0.01 * (2 + 5))
    assert trial.seconds_of(prepare, Tokens(90, 10)) == pytest.approx(0.9 * (2 + 5))
    assert trial.seconds_of(prepare, Tokens(90, 10), through_layers=False) == pytest.approx(0.9 * (2 + 1))


def test_as_many_tokens_are_timed_as_take_long_enough(trial, monkeypatch):
    seen = []
    monkeypatch.setattr(Trial, "_timed", lambda self, run: run())

    def prepare(short, tokens):
        seen.append(tokens)
        return lambda: of_trial.LONG_ENOUGH / 50 * tokens.count  # 50 tokens

    trial.seconds_of(prepare, Tokens(90, 10))
    assert seen[-1] == Tokens(5, 10)


def test_a_shallow_model_is_tried_as_it_is(config):
    config.num_hidden_layers = 2
    short = Trial(lambda depth: skeleton.causal_lm(shortened(config, depth)), 2, device="cpu")
    assert list(short._models) == [2]


def test_a_trial_that_does_not_fit_is_none(config, monkeypatch):
    monkeypatch.setattr(of_trial, "free_bytes", lambda device: 1000)
    with pytest.raises(TooLarge, match="too little memory is free for a trial"):
        Trial(lambda depth: skeleton.causal_lm(shortened(config, depth)), 5, device="cpu")
