"""What users find, whose calls nobody checks the types of."""

import subprocess
import sys

SCRIPT = """
import jax, mcmeqx as mc, numpy as np

def refused(call, words):
    try:
        call()
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

refused(lambda: mc.Segments(2.5), "1 or more, got 2.5")
refused(lambda: mc.uniform_grid(2.5), "1 or more, got 2.5")
key = jax.random.key(0)
config = mc.nets.MLPConfig(2, 8, 1, classes=np.arange(3).max() + 1, embedding=8)
model = mc.Denoiser(config.build(key=key), mc.Cosine())
half = lambda: mc.save_model("half.eqx", model, stored="bfloat16")
refused(half, "stored as bfloat16 are not known")
noise, grid = np.ones((1, 2), np.float32), mc.uniform_grid(1)
sampled = lambda ts, x: mc.generate(model, mc.DDIM(), ts, x, np.zeros(1, int), key=key)
refused(lambda: sampled(8, noise), "two times or more, as uniform_grid(8), got 8")
refused(lambda: sampled(grid, noise.astype(int)), "float32 or float64, got int64")
labelled = lambda c: mc.generate(model, mc.DDIM(), grid, noise, c, key=key)
assert np.array_equal(labelled([0]), sampled(grid, noise))
refused(lambda: labelled(np.array([0.7])), "whole numbers (n,), got float64 (1,)")
refused(lambda: labelled(np.zeros((1, 1), int)), "(n,), got int64 (1, 1)")
sliced = lambda x: mc.metrics.sliced_wasserstein(x, x, key=key)
refused(lambda: sliced(np.ones((5, 2, 2))), "points of one size")
mc.save_model("a.eqx", model)
assert mc.load("a.eqx").network.config == config
assert mc.load_model("a.eqx", model).network.config == config
"""


def test_what_types_would_tell_is_refused_or_understood(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    assert [path.name for path in tmp_path.iterdir()] == ["a.eqx"]
