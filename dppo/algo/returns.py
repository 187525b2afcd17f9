"""Computes advantages and value targets by GAE (n-step returns are a case of it) and by V-trace, and the sums along
episodes that these use.

Pure NumPy on [T, N] arrays. The learner and the collector pass whole rollouts.

`gae` and `vtrace` take the value of what truly came next, `next_values`, and the value of each row's own observation. A
time limit is not a termination: where an episode was truncated, `next_values` holds the value of its final
observation; only a terminal state makes it 0. `dones` (either kind of end) only stops the sum from running into the
next episode.
"""

from __future__ import annotations

import numpy as np


def _check(**arrays: np.ndarray) -> None:
    shapes = {name: np.shape(a) for name, a in arrays.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or any(shape != first for shape in shapes.values()):
        raise ValueError(f"expected equal shapes [T, N], got {', '.join(f'{n}={s}' for n, s in shapes.items())}")


def sums_ahead(terms: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """Returns y_t = x_t + d_t y_{t+1}, with y_T = 0; for x and d of one shape [T, N].

    Doubling needs log2(T) passes over whole arrays. Where rows are short, a loop over rows costs several microseconds
    for each, mostly for the calls.

    Source: Hillis and Steele 1986, data parallel algorithms.
    """
    sums, decay = terms.copy(), decay.copy()
    reach = 1  # sums[t] holds the terms of rows t … t + reach - 1, decay[t] is the product of as many
    while reach < len(sums):
        sums[:-reach] += decay[:-reach] * sums[reach:]
        decay[:-reach] *= decay[reach:]
        reach *= 2
    return sums


def sums_behind(terms: np.ndarray, dones: np.ndarray, gamma: float, before: np.ndarray) -> np.ndarray:
    """Adds up an episode's terms so far, the older ones discounted: y_t = x_t + gamma (1 - done_{t-1}) y_{t-1}.

    Args:
      terms: [T, N] x.
      dones: [T, N] bool, whether the row is the last of an episode.
      gamma: the discount; 1 for plain sums.
      before: [N] y_{-1}; 0 where an episode begins in row 0.

    Returns:
      [T, N] float64.
    """
    terms = terms.astype(np.float64)
    decay = np.zeros_like(terms)
    if len(terms):
        terms[0] += gamma * before
        decay[:-1] = np.where(dones[:-1], 0.0, gamma)[::-1]
    return sums_ahead(terms[::-1], decay)[::-1]


def gae(
    rewards: np.ndarray, values: np.ndarray, next_values: np.ndarray, dones: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes advantages by generalised advantage estimation.

        delta_t = r_t + gamma V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lam (1 - done_t) A_{t+1}

    Args:
      rewards: [T, N] float32, reward units.
      values: [T, N] float32, V(s_t).
      next_values: [T, N] float32, V(s'_t) of the true next observation, 0 after a terminal state.
      dones: [T, N] bool, whether the episode ended in this row, in either way.
      gamma: discount per step.
      lam: 0 gives the one-step temporal difference; 1 gives A3C's n-step returns, up to the end of the episode or of
        the rollout, whichever comes first: R_t = r_t + gamma (done_t or t = T-1 ? V(s'_t) : R_{t+1}).

    Returns:
      (advantages, returns): [T, N] float32 each; returns = advantages + values are the critic's targets.

    Raises:
      ValueError: if the shapes are not all the same [T, N].

    Source: Schulman et al. 2016 (GAE), eq. 16; lam = 1: Mnih et al. 2016 (A3C), algorithm S3.
    """
    _check(rewards=rewards, values=values, next_values=next_values, dones=dones)
    advantages = rewards + np.float32(gamma) * next_values - values
    decay = np.where(dones, np.float32(0), np.float32(gamma * lam))
    advantages = sums_ahead(advantages, decay)
    return advantages, advantages + values


def vtrace(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    dones: np.ndarray,
    log_ratios: np.ndarray,
    gamma: float,
    lam: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes V-trace: value targets and advantages of the learner's policy from rollouts of an older policy.

        rho_t   = min(rho_clip, pi(a_t|s_t) / mu(a_t|s_t)),    c_t = lam min(c_clip, pi/mu)
        delta_t = rho_t (r_t + gamma V(s'_t) - V(s_t))
        v_t     = V(s_t) + delta_t + gamma (1 - done_t) c_t (v_{t+1} - V(s_{t+1}))
        A_t     = rho_t (r_t + gamma v'_t - V(s_t)),    v'_t = v_{t+1} inside an episode, V(s'_t) at its end

    Args:
      rewards, values, next_values, dones: as in `gae`; the values are those of the learner's critic.
      log_ratios: [T, N] float32, log pi(a_t|s_t) - log mu(a_t|s_t), mu being the policy that acted.
      gamma: discount per step.
      lam: decay of the traces, 1 in the paper.
      rho_clip, c_clip: the paper's bounds on the importance weights.

    Returns:
      (advantages, targets): [T, N] float32 each. With ratio 1 they are the n-step returns (lam = 1).

    Source: Espeholt et al. 2018 (IMPALA), eqs. 1 and section 4.2; lam from its remark 2.
    """
    _check(rewards=rewards, values=values, next_values=next_values, dones=dones, log_ratios=log_ratios)
    ratios = np.exp(np.minimum(log_ratios, np.float32(20)))  # far above any clip, and no overflow
    rho = np.minimum(np.float32(rho_clip), ratios)
    decay = np.where(dones, np.float32(0), np.float32(gamma * lam) * np.minimum(np.float32(c_clip), ratios))
    corrections = rho * (rewards + np.float32(gamma) * next_values - values)
    targets = values + sums_ahead(corrections, decay)
    next_targets = next_values.copy()
    inside = ~dones[:-1]
    next_targets[:-1][inside] = targets[1:][inside]
    return rho * (rewards + np.float32(gamma) * next_targets - values), targets
