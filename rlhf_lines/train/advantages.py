"""The arithmetic of PPO for language models: pure functions of tensors.

Notation: B completions of at most T tokens; `mask` is 1 on tokens of the completion (its end token included) and 0
on padding, which is on the right. Time t runs over tokens: state s_t is the prompt and the tokens before t, action a_t
is token t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """The per-token estimate `[B, T]` of KL(policy || reference) from sampled tokens, in nats.

    With d = log pi(a_t|s_t) - log pi_ref(a_t|s_t) under samples of pi:

        k1 = d                  unbiased, can be negative
        k3 = exp(-d) - 1 + d    unbiased, never negative

    Source: J. Schulman, "Approximating KL divergence", 2020.

    Raises:
        ValueError: the kind is unknown.
    """
    difference = logprobs - reference_logprobs
    if kind == "k1":
        return difference
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kl_estimator {kind!r} is unknown: expected k1 or k3")


def adapted_kl_coef(kl_coef: float, kl: float, target: float, gain: float) -> float:
    """The KL coefficient of the next rollout, given the KL of this one, in nats per completion.

        kl_coef (1 + gain e),   e = clip(kl / target - 1, -0.2, 0.2)

    Source: arXiv 1909.08593, section 2.2, where the gain is 0.1.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + gain * error)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The rewards `[B, T]` of every token: the KL cost everywhere, the score on the last token.

        r_t = -kl_coef * kl_t + [t is the last token] * score

    Source: arXiv 1909.08593, section 2; arXiv 2009.01325, section 3.4.

    Args:
        scores: `[B]`, one per completion.
        kl: `[B, T]`.
        mask: `[B, T]`; every row has at least one token.
        kl_coef: the cost of one nat, in units of score.
    """
    rewards = -kl_coef * kl * mask
    last = mask.sum(dim=1, keepdim=True).long() - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both `[B, T]`, zero on padding.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t),   V = 0 after the last token
        A_t     = delta_t + gamma lam A_{t+1}
        R_t     = A_t + V(s_t)

    Source: generalised advantage estimation, arXiv 1506.02438, equations 11-16.
    """
    values = values * mask
    rewards = rewards * mask
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = next_advantage
        next_value = values[:, t]
    return advantages, (advantages + values) * mask


def whiten(x: Tensor, mask: Tensor, *, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """`x` with mean 0 and variance 1 over the tokens of the mask, zero on padding.

        (x - mean) / sqrt(var + 1e-8),   var with the divisor n

    Args:
        x: `[B, T]`.
        mask: `[B, T]`.
        reduce: turns sums over this process into sums over all processes, so that every process uses the same numbers.
    """
    total, count = reduce(torch.stack([(x * mask).sum(), mask.sum().to(x.dtype)]))
    centred = (x - total / count) * mask
    variance = reduce((centred**2).sum()) / count
    return centred * torch.rsqrt(variance + 1e-8)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """The clipped loss of the value head per token, `[B, T]`.

        0.5 max((V - R)^2, (V_clip - R)^2),   V_clip = V_old + clamp(V - V_old, -clip_range, clip_range)

    Source: arXiv 2005.12729, section 3; the clip keeps the value head from moving further than the policy may.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """1 - Var(R - V) / Var(R) over the mask: 1 is a perfect value head, 0 one that knows only the mean.

    Args:
        values: `[B, T]`, V.
        returns: `[B, T]`, R.
        mask: `[B, T]`.
        reduce: turns sums over this process into sums over all processes.
    """
    pair = torch.stack([returns - values, returns]) * mask
    means = reduce(pair.sum(dim=(1, 2))) / reduce(mask.sum().to(pair.dtype))
    residual, target = reduce((((pair - means[:, None, None]) * mask) ** 2).sum(dim=(1, 2)))
    return 1 - residual / target.clamp(min=1e-8)
