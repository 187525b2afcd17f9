"""A setting's value is made plain, or refused by name: of every setting, whichever way it comes."""

from __future__ import annotations

import math
import types
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from dppo.bounds import Section, as_name, digits, shown, whole_number, within
from dppo.config import Config, LogConfig, ModelConfig
from dppo.errors import UsageError
from dppo.settings.flags import as_flags, parse
from dppo.settings.resolve import resolve
from dppo.settings.toml import load_config, to_toml
from dppo.settings.values import as_dict, updated


class Setting(NamedTuple):
    """A place in Config, found without the help of bounds.py."""

    section: str
    name: str
    kind: type

    @property
    def full(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def needed(self) -> dict[str, Any]:
        """What the same section must have beside it."""
        return {"core": "gru"} if self.full in ("model.core_size", "model.sequence") else {}

    def nested(self, value: Any) -> dict[str, Any]:
        return {self.section: {self.name: value} | self.needed} if self.section else {self.name: value}

    def made(self, value: Any) -> Config:
        """By the constructors, as in Python."""
        if not self.section:
            return Config(**{self.name: value})
        return Config(**{self.section: type(getattr(Config(), self.section))(**{self.name: value}, **self.needed)})

    def of(self, config: Config) -> Any:
        return getattr(getattr(config, self.section) if self.section else config, self.name)


def settings() -> list[Setting]:
    found = []
    sections = [("", Config), *((f.name, type(getattr(Config(), f.name))) for f in fields(Config))]
    for section, cls in sections:
        if not is_dataclass(cls):
            continue
        for name, hint in get_type_hints(cls).items():
            options = [o for o in get_args(hint) if o is not type(None)] if is_union(hint) else [hint]
            (kind,) = options
            if not is_dataclass(kind):
                found.append(Setting(section, name, kind))
    return found


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


SETTINGS = settings()
NUMBERS = [s for s in SETTINGS if s.kind in (int, float)]
NEVER = [math.nan, math.inf, -math.inf, 1e300, -1e300, 10**30, -(10**30), 10**400, 10**5000, np.float64("nan")]
"""Neither counts nor seconds nor rates; no setting may have them."""
PERHAPS = [-1, 2**31, 2**53 + 1, 2**63, -(2**63), 1e-300, 0, 0.5]

each_number = pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.full)


def test_there_are_as_many_settings_as_flags() -> None:
    assert len(NUMBERS) > 40
    assert {s.full for s in SETTINGS} > {"seed", "horizon", "optim.lr", "trajectories.max_gb", "log.stall_after_s"}


@each_number
def test_no_number_may_be_nan_infinite_or_absurd(setting: Setting, tmp_path: Path) -> None:
    for value in NEVER:
        for way in (setting.made, lambda v: updated(Config(), setting.nested(v))):
            with pytest.raises(ValueError, match=f"^{setting.full}=") as caught:
                way(value)
            assert "must" in str(caught.value) and len(str(caught.value)) < 300
    text = "nan" if setting.kind is float else "1e300"
    with pytest.raises(UsageError, match=setting.full.replace("_", "[_-]")):
        parse(["--env", "X-v0", f"--{setting.full.replace('_', '-')}={text}"])
    (tmp_path / "c.toml").write_text(f"{setting.full.replace('_', '-')} = inf\n")
    with pytest.raises(UsageError, match=setting.full.replace("_", "[_-]")):
        parse([str(tmp_path / "c.toml")])


@each_number
def test_python_and_files_take_the_same_numbers(setting: Setting) -> None:
    """And what is taken is a plain number of the right type, which config.toml gives back."""
    for value in PERHAPS:
        try:
            config = setting.made(value)
        except ValueError as error:
            assert str(error).startswith(f"{setting.full}={value}")
            with pytest.raises(ValueError, match=setting.full):
                updated(Config(), setting.nested(value))
            continue
        assert updated(Config(), setting.nested(value)) == config
        assert type(setting.of(config)) is setting.kind and setting.of(config) == setting.kind(value)


def read_back(config: Config, folder: Path) -> Config:
    """As the next start has it."""
    (folder / "config.toml").write_text(to_toml(config))
    return load_config(folder)


class Choice(StrEnum):
    ASYNC = "async"


class Level(IntEnum):
    THREE = 3


@each_number
def test_numpys_numbers_are_made_plain_and_come_back_from_config_toml(setting: Setting, tmp_path: Path) -> None:
    plain = setting.of(Config())
    plain = setting.kind(0.5 if setting.kind is float else 8) if plain is None else plain
    kinds = (
        (np.int64, np.uint32, np.float64, np.array) if setting.kind is int else (np.float64, np.longdouble, np.array)
    )
    for kind in kinds:
        config = setting.made(kind(plain))
        assert (type(setting.of(config)), setting.of(config)) == (setting.kind, plain)
        assert repr(config) == repr(setting.made(plain))
    config = setting.made(kinds[0](plain))
    if setting.full == "eval.target_return":  # which is refused without evaluations
        config = replace(config, eval=replace(config.eval, every=1000))
    if setting.full != "ppo.minibatches":
        assert setting.of(read_back(resolve(config), tmp_path)) == plain


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"total_steps": 4e3}, {"total_steps": 4000}),
        ({"seed": Level.THREE}, {"seed": 3}),
        ({"mode": Choice.ASYNC}, {"mode": "async"}),
        ({"mode": np.str_("async")}, {"mode": "async"}),
        ({"run_dir": Path("a/b")}, {"run_dir": "a/b"}),
        ({"dry_run": np.bool_(True)}, {"dry_run": True}),
        ({"vtrace": np.array(False)}, {"vtrace": False}),
        ({"target_return": np.int32(-3)}, {"target_return": -3.0}),
        ({"target_return": np.float32(0.5)}, {"target_return": 0.5}),
        ({"time_limit_s": 60}, {"time_limit_s": 60.0}),
        ({"model": ModelConfig(hidden=[3, np.int8(4)])}, {"model": ModelConfig(hidden=(3, 4))}),  # type: ignore
        ({"model": ModelConfig(hidden=np.array([3, 4]))}, {"model": ModelConfig(hidden=(3, 4))}),  # type: ignore
        ({"model": ModelConfig(hidden=(64.0,))}, {"model": ModelConfig(hidden=(64,))}),  # type: ignore
    ],
    ids=str,
)
def test_what_means_the_same_is_the_same(given: dict[str, Any], plain: dict[str, Any], tmp_path: Path) -> None:
    assert repr(Config(**given)) == repr(Config(**plain)) == repr(replace(Config(), **given))
    config = resolve(Config(**given))
    assert read_back(config, tmp_path) == replace(config, run_dir=None, dry_run=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 1.5}, "seed=1.5 must be of type int"),
        ({"seed": np.float64(0.5)}, r"seed=np.float64\(0.5\) must be of type int"),
        ({"seed": np.array([1, 2])}, r"seed=array\(\[1, 2\]\) must be of type int"),
        ({"seed": np.bool_(True)}, "must be of type int"),
        ({"seed": None}, "seed=None must be of type int"),
        ({"seed": Decimal(3)}, "must be of type int"),
        ({"seed": 1j}, "must be of type int"),
        ({"resume": "yes"}, "resume='yes' must be of type bool"),
        ({"env": b"X"}, "env=b'X' must be of type str"),
        ({"env": None}, "env=None must be of type str"),
        ({"env": "X\0"}, "holds a NUL character"),
        ({"run_dir": "a\udcff"}, "no UTF-8"),
        ({"env": "x" * 5000}, "too long: 5000 characters, at most 4096"),
        ({"mode": "synch"}, "mode='synch' must be one of sync, async"),
        ({"mode": ["sync"]}, r"mode=\['sync'\] must be one of"),
        ({"vtrace": 1}, "vtrace=1 must be of type bool"),
        ({"ppo": {"clip": 0.1}}, "must be a PPOConfig"),
        ({"ppo": None}, "ppo=None must be a PPOConfig"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_meant_is_refused_by_name_in_one_short_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Config(**given)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


def test_the_layers_of_a_network_are_bounded_one_by_one_and_together() -> None:
    for hidden in ((10**6, 10**6), (64,) * 17, (8192, 8192, 8192), (-1,), (math.nan,), (2**63,)):
        with pytest.raises(ValueError, match=r"model\.hidden="):
            ModelConfig(hidden=hidden)  # type: ignore[arg-type]
    assert ModelConfig(hidden=(8192, 8192)).hidden == (8192, 8192)


def test_a_rollout_is_bounded_as_a_whole() -> None:
    with pytest.raises(ValueError, match=r"horizon\*num_envs=100000\*10000 .* must be at most 1e\+08"):
        resolve(updated(Config(), {"horizon": 100_000, "num_envs": 10_000}))


@pytest.mark.parametrize(
    "text", ["tab\there", 'quo"te', "back\\slash", "line\nbreak", "\x01\x1f\x7f", "é 漢 🙂", "'''", ""]
)
def test_any_text_comes_back_from_config_toml(text: str, tmp_path: Path) -> None:
    config = resolve(Config(env=f"X{text}", model=ModelConfig(factory=f"a:{text}")))
    assert read_back(config, tmp_path) == config


def test_every_setting_of_a_complete_configuration_comes_back(tmp_path: Path) -> None:
    config = resolve(
        Config(
            target_return=-1e-7, time_limit_s=1e9, seed=2**63 - 1, model=ModelConfig(hidden=()),
            env_kwargs={"size": 5, "its_mode": "True", "sizes": [1, 2.5]}, wrappers=("a:b", "c:d"),
            log=LogConfig(recorder=("a:b", "c:d"), wandb="x", mlflow="y z"),
            env="X-v0", cases=({"name": "a.1", "env-kwargs": {"its-size": [1, {"b-c": 2}]}}, {"name": "2"}),
        )
    )  # fmt: skip
    assert config.cases[0] == {"name": "a.1", "env_kwargs": {"its_size": [1, {"b-c": 2}]}}
    assert read_back(config, tmp_path) == config
    flags = [flag for name, value in flat(as_dict(config)).items() for flag in as_flags({name: value})]
    assert parse(flags)[0] == config


# -- tables of arguments --------------------


def test_a_table_is_a_new_one_of_plain_values(tmp_path: Path) -> None:
    given = {
        "a-b": np.float32(0.5),
        "c": (1, np.arange(2)),
        "d": {"e-f": {"g": Path("/x")}},
        "h": Choice.ASYNC,
        "i": True,
    }
    config = resolve(Config(env_kwargs=given))
    assert config.env_kwargs == {"a_b": 0.5, "c": [1, [0, 1]], "d": {"e-f": {"g": "/x"}}, "h": "async", "i": True}
    assert type(config.env_kwargs["h"]) is str and config.env_kwargs["i"] is True
    given["c"], given["d"]["e-f"]["g"] = 3, 4
    assert config.env_kwargs["c"] == [1, [0, 1]] and config.env_kwargs["d"] == {"e-f": {"g": "/x"}}
    assert read_back(config, tmp_path) == config and hash(config) == hash(replace(config))
    assert replace(config, env_kwargs={}) != config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x", "env_kwargs='x' must be a table"),
        ([1], "must be a table"),
        ({"a": None}, "env_kwargs.a=None must be a number, a text, true or false, or a list or table of these"),
        ({"a": [1, {"b": object}]}, "env_kwargs.a.b=<class 'object'> must be a number"),
        ({"a": math.nan}, "env_kwargs.a=nan must be finite"),
        ({"a": [math.inf]}, "env_kwargs.a=inf must be finite"),
        ({"a": 2**63}, "must lie in"),
        ({"a": {1: 2}}, "env_kwargs.a: the key 1 must be a text"),
        ({"a": "x\0"}, "holds a NUL character"),
        ({"a.b": 1}, "env_kwargs: 'a.b' is no name of an argument"),
        ({"": 1}, "is no name of an argument"),
        ({3: 1}, "env_kwargs: 3 is no name of an argument"),
        ({"a_b": 1, "a-b": 1}, "env_kwargs: a_b is there twice"),
    ],
    ids=str,
)
def test_what_no_file_can_hold_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        Config(env_kwargs=value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ({"name": "a"}, "cases={'name': 'a'} must be a list"),
        (["a"], "cases='a' must be a table"),
        ([{"name": "a"}, {"env_kwargs": {}}], 'cases[1] has no name: write name = "…" into this table [[cases]]'),
        ([{"name": "a"}, {"name": "b"}, {"name": "a"}], "cases: the name a is there twice"),
        ([{"name": "a/b"}], "cases[0].name='a/b' must have 1 to 64 characters: letters, digits, _, - and . only"),
        ([{"name": ""}], "cases[0].name='' must have"),
        ([{"name": ".."}], "cases[0].name='..' must have"),
        ([{"name": "ä"}], "cases[0].name='ä' must have"),
        ([{"name": "a\n"}], "cases[0].name='a\\n' must have"),
        ([{"name": "a" * 65}], "must have 1 to 64 characters"),
        ([{"name": 3}], "cases[0].name=3 must have"),
        ([{"name": "a", "bath": 1}], "cases.a.bath: a case has name and env-kwargs only; arguments of the"),
        ([{"name": "a", "env-kwargs": 3}], "cases.a.env_kwargs=3 must be a table"),
        ([{"name": "a", "env-kwargs": {"x": math.nan}}], "cases.env_kwargs.x=nan must be finite"),
    ],
    ids=str,
)  # fmt: skip
def test_cases_that_are_none_are_refused(cases: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        Config(env="X-v0", cases=cases)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_list_in_itself_is_too_deep() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match=r"env_kwargs\.a is nested too deeply: at most 16 levels"):
        Config(env_kwargs={"a": endless})


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        name = where + name.replace("_", "-")
        out |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return out


# -- the parts --------------------


def test_a_range_without_a_section_of_its_own_is_checked_all_the_same() -> None:
    from dataclasses import make_dataclass

    made = make_dataclass("NewConfig", [("x", Annotated[float, within(0, 1)], 0.5)], bases=(Section,), frozen=True)
    with pytest.raises(ValueError, match=r"new.x=2 must lie in \[0, 1\]"):
        made(x=2)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e6", 10**6), ("1_000", 1000), ("-3", -3), ("2.50e1", 25), ("9007199254740993", 2**53 + 1), ("1.5", None)]
    + [(text, None) for text in ("nan", "inf", "1e300", "1e999999999", "9" * 5000, "", "x", "0x10", "1e-5")],
    ids=lambda value: str(value)[:20],
)
def test_whole_numbers_are_read_exactly(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "-1", "²", "1.0", "9" * 5000, "11", "many", " 3"])
def test_a_variable_that_holds_no_such_number_counts_as_not_set(text: str) -> None:
    assert digits(text, 10) is None
    assert digits("10", 10) == 10


def test_whatever_is_shown_is_short() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**5000, "x" * 10**6):
        assert len(shown(value)) <= 80
    assert as_name("a\nb") == "'a\\nb'" and as_name("ppo.clip") == "ppo.clip"
    while deep:  # taking it apart at once would need as deep a stack
        (deep,) = deep
