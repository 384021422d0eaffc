"""Classes of pydantic and attrs, kept by their own state."""

from __future__ import annotations

import dataclasses
import decimal
from typing import Generic, TypeVar

import pytest

from cachekit.codecs import ExactJson, registry_of
from cachekit.errors import CodecError

T = TypeVar("T")


@dataclasses.dataclass
class Line:
    sku: str
    price: decimal.Decimal


def test_pydantic_models_come_back_exactly():
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):
        n: decimal.Decimal

    class Special(Inner):
        more: int = 1

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        _private: tuple = pydantic.PrivateAttr(default=())
        alias: int = pydantic.Field(alias="Alias")
        inner: Inner
        pair: tuple[int, str] = (1, "a")

        @pydantic.field_serializer("alias")
        def as_text(self, value):
            return f"#{value}"

    Model.model_rebuild(_types_namespace={"Inner": Inner})
    assert registry_of(Model) == {Model, Inner}
    codec = ExactJson([Model])
    value = Model(Alias=3, inner=Inner(n=decimal.Decimal("1.10")), other=(1, 2))
    value._private = (1, {2})
    again = codec.decode(codec.encode(value))
    assert again == value
    assert repr(again) == repr(value)
    assert type(again.inner) is Inner
    assert again._private == (1, {2})
    assert again.model_fields_set == value.model_fields_set
    assert again.model_extra == {"other": (1, 2)}
    with pytest.raises(CodecError, match="Special"):
        codec.encode(Model(Alias=3, inner=Special(n=1)))
    special = codec.with_types([Special])
    assert type(special.decode(special.encode(Model(Alias=3, inner=Special(n=1)))).inner) is Special
    for damaged in (b'"other"', b'"pair"'):
        with pytest.raises(CodecError):
            codec.decode(codec.encode(value).replace(damaged, b"0"))
    name = codec.encode(value).split(b'"')[3].decode()
    for state in ("{}", "[]", '["list",{},["list"],null,null]'):
        with pytest.raises(CodecError):
            codec.decode(f'\n["class","{name}",{state}]'.encode())


def test_pydantic_dataclasses_and_generic_models_come_back_exactly():
    pydantic = pytest.importorskip("pydantic")

    @pydantic.dataclasses.dataclass
    class Data:
        a: int
        b: tuple[int, ...] = ()

    class Box(pydantic.BaseModel, Generic[T]):
        item: T

    class Words(pydantic.RootModel[list[str]]):
        pass

    for annotation, value in (
        (Data, Data(1, (2,))),
        (Box[int], Box[int](item=1)),
        (Box[Line], Box[Line](item=Line("a", decimal.Decimal(1)))),
        (Words, Words(["a"])),
    ):
        codec = ExactJson([annotation])
        again = codec.decode(codec.encode(value))
        assert again == value
        assert type(again) is type(value)


def test_attrs_classes_come_back_exactly():
    attrs = pytest.importorskip("attrs")

    @attrs.frozen
    class Item:
        a: int
        _b: tuple = ()

    codec = ExactJson([Item])
    assert codec.decode(codec.encode(Item(1, (2,)))) == Item(1, (2,))
