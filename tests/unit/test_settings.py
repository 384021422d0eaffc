"""Settings: every option validated at birth, nothing secret in a message."""

from __future__ import annotations

import math
from typing import Any

import pytest

import cachekit
from cachekit.backends.memory import MemoryBackend
from cachekit.errors import ConfigurationError
from cachekit.settings import DEFAULT_BOUND, Settings, safe_url


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"url": "redis://h", "backend": object()}, "a url or a backend"),
        ({"url": 5}, "url must be a str"),
        ({"namespace": b"x"}, "namespace must be a str"),
        ({"invalidation": "hope"}, "invalidation='hope': use one of 'raise', 'replay'"),
        ({"clock": "sundial"}, "clock='sundial'"),
        ({"stats": "some"}, "stats='some'"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_entries": 1.5}, "max_entries must be an int"),
        ({"max_entries": "10"}, "max_entries must be an int"),
        ({"max_entries": True}, "max_entries must be an int"),
        ({"breaker_failures": 0}, "breaker_failures"),
        ({"max_value": 0}, "max_value"),
        ({"max_weight": 5}, "belong together"),
        ({"weigh": len}, "belong together"),
        ({"max_weight": 0, "weigh": len}, "max_weight must be more than 0"),
        ({"max_weight": math.nan, "weigh": len}, "max_weight must be more than 0"),
        ({"max_weight": 5, "weigh": len, "near": {}}, "near= decides"),
    ],
)
def test_what_can_not_be_meant_is_refused_by_name(options: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Settings(**options)


@pytest.mark.parametrize("name", ["timeout", "breaker_reset", "coherence"])
def test_a_time_that_is_none_is_refused_by_name(name: str) -> None:
    for bad in (-1, math.nan, "soon", "10"):
        with pytest.raises(ValueError, match=name):
            Settings(**{name: bad})
    with pytest.raises(TypeError, match=name):
        Settings(**{name: []})


def test_a_time_may_be_text_and_is_seconds_from_then_on() -> None:
    settings = Settings(timeout="250ms", breaker_reset="2s", coherence="500ms")
    assert (settings.timeout, settings.breaker_reset, settings.bound()) == (0.25, 2.0, 0.5)
    cache = cachekit.Cache(backend=MemoryBackend(), timeout="250ms", breaker_reset="1s")
    cache.set("k", 1)
    assert cache.get("k") == 1
    assert cache.stats().entries == 1


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown option 'max_size'; known: url,.*near"):
        cachekit.Cache(max_size=5)


def test_how_long_a_near_copy_is_trusted() -> None:
    assert Settings().bound() == DEFAULT_BOUND
    assert Settings(coherence="strict").bound() == 0.0
    assert Settings(coherence=5).bound() == 5.0


def test_the_environment_gives_settings_of_the_right_types() -> None:
    env = {
        "CACHEKIT_URL": "redis://u:secret@h/0",
        "CACHEKIT_NAMESPACE": "app",
        "CACHEKIT_MAX_ENTRIES": "50",
        "CACHEKIT_TTL": "10m",
        "CACHEKIT_TIMEOUT": "0.5",
        "CACHEKIT_STRICT": "yes",
        "CACHEKIT_COHERENCE": "2s",
        "CACHEKIT_CLOCK": "",
        "OTHER_URL": "memory://",
    }
    settings = Settings.from_env(env=env)
    assert settings.url == "redis://u:secret@h/0"
    assert (settings.namespace, settings.max_entries, settings.ttl) == ("app", 50, "10m")
    assert (settings.timeout, settings.strict, settings.bound()) == (0.5, True, 2.0)
    assert settings.clock == "precise"
    assert Settings.from_env("OTHER_", env).url == "memory://"
    assert Settings.from_env(env={}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("STRICT", "maybe"), ("MAX_ENTRIES", "many"), ("TIMEOUT", "soon"), ("COHERENCE", "-1")],
)
def test_a_bad_variable_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"CACHEKIT_{name}"):
        Settings.from_env(env={f"CACHEKIT_{name}": value})


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://user:p@ss@host:6379/0?password=x", "redis://host:6379/0"),
        ("rediss://:secret@host", "rediss://host"),
        ("memcached://a:1,b:2", "memcached://a:1,b:2"),
        ("sqlite:///var/app.db?key=x", "sqlite:///var/app.db"),
    ],
)
def test_no_secret_of_a_url_is_ever_shown(url: str, safe: str) -> None:
    assert safe_url(url) == safe
    shown = repr(Settings(url=url))
    assert "secret" not in shown
    assert "p@ss" not in shown
    assert "x" not in shown.partition("?")[2]


def test_a_settings_object_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().timeout = 5  # type: ignore[misc]  # what the test is about
