"""What users find, whose calls nobody checks the types of."""

import subprocess
import sys

SCRIPT = """
import warnings
import jax, mcmeqx as mc, numpy as np, optax

warnings.simplefilter("error", RuntimeWarning)

def refused(call, words):
    try:
        call()
    except (ValueError, TypeError) as error:
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
for few in ([0], (0,)):
    assert np.array_equal(labelled(few), sampled(grid, noise))
refused(lambda: labelled(np.array([0.7])), "whole numbers (n,), got float64 (1,)")
refused(lambda: labelled(np.zeros((1, 1), int)), "(n,), got int64 (1, 1)")
words = "takes a model, of a TrainState its ema, and a sampler, as DDIM(), got "
for wrong in ((0, mc.DDIM()), (model, mc.DDIM)):
    called = lambda: mc.generate(*wrong, grid, noise, None, key=key)
    refused(called, words + type(wrong[0]).__name__)
segments, teacher = mc.Segments(8), mc.DistillationTeacher(model)
for wrong in ((model, segments), (teacher, 8)):
    kinds = f"got a {type(wrong[0]).__name__} and a {type(wrong[1]).__name__}"
    refused(lambda: mc.MultistepConsistencyLoss(*wrong), kinds)
sliced = lambda x, y: mc.metrics.sliced_wasserstein(x, y, key=key)
for shape, other in (((5, 2, 2), (5, 2, 2)), ((5, 2), (1, 2)), ((5, 2), (5, 1))):
    refused(lambda: sliced(np.ones(shape), np.ones(other)), "points of one size")
learner = mc.Learner(mc.DiffusionLoss(), optax.sgd(1e-3))
state = learner.init(model, key=key)
trained = lambda: mc.fit(learner, state, [np.ones((8, 2), np.float32)], steps=1)
refused(trained, "Example(x, label), got ndarray")
drawn = lambda: mc.data.batches(np.zeros((4, 2)), batch_size=2, seed=0)
refused(drawn, "of Images, got ndarray: of a source, save_packed(source, path)")
pixels, labels = np.zeros((7, 2, 2, 3), np.uint8), np.arange(7, dtype=np.int32)
images = mc.data.Images(pixels, labels, tuple("abcdefg"), "seven")
numbers = {"batch_size": 2048, "seed": 3, "start": 2**21, "stop": 2**21 + 1}
(batch,) = mc.data.batches(images, **numbers)
for kind in (np.int32, np.uint32, np.int64):
    same = {name: kind(number) for name, number in numbers.items()}
    (again,) = mc.data.batches(images, **same, process=kind(0), processes=kind(1))
    assert np.array_equal(batch.label, again.label), kind
refused(lambda: mc.load("."), "is no checkpoint")
mc.save_model("a.eqx", model)
assert mc.load("a.eqx").network.config == config
assert mc.load_model("a.eqx", model).network.config == config
"""


def test_what_types_would_tell_is_refused_or_understood(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    assert [path.name for path in tmp_path.iterdir()] == ["a.eqx"]
