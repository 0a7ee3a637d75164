from __future__ import annotations

import pytest

from interp.lens.lens import Lens
from tests.models import shared


@pytest.fixture
def lens() -> Lens:
    return Lens(shared("llama"))
