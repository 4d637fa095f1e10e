"""PPO's arithmetic against numbers worked by hand and against plain Python loops in double precision."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rlhf_lines.train.advantages import explained_variance, gae, kl_estimate, token_rewards, value_loss, whiten


LENGTHS = (5, 1, 3, 7, 2)
T = 7


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def ragged():
    """Return random tensors of five completions of 1 to 7 tokens, padded on the right with garbage."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    mask = torch.zeros(len(LENGTHS), T, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return {
        "mask": mask,
        "scores": draw(len(LENGTHS)),
        "kl": draw(len(LENGTHS), T),
        "rewards": draw(len(LENGTHS), T),
        "values": draw(len(LENGTHS), T),
        "returns": draw(len(LENGTHS), T),
    }


def with_garbage(x, mask, garbage):
    return torch.where(mask.bool(), x, torch.as_tensor(garbage, dtype=x.dtype))


# --- kl_estimate


def test_kl_estimate_by_hand():
    logprobs = tensor([[-1.0, -2.0, -0.5]])
    reference = tensor([[-1.5, -1.0, -0.5]])
    # d = 0.5, -1, 0
    assert kl_estimate(logprobs, reference, "k1").tolist() == [[0.5, -1.0, 0.0]]
    # exp(-0.5) - 1 + 0.5, exp(1) - 1 - 1, exp(0) - 1 + 0
    expected = [math.exp(-0.5) - 0.5, math.e - 2.0, 0.0]
    assert kl_estimate(logprobs, reference, "k3").tolist()[0] == pytest.approx(expected, abs=1e-15)


def test_k3_is_never_negative():
    difference = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    k3 = kl_estimate(difference, torch.zeros_like(difference), "k3")
    assert k3.min() >= -1e-17  # rounding, at 0
    assert k3[difference.abs() > 1e-3].min() > 0


def test_k3_of_a_policy_near_the_reference_survives_single_precision():
    # exp(-d) - 1 + d = d^2 / 2 - d^3 / 6 + ...; computed as written it is lost in the rounding of exp(-d), 6e-8.
    difference = torch.tensor([1e-2, -1e-3, 3e-4], dtype=torch.float32)
    expected = [d**2 / 2 - d**3 / 6 + d**4 / 24 for d in difference.tolist()]
    assert kl_estimate(difference, torch.zeros(3), "k3").tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_expected_estimate_is_the_divergence(kind):
    generator = torch.Generator().manual_seed(1)
    policy, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    divergence = sum(math.exp(p) * (p - q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    estimates = kl_estimate(policy, reference, kind).tolist()
    mean = sum(math.exp(p) * k for p, k in zip(policy.tolist(), estimates, strict=True))
    assert mean == pytest.approx(divergence, abs=1e-14)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="kl_estimator 'k2' is unknown: expected k1 or k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k2")


# --- token_rewards


def test_token_rewards_by_hand():
    # The score joins the KL cost on the last token: -0.5 * 0.2 + 3 = 2.9; a completion of one token has both at once.
    rewards = token_rewards(
        tensor([3.0, -1.0]), tensor([[0.1, 0.2, 9.0], [0.4, 9.0, 9.0]]), tensor([[1, 1, 0], [1, 0, 0]]), 0.5
    )
    expected = [-0.05, 2.9, 0.0, -1.2, 0.0, 0.0]
    assert rewards.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_token_rewards_equal_a_loop(ragged):
    rewards = token_rewards(ragged["scores"], ragged["kl"], ragged["mask"], 0.3)
    expected = [[0.0] * T for _ in LENGTHS]
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected[row][t] = -0.3 * float(ragged["kl"][row, t])
        expected[row][length - 1] += float(ragged["scores"][row])
    torch.testing.assert_close(rewards, tensor(expected), rtol=0, atol=1e-15)


def test_token_rewards_add_up_to_the_score_minus_the_kl_cost(ragged):
    rewards = token_rewards(ragged["scores"], ragged["kl"], ragged["mask"], 0.3)
    expected = ragged["scores"] - 0.3 * (ragged["kl"] * ragged["mask"]).sum(dim=1)
    torch.testing.assert_close(rewards.sum(dim=1), expected, rtol=0, atol=1e-14)


def test_scores_of_another_dtype_are_added_in_the_dtype_of_the_kl():
    rewards = token_rewards(torch.tensor([2.0]), torch.zeros(1, 2, dtype=torch.float64), tensor([[1, 1]]), 0.1)
    assert rewards.dtype == torch.float64 and rewards.tolist() == [[0.0, 2.0]]


# --- gae


def loop_gae(rewards, values, lengths, gamma, lam):
    """Return advantages and returns by the definition: A_t = sum_l (gamma lam)^l delta_{t+l}, no recursion."""
    advantages = [[0.0] * len(row) for row in rewards]
    returns = [[0.0] * len(row) for row in rewards]
    for row, length in enumerate(lengths):
        r, v = rewards[row], [*values[row][:length], 0.0]
        for t in range(length):
            deltas = [r[s] + gamma * v[s + 1] - v[s] for s in range(t, length)]
            advantages[row][t] = math.fsum((gamma * lam) ** step * delta for step, delta in enumerate(deltas))
            returns[row][t] = advantages[row][t] + v[t]
    return tensor(advantages), tensor(returns)


def test_gae_by_hand():
    # gamma = 0.5, lam = 0.5, rewards 1, 0, 4, values 2, 4, 8, then the end:
    #   delta_2 = 4 + 0     - 8 = -4       A_2 = -4                    R_2 = 4
    #   delta_1 = 0 + 0.5*8 - 4 =  0       A_1 = 0 + 0.25*(-4) = -1    R_1 = 3
    #   delta_0 = 1 + 0.5*4 - 2 =  1       A_0 = 1 + 0.25*(-1) = 0.75  R_0 = 2.75
    # and a completion of one token: A_0 = 5 - 3 = 2, R_0 = 5. What stands on padding does not count.
    rewards = tensor([[1.0, 0.0, 4.0], [5.0, 100.0, 100.0]])
    values = tensor([[2.0, 4.0, 8.0], [3.0, 100.0, 100.0]])
    advantages, returns = gae(rewards, values, tensor([[1, 1, 1], [1, 0, 0]]), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.75, -1.0, -4.0], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[2.75, 3.0, 4.0], [5.0, 0.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (0.7, 0.0), (0.0, 0.5), (1.0, 1.0)])
def test_gae_equals_its_definition(ragged, gamma, lam):
    result = gae(ragged["rewards"], ragged["values"], ragged["mask"], gamma=gamma, lam=lam)
    expected = loop_gae(ragged["rewards"].tolist(), ragged["values"].tolist(), LENGTHS, gamma, lam)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_gae_on_many_random_shapes():
    draw = random.Random(2)
    for _ in range(50):
        lengths = [draw.randint(1, 12) for _ in range(draw.randint(1, 6))]
        shape = (len(lengths), max(lengths) + draw.randint(0, 2))
        rewards, values = ([[draw.gauss(0, 1) for _ in range(shape[1])] for _ in lengths] for _ in range(2))
        mask = tensor([[float(t < length) for t in range(shape[1])] for length in lengths])
        gamma, lam = draw.random(), draw.random()
        result = gae(tensor(rewards), tensor(values), mask, gamma=gamma, lam=lam)
        for got, want in zip(result, loop_gae(rewards, values, lengths, gamma, lam), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_lambda_one_is_reward_to_go_minus_value(ragged):
    advantages, returns = gae(ragged["rewards"], ragged["values"], ragged["mask"], gamma=1.0, lam=1.0)
    to_go = torch.zeros(len(LENGTHS), T, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            to_go[row, t] = math.fsum(ragged["rewards"][row, t:length].tolist())
    torch.testing.assert_close(returns, to_go, rtol=0, atol=1e-13)
    torch.testing.assert_close(advantages, (to_go - ragged["values"]) * ragged["mask"], rtol=0, atol=1e-13)


def test_lambda_zero_is_the_one_step_error(ragged):
    advantages, returns = gae(ragged["rewards"], ragged["values"], ragged["mask"], gamma=0.9, lam=0.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            following = float(ragged["values"][row, t + 1]) if t + 1 < length else 0.0
            target = float(ragged["rewards"][row, t]) + 0.9 * following
            assert float(returns[row, t]) == pytest.approx(target, abs=1e-14)
            assert float(advantages[row, t]) == pytest.approx(target - float(ragged["values"][row, t]), abs=1e-14)


# --- whiten


def test_whiten_by_hand():
    # mean of 1, 3, 5, 7 is 4; variance (9 + 1 + 1 + 9) / 4 = 5
    result = whiten(tensor([[1.0, 3.0, 50.0], [5.0, 7.0, -9.0]]), tensor([[1, 1, 0], [1, 1, 0]]))
    scale = 1 / math.sqrt(5 + 1e-8)
    expected = [-3 * scale, -scale, 0.0, scale, 3 * scale, 0.0]
    assert result.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_whitened_tokens_have_mean_zero_and_variance_one(ragged):
    result = whiten(ragged["values"] * 3 + 5, ragged["mask"])
    tokens = [float(result[row, t]) for row, length in enumerate(LENGTHS) for t in range(length)]
    mean = math.fsum(tokens) / len(tokens)
    assert mean == pytest.approx(0.0, abs=1e-14)
    # The 1e-8 under the root: a variance of about 9 becomes 1 - 1e-9.
    assert math.fsum((x - mean) ** 2 for x in tokens) / len(tokens) == pytest.approx(1.0, abs=1e-8)


def test_two_processes_whiten_as_one(ragged):
    """Each half gives its sums; both see the totals, as the processes of one run do."""
    whole = whiten(ragged["values"], ragged["mask"])
    halves = [(ragged["values"][:2], ragged["mask"][:2]), (ragged["values"][2:], ragged["mask"][2:])]

    calls = [[], []]
    for _ in range(2):  # the second sums depend on the first totals, so every further round knows one total more
        known = [sum(pair) for pair in zip(*calls, strict=True)]
        calls = [[], []]
        for index, (x, mask) in enumerate(halves):

            def reduce(sums, own=calls[index], known=tuple(known)):
                own.append(sums)
                return known[len(own) - 1] if len(own) <= len(known) else sums

            whiten(x, mask, reduce=reduce)
    totals = [sum(pair) for pair in zip(*calls, strict=True)]
    results = []
    for x, mask in halves:
        sequence = iter(totals)
        results.append(whiten(x, mask, reduce=lambda sums, sequence=sequence: next(sequence)))
    torch.testing.assert_close(torch.cat(results), whole, rtol=0, atol=1e-14)
    alone = torch.cat([whiten(x, mask) for x, mask in halves])
    assert (alone - whole).abs().max() > 0.1


def test_whitening_equal_advantages_gives_zeros():
    assert whiten(tensor([[2.0, 2.0]]), tensor([[1, 1]])).tolist() == [[0.0, 0.0]]


# --- value_loss


def test_value_loss_by_hand():
    values = tensor([[1.5, 0.5, -0.5, 0.3]])
    old = tensor([[1.0, 1.0, 0.0, 0.3]])
    returns = tensor([[2.0, 2.0, 0.0, 1.3]])
    # clip range 0.2:
    #   1.5 -> clipped 1.2; max(0.5^2, 0.8^2) / 2 = 0.32
    #   0.5 -> clipped 0.8; max(1.5^2, 1.2^2) / 2 = 1.125
    #  -0.5 -> clipped -0.2; max(0.5^2, 0.2^2) / 2 = 0.125
    #   0.3 -> unmoved; 1^2 / 2 = 0.5
    result = value_loss(values, old, returns, 0.2).tolist()[0]
    assert result == pytest.approx([0.32, 1.125, 0.125, 0.5], abs=1e-15)


def test_value_loss_equals_a_loop(ragged):
    old = ragged["values"] + ragged["kl"]
    result = value_loss(ragged["values"], old, ragged["returns"], 0.4)
    for got, v, o, r in zip(
        *(x.flatten().tolist() for x in (result, ragged["values"], old, ragged["returns"])), strict=True
    ):
        clipped = min(max(v, o - 0.4), o + 0.4)
        assert got == pytest.approx(0.5 * max((v - r) ** 2, (clipped - r) ** 2), abs=1e-14)


def test_a_value_beyond_the_clip_range_gets_no_gradient_towards_its_return():
    values = tensor([1.5, 1.1]).requires_grad_()
    value_loss(values, tensor([1.0, 1.0]), tensor([2.0, 2.0]), 0.2).sum().backward()
    # 1.5 has moved by more than 0.2 towards 2: constant. 1.1 has not: its gradient is 1.1 - 2.
    assert values.grad.tolist() == pytest.approx([0.0, -0.9], abs=1e-15)


# --- explained_variance


def test_explained_variance_by_hand():
    # Returns 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
    # Returns - values: 0, 1, 0, 1: mean 0.5, variance 0.25. 1 - 0.25 / 3.5 = 13 / 14.
    result = explained_variance(
        tensor([[1.0, 1.0, 99.0], [3.0, 5.0, -99.0]]),
        tensor([[1.0, 2.0, 7.0], [3.0, 6.0, 7.0]]),
        tensor([[1, 1, 0]] * 2),
    )
    assert float(result) == pytest.approx(13 / 14, abs=1e-15)


def test_explained_variance_of_perfect_constant_and_reversed_values(ragged):
    returns, mask = ragged["returns"], ragged["mask"]
    assert float(explained_variance(returns, returns, mask)) == 1.0
    assert float(explained_variance(torch.full_like(returns, 7.0), returns, mask)) == pytest.approx(0.0, abs=1e-14)
    # Var(2R) / Var(R) = 4
    assert float(explained_variance(-returns, returns, mask)) == pytest.approx(-3.0, abs=1e-13)


# --- all of them


FUNCTIONS = {
    "token_rewards": lambda x: token_rewards(x["scores"], x["kl"], x["mask"], 0.3),
    "advantages": lambda x: gae(x["rewards"], x["values"], x["mask"], gamma=0.9, lam=0.8)[0],
    "returns": lambda x: gae(x["rewards"], x["values"], x["mask"], gamma=0.9, lam=0.8)[1],
    "whiten": lambda x: whiten(x["values"], x["mask"]),
    "explained_variance": lambda x: explained_variance(x["values"], x["returns"], x["mask"]),
    "value_loss": lambda x: value_loss(x["values"], x["returns"], x["rewards"], 0.2) * x["mask"],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_leaks_from_padding(ragged, name):
    clean = FUNCTIONS[name](ragged)
    for garbage in (0.0, 1e6, -1e6):
        changed = {key: with_garbage(x, ragged["mask"], garbage) if x.dim() == 2 else x for key, x in ragged.items()}
        changed["mask"] = ragged["mask"]
        assert torch.equal(FUNCTIONS[name](changed), clean)
    if clean.dim() == 2:
        assert (clean[ragged["mask"] == 0] == 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_are_not_changed(ragged, name):
    before = {key: x.clone() for key, x in ragged.items()}
    FUNCTIONS[name](ragged)
    assert all(torch.equal(ragged[key], before[key]) for key in before)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wider_batch_changes_nothing(ragged, name):
    wider = {key: torch.nn.functional.pad(x, (0, 3)) if x.dim() == 2 else x for key, x in ragged.items()}
    narrow, wide = FUNCTIONS[name](ragged), FUNCTIONS[name](wider)
    torch.testing.assert_close(wide[:, :T] if wide.dim() == 2 else wide, narrow, rtol=0, atol=1e-14)
