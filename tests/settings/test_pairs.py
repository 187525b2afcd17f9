"""KEY=VALUE, as a command line has it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from dppo.config import Config
from dppo.errors import UsageError
from dppo.settings.pairs import as_pair, as_toml, in_words, is_pair, read_pairs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-5", -5), ("1_000", 1000), ("2.5", 2.5), ("1e-3", 1e-3), ("1e6", 1e6), ("true", True),
        ("false", False), ("[1, 2]", [1, 2]), ("{a = 1, b-c = {d = [true]}}", {"a": 1, "b-c": {"d": [True]}}),
        ('"two words"', "two words"), ("'5'", "5"), ('""', ""), (" 5 ", 5),
        # words
        ("human", "human"), ("5x5", "5x5"), ("/data/a=b/x.xml", "/data/a=b/x.xml"), ("two words", "two words"),
        ("v1.2.3", "v1.2.3"), ("a,b", "a,b"), ("2024-05-06", "2024-05-06"), ("10:30:00", "10:30:00"), ("#5", "#5"),
    ],
)  # fmt: skip
def test_values_are_toml_and_words_are_texts(text: str, value: Any) -> None:
    (read,) = read_pairs([f"its_name={text}"]).values()
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size", "--env-kwargs size must have the form KEY=VALUE, without spaces around the ="),
        ("", "must have the form KEY=VALUE"),
        ("=5", "nothing is no name of an argument"),
        ("a b=5", "a b is no name of an argument"),
        ("5a=5", "5a is no name of an argument"),
        ("a.b=5", "a.b is no name of an argument, which has letters, digits and _ only; give a table as KEY={"),
        ("a=", "--env-kwargs a= has no value; 'a=\"\"' is the empty text"),
        ("a=True", "--env-kwargs a=True is Python, not TOML: write a=true, or 'a=\"True\"' for the text"),
        ("a=False", "write a=false"),
        ("a=None", "TOML has no None: leave it out, or 'a=\"None\"' for the text"),
        ("a=[1, 2", "--env-kwargs a='[1, 2' is no TOML: Unclosed array"),
        ("a={b:1}", "is no TOML"),
        ('a="x', "is no TOML"),
        ("a=.5", "--env-kwargs a=.5 is no number of TOML: write a=0.5, or 'a=\".5\"' for the text"),
        ("a=007", "write a=7, or 'a=\"007\"' for the text"),
        ("a=1\nb=2", "holds more than one value"),
        (f"a={'[' * 5000}", "is no TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_repair(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_pairs(["right=1", text])
    assert said in str(error.value)


def test_the_same_argument_twice_is_refused_however_it_is_written() -> None:
    with pytest.raises(UsageError, match="--env-kwargs its_name is there twice"):
        read_pairs(["its_name=1", "its-name=2"])


@pytest.mark.parametrize(
    "value",
    [
        5, -(2**62), 0.1, 1e16, 1e-7, -0.0, True, False, "", "True", "5", "a b", "it's", 'a "b"', "back\\slash",
        "line\nbreak", "\x7f\x01\t", "é 漢 🙂", [], {}, [1, [2.5, "x"]], {"a b": {"c-d": [], "": 1}},
    ],
    ids=repr,
)  # fmt: skip
def test_every_value_comes_back(value: Any) -> None:
    assert read_pairs([as_pair("a", value)]) == {"a": value}
    assert tomllib.loads(f"a = {as_toml(value)}") == {"a": value}
    assert "\n" not in as_toml(value)


def test_a_pair_is_told_from_a_file() -> None:
    assert is_pair("a=1") and is_pair("its-name=x.toml")
    assert not is_pair("x.toml") and not is_pair("runs/lr=0.1/c.toml")


def test_an_environment_in_words() -> None:
    assert in_words(Config()) == "CartPole-v1"
    config = Config(env="my:X", env_kwargs={"a": 1, "b": "x"}, wrappers=("m:f", "m:g"))
    assert in_words(config) == 'my:X a=1 b="x" in m:f in m:g'
    assert in_words(Config(env="my:X", cases=({"name": "a"},))) == "my:X in 1 case"
    assert in_words(Config(env="my:X", cases=({"name": "a"}, {"name": "b"}))) == "my:X in 2 cases"
