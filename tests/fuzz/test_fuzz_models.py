"""Models in every dialect and in our own records, changed by strangers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hostile import CHANGES, COMMANDS, DAMAGE, STRUCTURES, check_model
from support.small_models import KINDS, model_of

EVERY = pytest.mark.parametrize("kind", KINDS)


def one(kind: str, data: st.DataObject) -> None:
    """A valid model, up to three changes, perhaps damage to its bytes, and one command."""
    model = model_of(kind)
    commands = (*COMMANDS, *STRUCTURES) if kind in ("llama", "pack-quantized") else COMMANDS
    changes = data.draw(st.lists(CHANGES, min_size=1, max_size=3))
    damage, texts = data.draw(DAMAGE), data.draw(DAMAGE)
    check_model(model, changes, damage, data.draw(st.sampled_from(commands)), texts=texts)


@EVERY
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_valid_model_is_taken(kind: str, command: tuple[str, ...]) -> None:
    from support.hostile import Damage

    assert check_model(model_of(kind), (), Damage(None), command) == 0


@EVERY
@settings(max_examples=20)
@given(st.data())
def test_changed_models(kind: str, data: st.DataObject) -> None:
    one(kind, data)


@pytest.mark.faults
@EVERY
@settings(max_examples=2000)
@given(st.data())
def test_many_changed_models(kind: str, data: st.DataObject) -> None:
    one(kind, data)
