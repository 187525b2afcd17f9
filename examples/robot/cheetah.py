"""HalfCheetah that pays for its energy: the reward is less by a price times the mechanical power of its motors.

python examples/robot/cheetah.py RUN [RUN …] [--picture FILE]     speed and power of policies, and a film strip
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import tyro

import dppo

PRICE = 0.2
"""Of a kilowatt, in units of reward; a metre per second earns 1."""
SETTLED, FRAMES, EVERY = 100, 6, 2
"""Steps before the film strip, its pictures, and the steps from one to the next."""


class EnergyPrice(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):  # type: ignore[type-arg]
    """Charges for power: the sum of |torque x angular velocity| of all motors, in the last 10 ms of a step."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)  # Gymnasium can make it again from its spec
        gymnasium.Wrapper.__init__(self, env)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        data: Any = self.unwrapped.data  # MuJoCo's
        info["power"] = float(np.abs(data.actuator_force * data.actuator_velocity).sum()) / 1000.0  # kW
        return observation, float(reward) - PRICE * info["power"], terminated, truncated, info


def play(policy: Any, seed: int, render_mode: str | None = None) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Plays one episode. Returns speeds in m/s and powers in kW, after each step, and pictures if they are wanted."""
    env = EnergyPrice(gymnasium.make("HalfCheetah-v5", render_mode=render_mode, camera_name="track"))
    observation, done, speeds, powers, pictures = env.reset(seed=seed)[0], False, [], [], []
    while not done:
        observation, _, terminated, truncated, info = env.step(policy.act(observation))
        done = terminated or truncated
        speeds.append(info["x_velocity"])
        powers.append(info["power"])
        if render_mode and len(speeds) >= SETTLED and len(pictures) < FRAMES and len(speeds) % EVERY == 0:
            pictures.append(env.render())
    env.close()
    return np.array(speeds), np.array(powers), pictures


def main(runs: tyro.conf.Positional[list[str]], picture: str | None = None, episodes: int = 10) -> None:
    """Prints mean speed, power and energy for a metre of each run's policy; draws the first run's."""
    for run in runs:
        policy = dppo.load_policy(run)
        speeds, powers = np.mean([[x.mean() for x in play(policy, seed)[:2]] for seed in range(episodes)], axis=0)
        print(f"{run}: {speeds:.2f} m/s, {powers:.2f} kW, {1000 * powers / speeds:.0f} J/m")
    if picture:
        from matplotlib.figure import Figure

        speeds, powers, pictures = play(dppo.load_policy(runs[0]), 0, "rgb_array")
        film, curve = Figure(figsize=(9, 4), layout="constrained").subplots(2, 1, height_ratios=(2, 3))
        film.imshow(np.hstack([p[140:460] for p in pictures]))
        film.set(title=f"a picture every {50 * EVERY} ms")
        film.axis("off")
        curve.plot(speeds[SETTLED : SETTLED + 60], label="speed in m/s")
        curve.plot(powers[SETTLED : SETTLED + 60], label="power in kW")
        curve.set(xlabel="steps of 50 ms", ylim=(0, 9))
        curve.legend(loc="upper right")
        curve.figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    tyro.cli(main)
