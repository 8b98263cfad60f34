"""What every slip of a user's has to give: one clear sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skipway.errors import SkipwayError


def gives_one_sentence(make: Callable[[], Any], said: str) -> None:
    """Whether `make` raises a SkipwayError of one line that holds what is to be `said`, and no error behind it."""
    with pytest.raises(SkipwayError) as caught:
        make()
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
