"""Trading on a made-up market: the price reverts to a fair value that itself has momentum; each change costs.

log price = fair value + deviation + noise: the deviation is an Ornstein-Uhlenbeck process, the growth of the fair value
an autoregressive one. Neither is observed, only the price is. An episode is a year of 250 days.

    python examples/trading/market.py RUN [--picture FILE]     the run's policy beside buying and holding, and a rule
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import tyro

import dppo

DAYS, WARM_UP = 250, 100
"""Of an episode, and before it."""
COST = 0.002
"""Of what is bought or sold: 0.2%."""
REVERSION, DEVIATION = 0.2, 0.015
MOMENTUM, GROWTH, DRIFT = 0.97, 0.0005, 0.0003
NOISE = 0.002
"""Of a day: the share of the deviation that is lost, and of the growth that stays; the mean growth; and standard
deviations of the three kinds of kicks. All are of log prices."""
SPANS = (2, 5, 10, 20, 40, 80)
"""Days of the exponential means."""
RULE_MEAN, RULE_BAND = 1, 0.75
"""The best rule of a grid of spans and bands, on the 100 years that `main` compares on."""


class Market(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observation: the log price above its exponential means, and the position. Action: the position of the next day,
    as a share of the wealth: -1 (sold short) to 1. Reward: the growth of the log wealth in percent, net of costs.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(SPANS) + 1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        days = WARM_UP + DAYS + 1
        kicks = self.np_random.normal(size=(3, days))
        deviation, growth, fair = 0.0, 0.0, 0.0
        self.prices = np.zeros(days)
        for day in range(days):
            deviation += -REVERSION * deviation + DEVIATION * kicks[0, day]
            growth = MOMENTUM * growth + GROWTH * kicks[1, day]
            fair += DRIFT + growth
            self.prices[day] = fair + deviation + NOISE * kicks[2, day]
        self.means, self.position = np.zeros(len(SPANS)), 0.0
        for self.day in range(WARM_UP + 1):
            self._update()
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        position = float(np.clip(action[0], -1.0, 1.0))
        cost = COST * abs(position - self.position)
        self.position, self.day = position, self.day + 1
        change = np.expm1(self.prices[self.day] - self.prices[self.day - 1])
        self._update()
        reward = 100.0 * float(np.log1p(position * change - cost))
        return self._look(), reward, False, self.day == WARM_UP + DAYS, {}

    def _update(self) -> None:
        self.means += (self.prices[self.day] - self.means) / SPANS

    def _look(self) -> np.ndarray:
        return np.append(100.0 * (self.prices[self.day] - self.means), self.position).astype(np.float32)


def band(observation: np.ndarray) -> np.ndarray:
    """A no-trade band: sells what is far above its mean, buys what is far below, and keeps its position between."""
    above, position = observation[RULE_MEAN], observation[-1:]
    return position if abs(above) < RULE_BAND else -np.sign([above])


def wealth(market: Market, seed: int, choose: Any) -> np.ndarray:
    """Plays the year of that seed. Returns the log wealth in percent after each day [DAYS]."""
    observation, rewards, done = market.reset(seed=seed)[0], [], False
    while not done:
        observation, reward, _, done, _ = market.step(choose(observation))
        rewards.append(reward)
    return np.cumsum(rewards)


def main(run: tyro.conf.Positional[str], picture: str | None = None, years: int = 100) -> None:
    """Prints what policy and rules earn in the same years, and in how many the policy earns more."""
    market, policy = Market(), dppo.load_policy(run)
    ways = {"policy": policy.act, "no-trade band": band, "buy and hold": lambda observation: np.ones(1)}
    earned = {n: np.array([wealth(market, seed, way) for seed in range(years)]) for n, way in ways.items()}
    for name, paths in earned.items():
        last, gain = paths[:, -1], earned["policy"][:, -1] - paths[:, -1]
        print(f"{name:13} {last.mean():6.2f}% a year, standard error {last.std() / years**0.5:.2f};", end=" ")
        print(f"policy more by {gain.mean():.2f}, standard error {gain.std() / years**0.5:.2f}")
    if picture:
        from matplotlib.figure import Figure

        year, means = Figure(figsize=(9, 3), layout="constrained").subplots(1, 2)
        positions: list[float] = []
        wealth(market, 0, lambda observation: positions.append(float(observation[-1])) or policy.act(observation))
        year.plot(market.prices[WARM_UP:], color="k")
        year.set(title="a year: log price, and the policy's position", xlabel="day")
        year.twinx().fill_between(range(DAYS), positions, step="pre", alpha=0.3)
        for name, paths in earned.items():
            means.plot(paths.mean(axis=0), label=name)
        means.set(title=f"log wealth in %, mean of {years} years", xlabel="day")
        means.legend()
        means.figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
