"""Four CPU devices, float64, strict promotion, and types checked at every call."""

import os
import signal

# Tests compile for longer than they compute: so with few of LLVM's optimisations, but
# with its fused multiply-adds, which float32's small differences need.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
install_import_hook("mcmeqx", "beartype.beartype")

import pytest  # noqa: E402


@pytest.fixture
def as_users_run():
    """Float32 and standard promotion, as outside the tests: for optax and recipes."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def taken(monkeypatch):
    """How many images each draw from an `Images` takes, as it goes on."""
    from mcmeqx.data import Images

    counts, real = [], Images.take

    def take(self, indices):
        counts.append(len(indices))
        return real(self, indices)

    monkeypatch.setattr(Images, "take", take)
    return counts


@pytest.fixture
def hears_ctrl_c():
    """As a program in a shell's foreground, where the tests may not run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
