"""`modules`: what it takes, what it matches, and the words of every refusal."""

from __future__ import annotations

import pytest

from samerge.cli.shell_words import in_shell_words
from samerge.errors import OptionError
from samerge.options.common import CommonOptions
from samerge.options.module_weights import ModuleWeights, Rule, module_weights
from samerge.options.option import filled, table


def read(value) -> ModuleWeights:
    return module_weights().read("modules", value)


def test_text_and_mappings_say_the_same() -> None:
    given = {"*.mlp.*": 0.5, "layers.[0-9].*": {"math": 1, "code": "0"}}
    texts = ["*.mlp.*=0.5", "layers.[0-9].*=math:1", "layers.[0-9].*=code:0"]
    assert read(given) == read(texts)
    assert read(read(given)) == read(given)
    assert read("*=2") == ModuleWeights((Rule("*", None, 2.0),))
    assert read(given).plain() == {"*.mlp.*": 0.5, "layers.[0-9].*": {"math": 1.0, "code": 0.0}}
    assert read(read(given).plain()) == read(given)
    assert filled(CommonOptions, {"modules": given}).record()["modules"] == read(given).plain()


@pytest.mark.parametrize(
    ("pattern", "module", "matches"),
    [
        ("*", "head", True),
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("q_proj", "model.layers.0.self_attn.q_proj_norm", False),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        ("*.mlp.*", "model.layers.0.mlp.up_proj", True),
        ("mlp.*", "model.layers.0.mlp.up_proj", True),
        ("mlp", "model.layers.0.mlp.up_proj", False),
        ("layers.[0-9].*", "model.layers.9.mlp.up_proj", True),
        ("layers.[0-9].*", "model.layers.10.mlp.up_proj", False),
        ("layers.1[0-9].*", "model.layers.10.mlp.up_proj", True),
        ("Q_proj", "q_proj", False),
        ("mlp.experts.down_proj", "layers.0.mlp.experts.down_proj[3]", True),
        ("mlp.experts.down_proj[[]3]", "layers.0.mlp.experts.down_proj[3]", True),
        ("mlp.experts.down_proj[[]3]", "layers.0.mlp.experts.down_proj[4]", False),
        ("down_blocks.0.*", "unet.down_blocks.0.resnets.0.conv1", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, module: str, matches: bool) -> None:
    assert Rule(pattern, None, 1.0).matches(module) is matches


def test_the_last_that_speaks_of_an_adapter_wins() -> None:
    weights = read({"*": 0, "*.mlp.*": {"math": 1}, "layers.1.*": {"code": 3}})
    assert weights.of("layers.0.attn.q", "math") == 0
    assert weights.of("layers.0.mlp.up", "math") == 1
    assert weights.of("layers.0.mlp.up", "code") == 0
    assert weights.of("layers.1.mlp.up", "code") == 3
    assert weights.of("layers.1.mlp.up", "math") == 1
    assert read({"*.mlp.*": 1, "*": 0}).of("layers.0.mlp.up", "math") == 0
    assert read({"x": 0}).of("layers.0.mlp.up", "math") == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, r"modules=3 must be a mapping of patterns to a number.*such as \{'\*\.mlp\.\*': 0.5\}"),
        ({}, "modules is empty"),
        ([], "modules is empty"),
        ([1], "must be a mapping of patterns"),
        ({1: 0.5}, "has the pattern 1; a pattern is text"),
        ({"*": "much"}, r"modules\['\*'\]='much' must be a finite number"),
        ({"*": float("nan")}, "must be a finite number"),
        ({"*": {}}, "is empty; give a number, or one for each adapter"),
        ({"*": {"math": None}}, r"modules\['\*'\]\['math'\]=None must be a finite number"),
        ("0.5", "modules='0.5' must be GLOB=WEIGHT or GLOB=ADAPTER:WEIGHT"),
        ("*=:1", "must be GLOB=WEIGHT"),
        (["*=1", "*=0"], r"the pattern '\*' more than once; give it in one place"),
        (["*=1", "*=math:0"], "more than once"),
        (["*=math:1", "x=0", "*=code:1"], "more than once"),
    ],
)
def test_what_it_refuses(given, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        read(given)


def test_patterns_and_adapters_that_there_are_not() -> None:
    modules = {"math": [("layers.0.attn.q",), ("layers.1.attn.q",), ("layers.0.mlp.experts.up[0]",)]}
    assert read({"q": 1, "*.up": 2}).check(modules, ["math"]) == [2, 1]
    with pytest.raises(OptionError, match=r"'mlp'.*matches no module.*layers.\*.attn.q, layers.\*.mlp.experts.up"):
        read({"mlp": 1}).check(modules, ["math"])
    with pytest.raises(OptionError, match=r"the adapter 'maths' for 'q', which is not in this merge; it has \['math'"):
        read({"q": {"maths": 1}}).check(modules, ["math"])


def test_a_rule_of_one_adapter_counts_its_own_modules() -> None:
    modules = {"math": [("0.q",), ("1.q",)], "code": [("0.q",), ("0.up",)], "none": []}
    rules = read({"*": 1, "q": {"math": 2, "code": 0.5}, "up": {"math": 0}, "?.up": {"left": 1}})
    assert rules.check(modules, ["math", "code", "none", "left"]) == [3, 2, 1, 0, 0]
    with pytest.raises(
        OptionError, match=r"'up', which matches no module of the adapter 'math', though others'.*has .*q"
    ):
        read({"up": {"math": 0.5}}).check(modules, ["math", "code"])


def test_a_module_has_the_name_of_its_own_file_too() -> None:
    rules = read({"lora_te_*": 0.5, "unet.*": 2})
    assert rules.of("text_encoder.q", "a", "lora_te_q") == 0.5
    assert rules.of("unet.q", "a", "lora_unet_q") == 2
    assert rules.check({"a": [("text_encoder.q", "lora_te_q"), ("unet.q", "lora_unet_q")]}, ["a"]) == [1, 1]
    assert read({"*": 0}).absent("lora_te_q", "a")
    assert read({"lora_te_*": {"a": 0}, "*.k": {"b": 2}}).absent("lora_te_q", "a")
    assert not read({"*": 0, "unet.*": 1}).absent("lora_unet_q", "a")
    assert not read({"lora_te_*": {"a": 0}}).absent("lora_te_q", "b")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "leave out: modules={'lora_te_*': 0, 'a.*': 0}. Or",
            "out: --module-weight 'lora_te_*=0' --module-weight 'a.*=0'.",
        ),
        ("modules['*']['math']='much' must be", "--module-weight '*=math:much' must be"),
        ("modules['*']='much' must be", "--module-weight '*=much' must be"),
        ("modules has the pattern 'x'", "--module-weight has the pattern 'x'"),
        ("12 modules names", "12 modules names"),
    ],
)
def test_messages_are_in_the_shells_words(message: str, expected: str) -> None:
    assert expected in in_shell_words(message, ["modules"])


def test_messages_name_the_option_of_the_shell() -> None:
    for row in table(CommonOptions):
        if row.kind.flag:
            assert in_shell_words(f"{row.name}='x' is", [row.name]) == f"--{row.kind.flag} x is"
