"""Patterns in bounded time against Python's own `re`, which has all the time in the world on short names."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from samerge.adapters.config import pattern_value
from samerge.adapters.patterns import Pattern, PatternError, allowance, compiled

LETTERS = st.sampled_from(["a", "b", r"\.", ".", r"\d", r"\W", "[ab]", "[^a.]", "[a-c0]", r"\w", "", r"\b", "^", "$"])
PATTERNS = st.recursive(
    LETTERS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda text: f"(?={text})"),
        inner.map(lambda text: f"(?!{text})"),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=8,
)
NAMES = st.text("ab.0_", max_size=8)


@given(PATTERNS, NAMES)
@example("(?=(?!))", "")
@example("a(?:(?!)|b)(?!)?", "ab")
@example("(?<!)*", "")
def test_the_answer_is_that_of_re(pattern: str, name: str) -> None:
    assert Pattern(pattern).matches(name) is (re.fullmatch(pattern, name) is not None)


@given(PATTERNS, NAMES)
@example(".", "a")
@example("a.b", "b.a_b")
def test_a_pattern_of_ranks_is_matched_as_peft_does(pattern: str, name: str) -> None:
    found = pattern_value({pattern: 3}, name, 0)
    assert found == (3 if re.match(rf"(.*\.)?({pattern})$", name) else 0)


@pytest.mark.parametrize("pattern", [r"(?<!x)\.q", r"a(?<=\.a)b", r"(?<![ab]0)\w", r"\A.q\Z", r"x\Bq", r"\D\S\s?."])
@pytest.mark.parametrize("name", ["", ".q", "x.q", "ab", ".ab", "b0q", "c0q", "xq", "x1", "é", "²", "a b"])
def test_lookbehind_and_places(pattern: str, name: str) -> None:
    for text in (pattern, f".*{pattern}.*", f".?{pattern}"):
        assert Pattern(text).matches(name) is (re.fullmatch(text, name) is not None)


def test_what_people_write() -> None:
    unsloth = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|k_proj|v_proj|gate_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))"
    )
    for name in ("model.layers.31.self_attn.q_proj", "model.language_model.layers.3.mlp.gate_proj", "lm_head"):
        with allowance(20_000):
            assert Pattern(unsloth).matches(name) is (re.fullmatch(unsloth, name) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(.*)*(.*)*(.*)*x", "(a?){40}a{40}b", "((a*)*)*b", "(a|a|b)+c"]
)
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    with allowance(2_000_000):
        assert Pattern(pattern).matches("a" * 400 + "!") is False


def test_all_patterns_together_have_one_allowance() -> None:
    with allowance(1000):
        assert not compiled(".*.*x").matches("a" * 30)
        with pytest.raises(PatternError, match="too many steps"):
            [compiled(".*.*x").matches("a" * 30) for _ in range(1000)]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "no regular expression"),
        ("[z-a]", "no regular expression"),
        (r"(a)\1", "groupref"),
        ("(?i)a", "inline flags"),
        ("(?i:a)", "subpattern"),
        ("(a{1000}){1000}", "repeats more"),
        ("a" * 20_001, "longer than"),
        ("(" * 5000 + ")" * 5000, "no regular expression|repeats more"),
    ],
)
def test_what_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(PatternError, match=words):
        Pattern(pattern)


def test_nothing_repeated_ever_so_often() -> None:
    assert Pattern("(?:){1000000000}a").matches("a")
