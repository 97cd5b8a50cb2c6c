"""The README's snippet runs as it stands, but for its number of training steps."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.slow
def test_the_snippet_in_python_runs():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "steps=100" in snippet
    names: dict = {}
    exec(snippet.replace("steps=100", "steps=1"), names)
    images = names["images"]
    assert images.shape == (9, 3, 64, 64)
    assert np.isfinite(images).all()
    assert int(names["state"].step) == 1
