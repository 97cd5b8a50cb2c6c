"""The README's snippets run as they stand, but for their number of training steps."""

import re
from pathlib import Path

import numpy as np
import pytest

import mcmeqx as mc

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.slow
def test_the_snippets_in_python_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *more = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "steps=100" in first
    assert len(more) == 6
    assert "steps=200, save=" in more[0]
    more[0] = more[0].replace("steps=200", "steps=2, save_every=2")
    names: dict = {}
    for snippet in (first.replace("steps=100", "steps=1"), *more):
        exec(snippet, names)
        assert names["images"].shape == (9, 3, 64, 64)
        assert np.isfinite(names["images"]).all()
    assert int(names["state"].step) == 2
    assert mc.load("run").network.config == names["state"].model.network.config
    error = names["again"] - names["two"].x
    assert np.sqrt(np.mean(error**2)) < 0.02
    assert 0.0 < float(names["bits"]) < 8.0
    assert isinstance(names["guided"], mc.Guided)
