"""Adapters that are made when they are first used."""

from __future__ import annotations

import pytest

from signoff.infra.adapter_registry import AdapterRegistry


def test_an_adapter_is_made_once_at_its_first_use() -> None:
    created = list[str]()

    def make(name: str) -> object:
        created.append(name)
        return object()

    registry = AdapterRegistry(("http", "echo"), make)
    assert [*registry] == ["http", "echo"]
    assert len(registry) == 2
    assert "http" in registry
    assert created == []
    assert registry["http"] is registry.get("http")
    assert created == ["http"]


def test_a_registry_makes_no_adapter_of_another_name() -> None:
    registry = AdapterRegistry(("echo",), str)
    assert "http" not in registry
    assert registry.get("http") is None
    with pytest.raises(KeyError):
        registry["http"]


def test_the_error_of_an_adapter_that_cannot_be_made_is_not_a_missing_name() -> None:
    def fail(name: str) -> object:
        raise ImportError(name)

    with pytest.raises(ImportError):
        AdapterRegistry(("echo",), fail).get("echo")
