"""Attribute values: numbers, keys, items that nobody can change from outside."""

from __future__ import annotations

import gc
from decimal import Decimal
from typing import Any

import pytest
from boto3.dynamodb.types import Binary, TypeDeserializer, TypeSerializer
from dax_desk import spoil
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.dax.expressions import NotUnderstood, project, projection_of, table_name
from cachekit.dax.values import (
    PROMOTE_AT,
    Image,
    Page,
    Uncertain,
    key_of,
    number,
    plain_atom,
    stored,
    to_wire,
    wire_atom,
)

NUMBERS = [
    ("1.50", "1.5"), ("1E+2", "100"), ("-0", "0"), ("0.0", "0"), ("007", "7"), ("+3", "3"),
    (".5", "0.5"), ("5.", "5"), ("-1.10e1", "-11"), ("1e-3", "0.001"), ("000", "0"),
    ("9" * 38, "9" * 38), ("1E0", "1"), ("100", "100"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "kept"), NUMBERS)
def test_a_number_has_one_text(written: str, kept: str) -> None:
    assert number(written) == kept


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "x", "NaN", "Infinity", "1_0", "9" * 39, "1e126", "1e-131", "١", "--1"]
)
def test_what_dynamodb_refuses_is_no_number(text: str) -> None:
    assert number(text) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=None))
def test_equal_numbers_have_equal_texts_and_others_do_not(value: Decimal) -> None:
    text = number(str(value))
    if text is not None:
        assert Decimal(text) == value
        assert number(text) == text


def test_a_large_number_is_one_key_but_is_not_kept_as_an_attribute() -> None:
    assert number("1E+60") == number("1" + "0" * 60)
    with pytest.raises(Uncertain):
        stored({"n": {"N": "1E+60"}})


# -- keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"k": {"N": "1"}}, {"k": {"N": "1.0"}}),
        ({"k": {"N": "1E0"}}, {"k": {"N": "1"}}),
        ({"k": {"B": b"x"}}, {"k": {"B": bytearray(b"x")}}),
        ({"a": {"S": "x"}, "b": {"N": "1"}}, {"b": {"N": "01"}, "a": {"S": "x"}}),
    ],
)
def test_keys_of_one_item_are_equal(one: Any, other: Any) -> None:
    assert key_of(one, wire_atom) == key_of(other, wire_atom) is not None


def test_both_forms_give_one_key() -> None:
    plain = {"a": Binary(b"x"), "b": Decimal("1.0")}
    assert key_of(plain, plain_atom) == key_of({"b": {"N": "1"}, "a": {"B": b"x"}}, wire_atom)
    assert key_of({"a": 1}, plain_atom) == key_of({"a": Decimal("1.00")}, plain_atom)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"k": {"S": "1"}}, {"k": {"N": "1"}}),
        ({"k": {"S": "x"}}, {"k": {"B": b"x"}}),
        ({"k": {"S": "x"}}, {"j": {"S": "x"}}),
        ({"a": {"S": "x"}, "b": {"S": "y"}}, {"a": {"S": "y"}, "b": {"S": "x"}}),
    ],
)
def test_keys_of_different_items_differ(one: Any, other: Any) -> None:
    assert key_of(one, wire_atom) != key_of(other, wire_atom)


@pytest.mark.parametrize(
    "wrong",
    [
        None, [], {}, {"k": "x"}, {"k": {}}, {"k": {"S": 1}}, {"k": {"N": 1}},
        {"k": {"BOOL": True}},
        {"k": {"S": "a", "N": "1"}}, {"k": {"N": "x"}}, {"a": {"S": ""}, "b": {"S": ""}, "c": {}},
        {1: {"S": "x"}, "b": {"S": "x"}}, {"k": {"SS": ["x"]}},
    ],
)  # fmt: skip
def test_what_can_be_no_key_has_none(wrong: Any) -> None:
    assert key_of(wrong, wire_atom) is None


@pytest.mark.parametrize(
    "wrong",
    [True, 1.0, None, [1], {"x"}, Decimal("NaN"), pow(10, 5000)],
    ids=lambda v: type(v).__name__,
)
def test_what_can_be_no_plain_key_has_none(wrong: Any) -> None:
    assert key_of({"k": wrong}, plain_atom) is None


def test_a_table_arn_is_told_from_a_name() -> None:
    assert table_name("users") == ("users", False)
    assert table_name("arn:aws:dynamodb:eu-west-1:1234:table/users") == ("users", True)
    for wrong in ("arn:aws:dynamodb:eu-west-1:1234:table/users/index/x", "", None, 7):
        with pytest.raises(NotUnderstood):
            table_name(wrong)


# -- items ---------------------------------------------------------------------------------

digits = st.integers(-(10**37), 10**37).map(str) | st.sampled_from(["1.5", "-0.001", "9" * 38])
texts = st.text(max_size=8)
blobs = st.binary(max_size=8)
leaves = st.one_of(
    st.builds(lambda v: {"S": v}, texts),
    st.builds(lambda v: {"N": v}, digits),
    st.builds(lambda v: {"B": v}, blobs),
    st.builds(lambda v: {"BOOL": v}, st.booleans()),
    st.builds(lambda: {"NULL": True}),
    st.builds(lambda v: {"SS": v}, st.lists(texts, min_size=1, max_size=4, unique=True)),
    st.builds(lambda v: {"NS": v}, st.lists(digits, min_size=1, max_size=4, unique=True)),
    st.builds(lambda v: {"BS": v}, st.lists(blobs, min_size=1, max_size=4, unique=True)),
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda v: {"L": v}, st.lists(inner, max_size=4))
        | st.builds(lambda v: {"M": v}, st.dictionaries(texts, inner, max_size=4))
    ),
    max_leaves=10,
)
items = st.dictionaries(texts, values, max_size=6)


def deserialized(item: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeDeserializer().deserialize(value) for name, value in item.items()}


@given(items, st.booleans())
@settings(max_examples=100)
def test_no_change_of_an_answer_reaches_a_later_one(item: dict[str, Any], plain: bool) -> None:
    image = Image(item)
    want = deserialized(item) if plain else Image(item).wire()
    for _ in range(PROMOTE_AT + 3):
        answer = image.read(plain)
        assert answer == want
        assert list(answer) == list(want)
        spoil(answer)
        if image.wants_promotion(plain):
            image.promote(plain)
    assert not image.wants_promotion(plain)
    assert image.read(not plain) is not None


@given(items)
@settings(max_examples=40)
def test_the_given_item_is_not_shared_either(item: dict[str, Any]) -> None:
    image = Image(item)
    want = image.wire()
    spoil(item)
    assert image.wire() == want


@given(items)
@settings(max_examples=40)
def test_both_forms_of_an_item_say_the_same(item: dict[str, Any]) -> None:
    image = Image(item)
    assert deserialized(to_wire(image.plain())) == deserialized(item)
    image.promote(True)
    assert image.plain() == deserialized(item)


def test_a_page_gives_fresh_items_and_its_last_key() -> None:
    page = Page([{"a": {"L": []}}], {"k": {"S": "x"}}, {"Count": 1, "ScannedCount": 2})
    for _ in range(PROMOTE_AT + 2):
        answer = page.read(False)
        assert answer == {
            "Items": [{"a": {"L": []}}], "Count": 1, "ScannedCount": 2,
            "LastEvaluatedKey": {"k": {"S": "x"}},
        }  # fmt: skip
        spoil(answer)
        if page.wants_promotion(False):
            page.promote(False)
    assert "Items" not in Page(None, None, {"Count": 3}).read(True)


def test_an_image_weighs_about_what_it_takes() -> None:
    image = Image({f"name{n}": {"S": "x" * 20} for n in range(13)})
    packed = image.weight()
    assert len(image.packed) < packed < 1_500
    image.promote(True)
    image.promote(False)
    assert image.weight() > 4 * packed


@pytest.mark.parametrize(
    "uncertain",
    [
        {"a": {"N": "x"}}, {"a": {"S": 1}}, {"a": {"BOOL": 1}}, {"a": {"B": "text"}}, {"a": 1},
        {"a": {}}, {"a": {"S": "x", "N": "1"}}, {"a": {"L": "x"}}, {"a": {"M": []}}, {1: {"S": ""}},
        {"a": {"NS": ["1", "x"]}}, {"a": {"Q": "x"}}, [],
    ],
)  # fmt: skip
def test_what_will_be_stored_is_uncertain_for_wrong_values(uncertain: Any) -> None:
    with pytest.raises(Uncertain):
        stored(uncertain)


def test_what_will_be_stored_has_its_numbers_in_one_form_at_any_depth() -> None:
    sent = {
        "n": {"N": "1.50"}, "b": {"B": bytearray(b"x")},
        "m": {"M": {"l": {"L": ({"N": "1E+2"}, {"NS": ["1.0", "-0"]})}}},
    }  # fmt: skip
    assert stored(sent) == {
        "n": {"N": "1.5"}, "b": {"B": b"x"},
        "m": {"M": {"l": {"L": [{"N": "100"}, {"NS": ["1", "0"]}]}}},
    }  # fmt: skip


def test_values_that_are_not_plain_are_not_kept() -> None:
    class Text(str):
        pass

    with pytest.raises(ValueError):
        Image({"a": {"S": Text("x")}})
    with pytest.raises(TypeError):
        to_wire({"a": 1.5})


@pytest.mark.parametrize("plain", [True, False])
def test_images_leave_no_garbage_circles(plain: bool) -> None:
    """Only objects that name this item count: threads of other tests leave theirs."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        image = Image({"in this item alone": {"M": {}}})
        image.promote(plain)
        del image
        gc.collect()
        found = [one for one in gc.garbage if isinstance(one, dict) and "in this item alone" in one]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert found == []


# -- projections ---------------------------------------------------------------------------

WHOLE = {
    "a": {"S": "x"}, "b": {"M": {"c": {"N": "1"}, "d": {"M": {"e": {"S": "y"}}}}}, "f": {"L": []},
}  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "names", "part"),
    [
        ("a", {}, {"a": {"S": "x"}}),
        ("a, f", {}, {"a": {"S": "x"}, "f": {"L": []}}),
        ("#n", {"#n": "a"}, {"a": {"S": "x"}}),
        ("b.c", {}, {"b": {"M": {"c": {"N": "1"}}}}),
        ("b.c, b.#d.e", {"#d": "d"}, {"b": WHOLE["b"]}),
        ("b.nothing", {}, {}),
        ("nothing, a.b.c", {}, {}),
        ("b.d.e.x", {}, {}),
    ],
)  # fmt: skip
def test_a_projection_takes_the_paths_of_an_item(expression: str, names: Any, part: Any) -> None:
    params = {"ProjectionExpression": expression}
    if names:
        params["ExpressionAttributeNames"] = names
    paths = projection_of(params)
    assert paths is not None
    assert project(Image(WHOLE).wire(), paths) == part


@pytest.mark.parametrize("expression", ["f[0]", "", "a b", "#x", "a.", "a,,b", 7])
def test_a_projection_that_is_not_a_list_of_paths_is_not_understood(expression: Any) -> None:
    with pytest.raises(NotUnderstood):
        projection_of({"ProjectionExpression": expression})


def test_attributes_to_get_and_names_without_a_use_are_not_understood() -> None:
    assert projection_of({}) is None
    for params in ({"AttributesToGet": ["a"]}, {"ExpressionAttributeNames": {"#a": "a"}}):
        with pytest.raises(NotUnderstood):
            projection_of(params)


def test_serializer_of_boto3_is_what_is_used() -> None:
    assert to_wire({"a": {1, 2}}) == {"a": TypeSerializer().serialize({1, 2})}
