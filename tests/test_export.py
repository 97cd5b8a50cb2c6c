import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import shutil
import sys
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from mcmeqx import (
    DDIM,
    DDPM,
    Cosine,
    Denoiser,
    Guidance,
    Guided,
    ProbabilityFlow,
    Shifted,
    _export_sampler,
    eps_prediction,
    export_sampler,
    export_weights,
    generate,
    load,
    load_model,
    load_sampler,
    save_model,
    uniform_grid,
    with_guidance_input,
    x_prediction,
)
from mcmeqx._describe import describe, rebuild
from mcmeqx.nets import AbstractNetwork, MLPConfig, Stage, UNetConfig, UViTConfig

pytestmark = pytest.mark.usefixtures("as_users_run")
KEY = jax.random.key(0)
MLP = MLPConfig(2, 8, 1, classes=3, null_class=True, embedding=8)
UVIT = UViTConfig(
    8,
    (Stage("resnet", 8, 1, 0.3), Stage("transformer", 16, 1)),
    classes=3,
    null_class=True,
    embedding=8,
    head_width=8,
)
UNET = UNetConfig(
    8, 8, (1, 2), attention=(4,), classes=3, null_class=True, embedding=8, head_width=8
)


def moved(config):
    """A network off its start, where its output is zero."""
    network = eqx.filter_jit(lambda key: config.build(key=key))(KEY)
    rng = np.random.default_rng(0)
    arrays, static = eqx.partition(network, eqx.is_array)
    arrays = jax.tree.map(
        lambda a: a + 0.1 * rng.normal(size=a.shape).astype("f4"), arrays
    )
    return eqx.combine(arrays, static)


SLOWER = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("guided", "stochastic", "uvit")
]


HALF = Cosine(-10.0, 10.0)
MODELS = {
    "mlp": lambda: Denoiser(moved(MLP), Cosine()),
    "taking a scale": lambda: with_guidance_input(
        Denoiser(moved(MLP), Shifted(64, 32, 64, HALF), x_prediction)
    ),
    "uvit": lambda: Denoiser(moved(UVIT), HALF, eps_prediction, jnp.dtype("bfloat16")),
    "unet": lambda: Denoiser(moved(UNET), HALF),
}


@functools.cache
def model_of(name):
    """Made when first asked for: most tests need but one."""
    return MODELS[name]()


def save_step(folder, model, step):
    """A checkpoint as a run writes it."""
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        arrays = eqx.filter(model, eqx.is_array)
        about = {"model": describe(model), "step": step}
        items = ocp.args.Composite(
            ema=ocp.args.StandardSave(arrays),
            training=ocp.args.StandardSave({"count": jnp.ones(3)}),
            about=ocp.args.JsonSave(about),
        )
        manager.save(step, args=items)


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("uvit", "taking a scale", "unet")
        ),
    ],
)
def test_a_model_comes_back_from_each_kind_of_file(tmp_path, name):
    model = model_of(name)
    assert jax.tree.structure(rebuild(describe(model))) == jax.tree.structure(model)
    save_model(tmp_path / "a.eqx", model)
    export_weights(tmp_path / "a.safetensors", model)
    save_step(tmp_path / "run", jax.tree.map(lambda a: 0 * a, model), 3)
    save_step(tmp_path / "run", model, 12)
    for found in ("a.eqx", "a.safetensors", "run", "run/12"):
        assert eqx.tree_equal(load(tmp_path / found), model), found
    assert not eqx.tree_equal(load(tmp_path / "run" / "3"), model)
    # Other libraries find the arrays under their paths.
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(
        tensors["network.embed.classes"], model.network.embed.classes
    )


def test_what_no_file_could_give_back_is_not_written(tmp_path):
    model = model_of("mlp")
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)
    with pytest.raises(ValueError, match=r"is bfloat16\[.*\], not float32"):
        export_weights(tmp_path / "a.safetensors", half)
    with pytest.raises(
        ValueError, match=r"arrays of bfloat16 are not kept: .* float32"
    ):
        export_sampler(tmp_path / "a", half, DDIM(), uniform_grid(1), (2,))
    for shape in ((3,), (3, 8, 8)):
        with pytest.raises(ValueError, match="does not take a sample of shape"):
            export_sampler(
                tmp_path / "a", model, DDIM(), uniform_grid(1), shape, labelled=True
            )
    assert not list(tmp_path.iterdir())
    save_model(tmp_path / "a", half)
    with pytest.raises(ValueError, match="bfloat16"):
        load(tmp_path / "a")
    assert eqx.tree_equal(load_model(tmp_path / "a", half), half)


def test_a_model_of_shapes_takes_no_files_place(tmp_path):
    path, model = tmp_path / "a.eqx", model_of("mlp")
    save_model(path, model)
    before = path.read_bytes()
    shapes = eqx.filter_eval_shape(lambda: model)
    for stored in (None, "float16"):
        with pytest.raises(ValueError, match=r"network\.\S+ is the shape .* alone"):
            save_model(path, shapes, stored=stored)
    sampler = (shapes, DDIM(), uniform_grid(1), (2,))
    with pytest.raises(ValueError, match="no weights to write"):
        export_sampler(tmp_path / "b", *sampler, labelled=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.eqx"]


@pytest.mark.filterwarnings("error")
def test_numpys_float64_comes_back_in_the_precision_of_jax(tmp_path):
    model = Denoiser(Gain(np.linspace(0.0, 1.0, 3)), Cosine())  # type: ignore[arg-type]
    save_model(tmp_path / "a.eqx", model)
    found = load_model(tmp_path / "a.eqx", model).network.a  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found, np.float32([0.0, 0.5, 1.0]))


def test_what_is_no_model_file_says_why(tmp_path):
    path, model = tmp_path / "a.eqx", model_of("mlp")
    save_model(path, model)
    content = path.read_bytes()
    for damaged, words in (
        (content[:-9], "its arrays are cut off or others"),
        (b"", "does not begin as files of save_model do"),
        (b"PK\x03\x04\xff\n", r"load_sampler reads samplers"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"a\.eqx does not hold .*{words}"):
            load(path)


def test_a_header_of_other_kinds_of_values_is_damage(tmp_path):
    path, model = tmp_path / "a.eqx", model_of("mlp")
    save_model(path, model)
    head, _, rest = path.read_bytes().partition(b"\n")
    damaged = (
        {"network": {"UViTConfig": {"image_size": 8, "stages": [5]}}},
        {"schedule": {"Shifted": {"image_resolution": 8, "base": 3}}},
    )
    for change in damaged:
        about = json.dumps(json.loads(head) | change).encode()
        path.write_bytes(about + b"\n" + rest)
        with pytest.raises(ValueError, match="does not hold a model"):
            load(path)


class Gain(AbstractNetwork):
    a: jax.Array

    def __call__(self, z, logsnr, label=None, *, guidance=None, key=None):
        return self.a * z


def test_a_part_that_is_not_the_librarys_is_named(tmp_path):
    foreign = Denoiser(Gain(jnp.float32(0.5)), Cosine())
    save_model(tmp_path / "gain.eqx", foreign)
    known = r"network is Gain, .* MLPConfig, UNetConfig, UViTConfig"
    with pytest.raises(ValueError, match=rf"{known}: .*load_model\(path, like\)"):
        load(tmp_path / "gain.eqx")
    again = load_model(tmp_path / "gain.eqx", foreign)
    assert eqx.tree_equal(again, foreign)
    with pytest.raises(ValueError, match="network is Gain"):
        export_weights(tmp_path / "gain.safetensors", foreign)

    def eps_prediction(schedule, z, out, t):
        return out

    own = Denoiser(moved(MLP), Cosine(), eps_prediction)
    save_model(tmp_path / "gain.eqx", own)
    with pytest.raises(ValueError, match="prediction is your own eps_prediction"):
        load(tmp_path / "gain.eqx")
    assert eqx.tree_equal(load_model(tmp_path / "gain.eqx", own), own)
    own = Denoiser(moved(MLP), Cosine(), lambda schedule, z, out, t: out)
    with pytest.raises(ValueError, match=r"prediction is <lambda>, .* v_prediction"):
        export_weights(tmp_path / "gain.safetensors", own)
    assert [p.name for p in tmp_path.iterdir()] == ["gain.eqx"]


@pytest.mark.slow
def test_the_field_that_differs_is_named_and_dropout_may(tmp_path):
    path, model = tmp_path / "a.eqx", model_of("uvit")
    save_model(path, model)

    def like(**changes):
        config = dataclasses.replace(UVIT, **changes)
        return eqx.filter_eval_shape(
            lambda: dataclasses.replace(model, network=config.build(key=KEY))
        )

    wider = (UVIT.stages[0], Stage("transformer", 32, 1))
    with pytest.raises(ValueError, match=r"with stages\.1\.width 16, not 32; .*array"):
        load_model(path, like(stages=wider))
    with pytest.raises(ValueError, match="with null_class True, not False"):
        load_model(path, like(classes=4, null_class=False))
    still = load_model(path, like(stages=(Stage("resnet", 8, 1), UVIT.stages[1])))
    assert still.network.down[0].blocks[0].dropout == 0.0
    with pytest.raises(ValueError, match=r"logsnr_min -10\.0, not -15\.0"):
        load_model(path, dataclasses.replace(model, schedule=Cosine()))


@pytest.mark.slow
def test_a_file_of_before_a_field_existed_has_its_default(tmp_path):
    path, model = tmp_path / "a.eqx", model_of("uvit")
    save_model(path, model)
    head, _, rest = path.read_bytes().partition(b"\n")
    about = json.loads(head)
    assert about["network"]["UViTConfig"].pop("patch") == 1
    path.write_bytes(json.dumps(about).encode() + b"\n" + rest)
    assert eqx.tree_equal(load(path), model)
    assert eqx.tree_equal(load_model(path, model), model)
    about["network"]["UViTConfig"]["folds"] = 1
    path.write_bytes(json.dumps(about).encode() + b"\n" + rest)
    with pytest.raises(ValueError, match=r"network is no UViTConfig: .*folds"):
        load(path)


def test_a_file_that_comes_while_an_export_is_written_is_kept(tmp_path, monkeypatch):
    path, model, real = tmp_path / "a.safetensors", model_of("mlp"), os.fsync

    def meanwhile(descriptor):
        path.write_text("another's")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    for export in (
        lambda: export_weights(path, model),
        lambda: export_sampler(path, model, DDIM(), uniform_grid(1), (2,)),
    ):
        path.unlink(missing_ok=True)
        with pytest.raises(FileExistsError, match="exists: delete it"):
            export()
        assert path.read_text() == "another's"
        assert len(list(tmp_path.iterdir())) == 1


def test_damaged_weights_are_refused_and_a_file_is_never_replaced(tmp_path):
    path, model = tmp_path / "a.safetensors", model_of("mlp")
    export_weights(path, model)
    with pytest.raises(FileExistsError, match=r"a\.safetensors exists: delete it"):
        export_weights(path, model)
    with pytest.raises(ValueError, match=r"end in \.safetensors, got .*b\.eqx"):
        export_weights(tmp_path / "b.eqx", model)
    content = path.read_bytes()
    for damaged in (content[:-9], content[:5], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="does not hold exported weights"):
            load(path)
    path.write_bytes(content)
    tensors, metadata = load_file(path), {"mcmeqx": json.dumps(describe(model))}
    save_file(tensors, path)
    with pytest.raises(ValueError, match="no description"):
        load(path)
    save_file(tensors, path, {"mcmeqx": "[" * 100_000})
    with pytest.raises(ValueError, match="does not hold exported weights"):
        load(path)
    save_file(tensors | {"network.last.bias": np.zeros(3, "f4")}, path, metadata)
    with pytest.raises(ValueError, match=r"last\.bias is float32\[3\], not"):
        load(path)
    save_file({k: v for k, v in tensors.items() if "last" not in k}, path, metadata)
    with pytest.raises(ValueError, match="is absent, not float32"):
        load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_command_that_installs_what_is_missing_is_named(tmp_path, monkeypatch):
    for name in ("safetensors", "safetensors.numpy", "flatbuffers"):
        monkeypatch.setitem(sys.modules, name, None)
    model, path = model_of("mlp"), tmp_path / "a.safetensors"
    path.touch()
    for use in (
        lambda: load(path),
        lambda: export_weights(tmp_path / "b.safetensors", model),
        lambda: export_sampler(tmp_path / "c", model, DDIM(), uniform_grid(1), (2,)),
        lambda: load_sampler(path),
    ):
        with pytest.raises(ImportError, match=r'pip install "mcmeqx\[export\]"'):
            use()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    run = tmp_path / "run"
    save_step(run, model_of("mlp"), 4)
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent")
    (tmp_path / "evaluation_seed_0").mkdir()
    with pytest.raises(ValueError, match="neither a finished step nor an item ema"):
        load(tmp_path)
    about = run / "4" / "about" / "metadata"
    content = about.read_text()
    stages = '"network": {"UViTConfig": {"image_size": 8, "stages": [5]}}'
    uvit = re.sub(r'"network": \{.*?\}\}', stages, content)
    assert uvit != content
    renamed = content.replace("MLPConfig", "Transformer")
    for damaged in ("{", "[]", "{}", "[" * 100_000, uvit, renamed):
        about.write_text(damaged)
        with pytest.raises(ValueError, match="4 does not hold a model"):
            load(run)
    about.write_text(content.replace('"width": 8', '"width": 16'))
    with pytest.raises(ValueError, match=r"is \(.*8.*\) there, not \(.*16.*\)"):
        load(run)
    about.write_text(content)
    for item in ("ema", "about"):
        shutil.rmtree(run / "4" / item)
        with pytest.raises(ValueError, match=f"it has no item {item}"):
            load(run)


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("name", ["mlp", *SLOWER])
def test_an_exported_sampler_samples_as_generate_does(tmp_path, name, batch_size):
    config = UVIT if name == "uvit" else MLP
    model = Denoiser(moved(config), Cosine())
    model = Guided(model, Guidance(0.5)) if name == "guided" else model
    sampler = DDPM() if name == "stochastic" else DDIM()
    shape = (3, 8, 8) if name == "uvit" else (2,)
    ts, path = uniform_grid(3), tmp_path / "sampler"
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, *shape)).astype("f4")
    labels = np.array([0, 1, 2, -1, 1], np.int32)
    wanted = generate(model, sampler, ts, noise, labels, key=jax.random.key(7))
    export_sampler(
        path, model, sampler, ts, shape, labelled=True, batch_size=batch_size
    )
    found = load_sampler(path)(noise, labels, seed=7)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert [p.name for p in tmp_path.iterdir()] == ["sampler"]
    if name == "stochastic":
        assert np.abs(load_sampler(path)(noise, labels) - wanted).max() > 0.1
    with pytest.raises(ValueError, match="labels go from 3 to 3, the model's classes"):
        load_sampler(path)(noise, np.full(5, 3))
    if batch_size is None and name == "mlp":
        some = load_sampler(path)(noise[:2], labels[:2])
        np.testing.assert_allclose(some, wanted[:2], atol=1e-5 * np.abs(wanted).max())


def test_an_exported_sampler_has_the_scale_it_was_exported_with(tmp_path):
    config = dataclasses.replace(MLP, classes=None, null_class=False)
    config = dataclasses.replace(config, guidance_input=True)
    model, grid = Denoiser(moved(config), Cosine()), uniform_grid(2)
    noise = np.random.default_rng(0).normal(size=(3, 2)).astype("f4")
    at = {
        g: generate(model, DDIM(), grid, noise, None, guidance=g, key=KEY)
        for g in (1.0, 2.5)
    }
    assert np.abs(at[1.0] - at[2.5]).max() > 1e-3
    export_sampler(tmp_path / "a", model, DDIM(), grid, (2,), guidance=2.5)
    found = load_sampler(tmp_path / "a")(noise.tolist())
    np.testing.assert_allclose(found, at[2.5], atol=1e-5)


def test_an_exported_program_has_no_kernel_of_one_device(tmp_path, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def noted():
        entered.append(True)
        yield

    monkeypatch.setattr(_export_sampler, "formula_alone", noted)
    model = Denoiser(moved(MLP), Cosine())
    export_sampler(tmp_path / "a", model, DDIM(), uniform_grid(1), (2,), labelled=True)
    assert entered


def test_a_program_is_for_the_platform_that_exporting_names(tmp_path, monkeypatch):
    # With a GPU `default_backend` is "gpu", which no call of a program ever is.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.export, "default_export_platform", lambda: "cuda")
    network = MLPConfig(2, 8, 1, embedding=8).build(key=jax.random.key(0))
    model = Denoiser(network, Cosine())
    path = tmp_path / "sampler.zip"
    export_sampler(path, model, DDIM(), uniform_grid(1), (2,))
    with zipfile.ZipFile(path) as file:
        program = jax.export.deserialize(bytearray(file.read("program")))
    assert program.platforms == ("cuda", "cpu")


def test_an_exported_sampler_refuses_what_it_cannot_take(tmp_path):
    path = tmp_path / "sampler"
    model = Denoiser(MLPConfig(2, 8, 1, embedding=8).build(key=KEY), Cosine())
    arguments = (model, DDIM(), uniform_grid(2), (2,))
    for ts in (np.array([1.0]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="two times or more, as uniform_grid"):
            export_sampler(path, model, DDIM(), ts, (2,))
    with pytest.raises(ValueError, match="times fall from each to the next"):
        export_sampler(path, model, DDIM(), uniform_grid(2)[::-1], (2,))
    with pytest.raises(ValueError, match="ProbabilityFlow asks the host"):
        export_sampler(path, model, ProbabilityFlow(), uniform_grid(1), (2,))
    with pytest.raises(ValueError, match="label"):
        export_sampler(path, *arguments, labelled=True)
    with pytest.raises(ValueError, match="batch_size is None or 1 or more, got 0"):
        export_sampler(path, *arguments, batch_size=0)
    for scale in (-1.0, np.nan):
        with pytest.raises(ValueError, match=f"0 or more, got {scale}"):
            export_sampler(path, *arguments, guidance=scale)
    for wrong in ("cpu", ("cuda", "gpu")):
        with pytest.raises(ValueError, match="are some of cpu, cuda, rocm, tpu, in a"):
            export_sampler(path, *arguments, platforms=wrong)
    assert not list(tmp_path.iterdir())
    export_sampler(path, *arguments, batch_size=4)
    with pytest.raises(FileExistsError, match="exists: delete it"):
        export_sampler(path, *arguments)
    run = load_sampler(path)
    assert run(np.ones((4, 2), "f4")).shape == (4, 2)
    for noise in (np.ones((3, 2), "f4"), np.ones((4, 3), "f4")):
        with pytest.raises(ValueError, match=r"noise of shape \(4, 2\), got"):
            run(noise)
    with pytest.raises(ValueError, match="takes no labels"):
        run(np.ones((4, 2), "f4"), np.zeros(4, int))
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"from 0 to 2\*\*32 - 1, got {seed}"):
            run(np.ones((4, 2), "f4"), seed=seed)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (content[:-9], content[:5], b"", flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="does not hold a sampler"):
            load_sampler(path)
    for name, junk in (
        ("about.json", "[]"),
        ("about.json", '{"weights": 4, "shape": [2], "labelled": false}'),
        ("about.json", "[" * 100_000),
        ("program", ""),
        ("program", "junk"),
    ):
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            kept = {n: old.read(n) for n in old.namelist()} | {name: junk.encode()}
        with zipfile.ZipFile(path, "w") as file:
            for each, data in kept.items():
                file.writestr(each, data)
        with pytest.raises(ValueError, match="does not hold a sampler"):
            load_sampler(path)
    # What the directory at the end says of how and where files lie.
    last, end = content.rindex(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    for at, value in ((last + 10, 8), (last + 10, 12), (last + 10, 14), (end + 18, 7)):
        path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
        with pytest.raises(ValueError, match="does not hold a sampler"):
            load_sampler(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_sampler(tmp_path / "absent")


def test_labels_are_whole_numbers_one_a_row(tmp_path):
    model, noise = model_of("mlp"), np.ones((2, 2), "f4")
    export_sampler(tmp_path / "a", model, DDIM(), uniform_grid(1), (2,), labelled=True)
    run = load_sampler(tmp_path / "a")
    with pytest.raises(ValueError, match="needs labels, got None"):
        run(noise)
    np.testing.assert_array_equal(run(noise, [0, 2]), run(noise, np.array([0, 2])))
    for wrong in ([0.7, 1.2], np.zeros((2, 1), int), np.int32(1)):
        with pytest.raises(ValueError, match=r"whole numbers \(n,\), got .*\)"):
            run(noise, wrong)
