"""Gram matrices against hidden states of transformers in float64, and against themselves in other batches."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lines.statistics import read_gram, stored_transposed
from rlhf_lines.statistics.gram import input_grams, shared_inputs
from tests.statistics.oracle import made, policy_model, samples_of


FILE = "out/gram.safetensors"


def sequences_of(samples) -> list[list[int]]:
    return [[*prompt, *completion] for prompt, completion in samples]


def inputs_by_hand(model, sequences) -> dict[str, torch.Tensor]:
    """Every linear module's input at every token, one sequence at a time: ``[tokens, in]``."""
    rows: dict[str, list[torch.Tensor]] = {}

    def keep(name):
        return lambda module, args, output: rows.setdefault(name, []).append(args[0][0])

    hooks = [
        module.register_forward_hook(keep(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    with torch.no_grad():
        for ids in sequences:
            model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


def assert_gram(found: torch.Tensor, inputs: torch.Tensor) -> None:
    """Compare with X^T X / n, within the rounding of float32 relative to the largest entries."""
    expected = inputs.T @ inputs / len(inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize(("sft", "policy"), [("./sft", "./dense"), ("./gpt2", "./lora_gpt2"), ("./tied", "./tied")])
def test_gram_is_the_mean_outer_product_of_the_inputs(folder, flags, sft, policy):
    record = made("gram", flags(sft_model=sft, policy=policy, parameters="all", batch_size=4))
    model = policy_model(sft, policy)
    inputs = inputs_by_hand(model, sequences_of(samples_of(record, sft, policy)))
    if sft != "./sft":  # a head that is the embedding is no module of its own
        del inputs["lm_head.weight"]
    assert len(inputs) == record["layers"]
    for name, rows in inputs.items():
        assert len(rows) == record["prompt_tokens"] + record["completion_tokens"]
        assert_gram(read_gram(FILE, name), rows)
    with pytest.raises(ValueError, match="unknown linear map"):
        read_gram(FILE, "lm_head.weigth")
    assert stored_transposed(FILE) == (inputs.keys() if sft == "./gpt2" else set())


def test_attention_reads_the_normalised_hidden_states(folder, flags):
    record = made("gram", flags())
    model = policy_model("./sft", "./lora")
    samples = samples_of(record, "./sft", "./lora")
    for index, layer in enumerate(model.model.layers):
        parts = []
        with torch.no_grad():
            for ids in sequences_of(samples):
                output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
                parts.append(layer.input_layernorm(output.hidden_states[index][0]))
        for module in ("q_proj", "k_proj", "v_proj"):
            assert_gram(read_gram(FILE, f"model.layers.{index}.self_attn.{module}.weight"), torch.cat(parts))


def test_modules_with_one_input_share_one_matrix(folder, flags):
    record = made("gram", flags(policy="./dense"))
    with safe_open(FILE, framework="pt") as handle:
        stored = set(handle.keys())
    last = {"q_proj", "o_proj", "gate_proj", "down_proj"}
    in_layers = {name for name in stored if name != "lm_head.weight"}
    assert stored - in_layers and {name.split(".")[-2] for name in in_layers} == last
    assert (record["layers"], record["matrices"], len(stored)) == (3 * 7 + 1, 3 * 4 + 1, 3 * 4 + 1)
    for share in (["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]):
        place = "self_attn" if "q_proj" in share else "mlp"
        grams = [read_gram(FILE, f"model.layers.1.{place}.{module}.weight") for module in share]
        assert all(torch.equal(gram, grams[0]) for gram in grams)


def test_an_adapter_has_the_matrices_of_what_it_changes(folder, flags):
    adapter = made("gram", flags())
    dense = made("gram", flags(policy="./dense", output_dir="./dense_out"), "./dense_out")
    assert adapter["samples_sha256"] == dense["samples_sha256"]
    assert (adapter["layers"], adapter["matrices"]) == (3 * 4, 3 * 2)
    for index in range(3):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"):
            name = f"model.layers.{index}.{module}.weight"
            assert torch.equal(read_gram(FILE, name), read_gram("dense_out/gram.safetensors", name))
        with pytest.raises(ValueError, match="unknown linear map"):
            read_gram(FILE, f"model.layers.{index}.self_attn.o_proj.weight")


def test_groups_do_not_change_a_bit_and_batches_no_more_than_rounding(folder, flags):
    one = made("gram", flags(policy="./dense"))
    few = made("gram", flags(policy="./dense", max_memory="4608B", output_dir="./few"), "./few")  # one of 24 x 24
    single = made("gram", flags(policy="./dense", batch_size=1, output_dir="./single"), "./single")
    assert one["passes"] == single["passes"] == 1 and few["passes"] > 6
    assert (folder / "few" / "gram.safetensors").stat().st_size == (folder / FILE).stat().st_size
    with safe_open(FILE, framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118, a handle is no mapping
            gram = handle.get_tensor(name)
            assert torch.equal(gram, read_gram("few/gram.safetensors", name))
            alone = read_gram("single/gram.safetensors", name)
            torch.testing.assert_close(gram, alone, rtol=0, atol=1e-6 * gram.max().item())


def test_prompts_alone_need_no_samples(folder, flags, capsys):
    record = made("gram", flags(inputs="prompts"))
    assert "./prompts has 7 train prompts, not 256" in capsys.readouterr().err
    assert record["completion_tokens"] == 0 and record["prompt_tokens"] == 50
    with_samples = made("gram", flags(output_dir="./samples"), "./samples")
    prompts = [prompt for prompt, _ in samples_of(with_samples, "./sft", "./lora")]
    for name, rows in inputs_by_hand(policy_model("./sft", "./lora"), prompts).items():
        if "v_proj" in name or "down_proj" in name:
            assert_gram(read_gram(FILE, name), rows)


def test_the_end_of_a_forward_pass_that_is_not_needed_does_not_run(folder):
    model = policy_model("./sft", "./sft", torch.float32)
    modules = {"q": model.model.layers[0].self_attn.q_proj, "down": model.model.layers[1].mlp.down_proj}
    ran = []
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    list(input_grams(model, modules, [[3, 4], [5]], [["q"], ["down"]], batch_size=2))
    assert ran == [0]  # for q nothing, for down of the second layer the first layer
    ids = torch.tensor([[3, 4, 5]])
    before = policy_model("./sft", "./sft", torch.float32)(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, before)  # and the model is as it was


class Model(nn.Module):
    """Two linear modules: as one forward pass calls them."""

    def __init__(self, call) -> None:
        super().__init__()
        self.embedding, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.call = call

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return self.call(self, self.embedding(input_ids))


@pytest.mark.parametrize(
    ("call", "shared"),
    [
        (lambda m, x: m.a(x) + m.b(x), True),
        (lambda m, x: m.b(m.a(x)), False),
        (lambda m, x: m.a(x) + m.b(x.clone()), False),
        (lambda m, x: m.a(x) + m.b(x.add_(1)), False),  # one object, other values
        (lambda m, x: m.a(x * 2) + m.b(x * 3), False),  # the first is gone: the second may get its address
    ],
    ids=["same", "chain", "copy", "in place", "freed"],
)
def test_one_input_is_one_tensor_that_did_not_change(call, shared):
    model = Model(call)
    same_input = shared_inputs(model, {"a": model.a, "b": model.b}, [1, 2, 3])
    assert same_input == {"a": "a", "b": "a" if shared else "b"}


def test_modules_without_one_matrix_are_refused():
    def twice(m, x):
        return m.b(m.a(m.a(x)))

    for call, words in ((twice, "'a' runs more than once"), (lambda m, x: m.b(x), "'a' does not see every token")):
        model = Model(call)
        with pytest.raises(ValueError, match=words):
            shared_inputs(model, {"a": model.a, "b": model.b}, [1, 2, 3])
    model = Model(lambda m, x: m.a(x[:, :1]))
    with pytest.raises(ValueError, match="'a' does not see every token"):
        list(input_grams(model, {"a": model.a}, [[1, 2, 3]], [["a"]], batch_size=1))


def test_the_sum_over_batches_does_not_drift():
    """In float32, four thousand additions of one number, each rounded alike, would be off by about 1e-5."""
    model = Model(lambda m, x: m.a(x))
    [(_, gram)] = input_grams(model, {"a": model.a}, [[1]] * 4000, [["a"]], batch_size=1)
    row = model.embedding.weight[1].detach().double()
    torch.testing.assert_close(gram.double(), torch.outer(row, row), rtol=2e-7, atol=0)


def test_inputs_that_are_not_finite_are_refused():
    model = Model(lambda m, x: m.a(x / 0))
    with pytest.raises(ValueError, match="inputs of 'a' are not finite"):
        list(input_grams(model, {"a": model.a}, [[1, 2, 3]], [["a"]], batch_size=1))
