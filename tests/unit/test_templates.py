"""Templates: compiled once, checked at decoration, injective over their fields' values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cachekit
from cachekit.core.keys import tag_name
from cachekit.core.templates import compile_template
from cachekit.errors import ConfigurationError, KeyEncodingError

HOSTILE = [
    "{}",
    "{0}",
    "{x+1}",
    "{x()}",
    "{x;y}",
    "{x,y}",
    "{x if y else x}",
    "{(x)}",
    "{x..y}",
    "{.x}",
    "{x.}",
    "{x[}",
    "{x[]}",
    "{x['a']}",
    '{x["a"]}',
    "{x[a\\b]}",
    "{x[y[z]]}",
    "{x",
    "x}",
    "{x!z}",
    "{x!}",
    "{x:{y}}",
    "{None}",
    "{x.None}",
    "{x.class}",
    "{lambda}",
    "{x.a²}",
    "{²}",
    "{x\n}",
    "{x }",
    "{ x}",
    "{z}",
    "{__import__}",
    "{x.y\n}",
]


@pytest.mark.parametrize("field", HOSTILE)
def test_a_hostile_field_is_refused_at_decoration(field: str) -> None:
    cache = cachekit.Cache()
    for options in ({"key": f"k:{field}"}, {"tags": [f"t:{field}"]}):
        with pytest.raises(ConfigurationError, match=r"\S"):

            @cache.cached(**options)
            def f(x: Any, y: Any = 1) -> None: ...


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="no parameter 'usr'; known: user, id"):
        compile_template("{usr}", ["user", "id"], "key")


@pytest.mark.parametrize(("text", "error"), [("", ValueError), (7, TypeError), (b"k", TypeError)])
def test_a_template_that_is_no_text_is_refused(text: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        compile_template(text, None, "key")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{x.name}", SimpleNamespace(name="bob")),
        ("{x[name]}", {"name": "bob"}),
        ("{x[0]}", ["bob"]),
        ("{x[007]}", ["", "", "", "", "", "", "", "bob"]),
        ("{x[-1]}", {"-1": "bob"}),
        ("{x[a b]}", {"a b": "bob"}),
        ("{x[²]}", {"²": "bob"}),
        ("{x[a].b[0]}", {"a": SimpleNamespace(b=["bob"])}),
    ],
)
def test_attributes_and_indexes_mean_what_they_mean_to_str_format(text: str, value: Any) -> None:
    cache, seen = cachekit.Cache(), []

    @cache.cached(key="k:" + text)
    def f(x: Any) -> str:
        seen.append(x)
        return "loaded"

    f(value)
    assert f.key(value) == "k:" + text.format(x=value)
    assert f.peek(value) == "loaded"


@pytest.mark.parametrize(
    ("text", "value", "key"),
    [
        ("{x!r}", "bob", "'bob'"),
        ("{x!s}", 7, "7"),
        ("{x!a}", "é", "'\\xe9'"),
        ("{x:>5}", "bob", "  bob"),
        ("{x:.2f}", 1.5, "1.50"),
        ("{x!r:>7}", "bob", "  'bob'"),
        ("{{x}}", 1, "{x}"),
        ("{x}{{}}", 1, "1{}"),
    ],
)
def test_conversions_and_specs_shape_the_key(text: str, value: Any, key: str) -> None:
    @cachekit.Cache().cached(key=text)
    def f(x: Any) -> Any:
        return x

    assert f(value) == value
    assert f.key(value) == key
    assert f.peek(value) == value


@pytest.mark.parametrize("name", ["template", "name", "shape", "values", "keys", "self_", "type"])
def test_a_shaped_field_may_have_any_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def f({name}): return {name}", scope)
    f = cachekit.Cache().cached(key=f"k:{{{name}!r}}")(scope["f"])
    assert f("v") == "v"
    assert f.key("v") == "k:'v'"


def test_a_number_and_its_text_differ_in_a_key() -> None:
    template = compile_template("user:{id}", ["id"], "key")
    assert template.key((7,), "f") == "user:7"
    assert template.key(("7",), "f") == "user:'7'"
    assert template.key(("bob",), "f") == "user:bob"


def test_a_tag_follows_str_format_so_that_both_spellings_meet() -> None:
    template = compile_template("user:{id}", ["id"], "tag")
    assert template.tag({"id": 7}) == template.tag({"id": "7"}) == "user:7"


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("{x}", {"x": 1.5}),
        ("a{x!r}b{y!s:>5}c", {"x": "q", "y": 7}),
        ("{x:08.3f}|{y!a}", {"x": 3.14159, "y": "é"}),
        ("{{literal}} {x}", {"x": "{braces}"}),
        ("'\\\"{x}", {"x": "quotes"}),
        ("{x.real}-{y[0]}-{z[name]}", {"x": 3, "y": [5], "z": {"name": "n"}}),
    ],
)
def test_a_tag_is_what_str_format_makes_of_the_template(text: str, scope: dict[str, Any]) -> None:
    assert compile_template(text, list(scope), "tag").tag(scope) == tag_name(text.format(**scope))


def test_a_value_without_text_names_the_field_and_the_remedy() -> None:
    template = compile_template("user:{user.id}", ["user"], "key")
    with pytest.raises(KeyEncodingError, match=r"'user.id'.*ignore=\(\"user\",\)"):
        template.key((object(),), "f")


SEPARATORS = ["", "-", ".", "_", "@", "+", ":", "a", "1", "e", "--", "(", ")", "/"]
VALUES = (
    st.text("ab1-._@+e:('", max_size=4)
    | st.integers(-30, 130)
    | st.sampled_from([1.0, -1.5, 1e300, float("inf"), None, True, b"a", (1,), (), frozenset({1})])
)


@given(st.sampled_from(SEPARATORS), st.tuples(VALUES, VALUES), st.tuples(VALUES, VALUES))
def test_different_fields_never_give_one_key(separator: str, one: Any, two: Any) -> None:
    assume([(type(v), v) for v in one] != [(type(v), v) for v in two])
    template = compile_template("k" + "{a}" + separator + "{b}", ["a", "b"], "key")
    assert template.key(one, "f") != template.key(two, "f")


@pytest.mark.parametrize(
    ("text", "one", "two"),
    [
        ("{a}-{b}", ("x-y", "z"), ("x", "y-z")),
        ("{a}_{b}", ("x", "y_z"), ("x_y", "z")),
        ("{a}.{b}", (1, 2.5), (1.2, 5)),
        ("{a}{b}", (1, 23), (12, 3)),
        ("{a}-{b}", ("x", -1), ("x-", 1)),
    ],
)
def test_no_caller_writes_himself_into_anothers_key(text: str, one: Any, two: Any) -> None:
    @cachekit.Cache().cached(key=text)
    def f(a: Any, b: Any) -> Any:
        return a, b

    assert (f(*one), f(*two)) == (one, two)
    assert (f(*one), f(*two)) == (one, two)


def test_may_give_is_false_only_where_no_value_could_give_the_tag() -> None:
    template = compile_template("user:{id}:x", None, "tag")
    assert template.may_give("user:7:x")
    assert not template.may_give("order:7:x")
    assert not template.may_give("user:7:y")
