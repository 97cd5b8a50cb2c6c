"""The import graph of the package, read from its source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mcmeqx"
LAYERS = (
    {"_packages", "_types", "_whole", "_zips"},
    {"_batched", "_sharding", "_structure"},
    {"nets"},
    {"_schedule"},
    {"_denoiser"},
    {"_describe"},
    {"_model_file"},
    {"_distance", "_guidance", "_ode", "_step"},
    {"_checks"},
    {"_sampler"},
    {"_dpm_solver", "_flow"},
    {"_likelihood", "_segment", "_generate", "_teacher", "_export"},
    {"_export_sampler", "_flow_teacher", "_loss"},
    {"_consistency"},
    {"_cluster", "_donating", "_flops", "_signals"},
    {"_train"},
    {"_fit"},
    {"_checkpoint", "_callbacks"},
    {"_embedded", "_load"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
OWN_FOLDER = {"data": LAYERS[0], "metrics": LAYERS[0] | {"_batched", "data"}}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")

modules = pytest.mark.parametrize(
    "path", MODULES, ids=[str(p.relative_to(PACKAGE)) for p in MODULES]
)


def part(path: Path) -> str:
    """The folder of a module in a folder, else the module's own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "mcmeqx":
                found |= {f"mcmeqx.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@modules
def test_imports_never_point_up(path):
    own = part(path)
    targets = {n.split(".")[1] for n in imports(path) if n.startswith("mcmeqx.")}
    if own in OWN_FOLDER:
        assert targets <= {own} | OWN_FOLDER[own]
        return
    assert own in RANK, f"{own} has no layer: add it to LAYERS"
    for target in targets - {own}:
        assert target in RANK, f"{own} imports {target}"
        assert RANK[target] < RANK[own], (
            f"{own} imports {target}, which is not below it"
        )
    assert own == "nets" or own not in targets


@modules
def test_heavy_libraries_stay_where_they_belong(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert "tyro" not in roots
    assert "orbax" not in roots or part(path) == "_checkpoint"
    assert "grain" not in roots or part(path) == "data"
    assert "diffrax" not in roots or part(path) == "_ode"


@modules
def test_nothing_imports_a_recipe(path):
    recipes = {p.stem for p in (ROOT / "recipes").glob("*.py")} | {"recipes"}
    assert not recipes & {name.split(".")[0] for name in imports(path)}


@pytest.mark.slow
def test_importing_leaves_the_devices_to_the_user():
    # Refused once JAX has started its devices, as jax.distributed would be.
    code = (
        "import mcmeqx, jax; jax.config.update('jax_num_cpu_devices', 3); "
        "assert jax.device_count('cpu') == 3"
    )
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
