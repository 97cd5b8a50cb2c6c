import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    MixtureFlow,
    gaussian_denoiser,
    gaussian_teacher,
    mixture_denoiser,
    scale,
)
from scipy.integrate import solve_ivp

from mcmeqx import (
    Cosine,
    ODETeacher,
    ProbabilityFlow,
    Shifted,
    adaptive_steps,
    fixed_steps,
    generate,
    probability_flow,
    uniform_grid,
)
from mcmeqx._ode import integrate

VAR = np.array([0.01, 0.25, 1.0, 4.0])
MEANS = np.array([[-0.8, 0.1], [0.9, 0.3], [0.2, -0.7]])
SOLVERS = (
    (diffrax.Euler(), 1),
    (diffrax.Heun(), 2),
    (diffrax.Ralston(), 2),
    (diffrax.Midpoint(), 2),
    (diffrax.ReversibleHeun(), 2),
    (diffrax.Bosh3(), 3),
    (diffrax.Dopri5(), 5),
    (diffrax.Tsit5(), 5),
)
TS, SS = np.array([(1.0, 0.0), (0.0, 1.0), (0.7, 0.4), (0.02, 0.98), (1 / 1280, 0.0)]).T

QUICK = (diffrax.Heun, diffrax.Tsit5)
solvers = pytest.mark.parametrize(
    ("solver", "order"),
    [
        pytest.param(*row, marks=[] if type(row[0]) in QUICK else pytest.mark.slow)
        for row in SOLVERS
    ],
    ids=repr,
)


def gaussian_flow(schedule, dtype, controller, t, s):
    denoise = gaussian_denoiser(schedule, jnp.asarray(VAR, dtype))
    z = jnp.ones(4, dtype)
    return probability_flow(denoise, schedule, z, t, s, stepsize_controller=controller)


@pytest.mark.parametrize("schedule", [Cosine(), Shifted(512, 32, 512)], ids=repr)
def test_the_flow_of_gaussians_is_exact_both_ways_and_float32_follows(schedule):
    @jax.jit
    @jax.vmap
    def flows(t, s):
        wide = gaussian_flow(schedule, jnp.float64, adaptive_steps(1e-9), t, s)
        narrow = gaussian_flow(schedule, jnp.float32, adaptive_steps(1e-6), t, s)
        return wide.z, narrow.z

    wide, narrow = flows(TS, SS)
    pairs = zip(TS, SS, strict=True)
    exact = [scale(schedule, VAR, s) / scale(schedule, VAR, t) for t, s in pairs]
    np.testing.assert_allclose(wide, exact, rtol=3e-7)
    assert narrow.dtype == jnp.float32
    assert np.isfinite(narrow).all()
    # Away from the ends the error is that of the tolerance.
    np.testing.assert_allclose(narrow[2:], np.asarray(exact)[2:], atol=1e-5)
    np.testing.assert_allclose(narrow[:2], np.asarray(exact)[:2], rtol=2e-3)


def flow_of_mixture(schedule, means, std, z, t, s):
    """The flow by SciPy, from the score, to twelve digits."""
    flow = MixtureFlow(schedule, means, std)
    return solve_ivp(flow, (t, s), z, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]


@solvers
@pytest.mark.parametrize("var", [np.array([0.25, 2.0]), np.array([0.5, 0.5])], ids=str)
def test_the_error_of_one_step_falls_with_the_order_of_the_solver(solver, order, var):
    schedule, t = Cosine(), 0.7
    z = np.array([0.3, -0.4])
    lengths = np.geomspace(0.12, 0.03, 4)

    @jax.jit
    @jax.vmap
    def step(h):
        def flow(denoise):
            options = {"solver": solver, "stepsize_controller": fixed_steps(1)}
            z0 = jnp.asarray(z)
            return probability_flow(denoise, schedule, z0, t, t - h, **options).z

        exact = gaussian_denoiser(schedule, jnp.asarray(var))
        return flow(exact), flow(mixture_denoiser(schedule, MEANS, 0.5))

    gaussian, mixture = step(lengths)
    ends = t - lengths
    exact = [z * scale(schedule, var, s) / scale(schedule, var, t) for s in ends]
    reference = [flow_of_mixture(schedule, MEANS, 0.5, z, t, s) for s in ends]
    for found, expected in ((gaussian, exact), (mixture, reference)):
        errors = np.abs(np.asarray(found) - expected).max(1)
        slope = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
        assert order + 1 - 0.3 < slope < order + 1 + 0.7
        assert errors[-1] < 0.01


def test_adaptive_steps_keep_to_their_tolerance_on_a_mixture():
    schedule, means = Cosine(), np.array([[-1.0, 0.0], [1.0, 0.5]])
    denoise, z = mixture_denoiser(schedule, means, 0.1), np.array([0.2, -1.1])
    exact = flow_of_mixture(schedule, means, 0.1, z, 1.0, 0.0)

    @jax.jit
    def flow(tolerance):
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        return probability_flow(
            denoise, schedule, jnp.asarray(z), 1.0, 0.0, stepsize_controller=controller
        )

    counts = []
    for tolerance in (1e-4, 1e-7):
        found, evaluations, _ = flow(tolerance)
        assert np.abs(found - exact).max() < 20 * tolerance
        counts.append(int(evaluations))
    assert 20 < counts[0] < counts[1] < 1000


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (diffrax.Euler(), fixed_steps(5)),
        (diffrax.LeapfrogMidpoint(), fixed_steps(5)),
        (diffrax.ReversibleHeun(), fixed_steps(5)),
        (diffrax.Heun(), fixed_steps(5)),
        (diffrax.Tsit5(), fixed_steps(5)),
        (diffrax.Heun(), adaptive_steps(1e-2)),
        (diffrax.Dopri5(), adaptive_steps(1e-3)),
        # Rejects its first steps, which computes no first stage anew.
        (diffrax.Dopri5(), adaptive_steps(1e-13)),
    ],
    ids=repr,
)
def test_evaluations_are_the_calls_of_the_denoiser(solver, steps):
    calls, inner = [], gaussian_denoiser(Cosine(), jnp.asarray(VAR))

    def denoise(z, t):
        jax.debug.callback(lambda t: calls.append(t), t)
        return inner(z, t)

    options = {"solver": solver, "stepsize_controller": steps}
    z = jnp.ones(4)
    found = probability_flow(denoise, Cosine(), z, 1.0, 0.0, **options)
    jax.effects_barrier()
    assert int(found.evaluations) == len(calls) > 0
    exact = scale(Cosine(), VAR, 0.0) / scale(Cosine(), VAR, 1.0)
    assert np.abs(found.z - exact).max() < 0.5


def test_leapfrog_is_of_second_order():
    schedule, s, t = Cosine(), 0.3, 0.7
    exact = scale(schedule, VAR, s) / scale(schedule, VAR, t)

    def error(steps):
        options = {
            "solver": diffrax.LeapfrogMidpoint(),
            "stepsize_controller": fixed_steps(steps),
        }
        denoise = gaussian_denoiser(schedule, jnp.asarray(VAR))
        z = probability_flow(denoise, schedule, jnp.ones(4), t, s, **options).z
        return np.abs(z - exact).max()

    assert np.log2(error(32) / error(128)) == pytest.approx(4, abs=0.5)


def test_float32_follows_the_flow_of_a_mixture():
    schedule, z = Cosine(), np.array([0.3, -0.4])
    exact = flow_of_mixture(schedule, MEANS, 0.5, z, 0.9, 0.1)
    denoise = mixture_denoiser(schedule, MEANS.astype(np.float32), 0.5)
    narrow = probability_flow(
        denoise,
        schedule,
        jnp.asarray(z, jnp.float32),
        0.9,
        0.1,
        stepsize_controller=adaptive_steps(1e-6),
    ).z
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, exact, atol=1e-5)


def test_examples_are_solved_each_by_itself_under_vmap_and_jit():
    schedule = Cosine()
    denoise = mixture_denoiser(schedule, np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.05)
    zs = jnp.asarray([[0.01, 0.3], [2.5, -1.0], [-0.4, 0.2]])

    def flow(z):
        return probability_flow(denoise, schedule, z, 1.0, 0.0)

    together = jax.jit(jax.vmap(flow))(zs)
    single = jax.jit(flow)
    alone = [single(z) for z in zs]
    np.testing.assert_allclose(together.z, [f.z for f in alone], atol=1e-10)
    np.testing.assert_array_equal(together.evaluations, [f.evaluations for f in alone])
    assert len(set(together.evaluations.tolist())) > 1


def test_encoding_and_decoding_undo_each_other():
    schedule = Cosine()
    denoise = mixture_denoiser(schedule, np.array([[-1.0, 0.2], [1.0, 0.0]]), 0.3)
    x = jnp.asarray([[-1.2, 0.1], [0.3, 0.2], [0.9, -0.5]])
    sampler = ProbabilityFlow(stepsize_controller=adaptive_steps(1e-8))

    class Exact(eqx.Module):
        schedule: Cosine = Cosine()

        def __call__(self, z, t, label=None, *, guidance=None, key=None):
            return denoise(z, t)

    key, grid = jax.random.key(0), uniform_grid(1)
    noise = generate(Exact(), sampler, grid[::-1], x, key=key)
    assert np.abs(noise - x).max() > 0.1
    back = generate(Exact(), sampler, grid, noise, key=key)
    np.testing.assert_allclose(back, x, atol=1e-6)


@pytest.mark.slow
def test_a_sampler_of_fixed_steps_cuts_each_step_of_its_grid():
    model, noise = gaussian_teacher(Cosine(), 0.5), np.ones((1, 3))
    key = jax.random.key(0)

    def run(substeps, steps):
        sampler = ProbabilityFlow(diffrax.Heun(), fixed_steps(substeps))
        return generate(model, sampler, uniform_grid(steps), noise, key=key)

    np.testing.assert_allclose(run(4, 2), run(1, 8), atol=1e-9)
    assert np.abs(run(1, 2) - run(4, 2)).max() > 1e-4


def test_a_solve_that_takes_too_many_steps_says_where():
    inner = gaussian_denoiser(Cosine(), 0.5)

    def rough(z, t):
        return inner(z, t) + jnp.where(t < 0.37, jnp.nan, 0.0)

    @eqx.filter_jit
    def flow(zs):
        return jax.vmap(lambda z: probability_flow(rough, Cosine(), z, 1.0, 0.0))(zs)

    with pytest.raises(RuntimeError, match=r"stopped at t = 0\.3[78]: 4096 steps"):
        jax.block_until_ready(flow(jnp.ones((3, 2))))


def test_a_solve_that_gets_stuck_is_nan_where_no_error_may_end_a_run():
    def rough(t, y):
        return jnp.where(t < 0.37, jnp.nan, -y)

    def end(s):
        return integrate(
            rough,
            Cosine(),
            jnp.ones(2),
            1.0,
            s,
            solver=diffrax.Heun(),
            stepsize_controller=adaptive_steps(1e-3),
            throw=False,
        )[0]

    assert jnp.isfinite(end(0.5)).all()
    # Of where it got stuck, at which no step is short enough, all numbers are finite.
    assert jnp.isnan(end(0.0)).all()
    found = probability_flow(rough, Cosine(), jnp.ones(2), 1.0, 0.0, throw=False)
    # It gives up at steps of a millionth of the way, not after the 4096 that it may.
    assert int(found.evaluations) < 1000


def test_a_solve_that_meets_a_number_that_is_not_finite_is_an_error():
    inner = gaussian_denoiser(Cosine(), 0.5)

    @eqx.filter_jit
    def flow(z):
        return probability_flow(
            lambda z, t: inner(z, t) / jnp.where(t < 0.5, 0.0, 1.0),
            Cosine(),
            z,
            1.0,
            0.0,
            stepsize_controller=fixed_steps(4),
        )

    with pytest.raises(RuntimeError, match="not finite"):
        jax.block_until_ready(flow(jnp.ones(2)))


def test_options_that_cannot_work_are_named():
    with pytest.raises(ValueError, match="1 or more, got 0"):
        fixed_steps(0)
    with pytest.raises(ValueError, match=r"positive, got -0\.1"):
        adaptive_steps(-0.1)
    with pytest.raises(ValueError, match="positive, got 0"):
        adaptive_steps(0.0)
    with pytest.raises(ValueError, match="Kvaerno5 is not an explicit"):
        probability_flow(
            lambda z, t: z, Cosine(), jnp.ones(2), 1.0, 0.0, solver=diffrax.Kvaerno5()
        )
    model = gaussian_teacher(Cosine(), 0.5)
    for build in (ProbabilityFlow, lambda *a: ODETeacher(model, *a)):
        with pytest.raises(ValueError, match="Kvaerno5 is not an explicit"):
            build(diffrax.Kvaerno5(), adaptive_steps(1e-3))
        with pytest.raises(ValueError, match="Euler does not estimate its error"):
            build(diffrax.Euler(), adaptive_steps(1e-3))


def test_fixed_steps_may_be_more_than_an_adaptive_solve_may_take():
    denoise = gaussian_denoiser(Cosine(), jnp.asarray([0.25, 4.0]))
    found = probability_flow(
        denoise,
        Cosine(),
        jnp.ones(2),
        0.7,
        0.4,
        solver=diffrax.Euler(),
        stepsize_controller=fixed_steps(4200),
    )
    assert int(found.evaluations) == 4200
    var = np.array([0.25, 4.0])
    exact = scale(Cosine(), var, 0.4) / scale(Cosine(), var, 0.7)
    np.testing.assert_allclose(found.z, exact, atol=1e-3)


def test_the_default_tolerance_is_kept_to_on_a_mixture():
    schedule, z = Cosine(), np.array([0.2, -1.1])
    exact = flow_of_mixture(schedule, MEANS, 0.1, z, 1.0, 0.0)
    denoise = mixture_denoiser(schedule, MEANS, 0.1)
    found = probability_flow(denoise, schedule, jnp.asarray(z), 1.0, 0.0)
    assert np.abs(found.z - exact).max() < 20 * 1e-5
