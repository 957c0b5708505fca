"""The house rules that a reader relies on: who may import whom, no cycles, and what stays unloaded."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from flows.dag import stages

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "tasks", "pipeline", "model", "storage")
TORCH_FREE = {
    "model.rewards",
    "model.specs",
    "model.tokens",
    "model.network.hf_config",
    "model.generation.judge",
    "model.running.how",
    "model.running.devices",
    "model.running.kernel_cache",
}
USED_BY_COMMANDS = {
    "model.chat",
    "model.generation.sampling",
    "model.running.estimate",
    "model.running.machine",
    "model.serving",
}
MAY = {
    "flows": {*PACKAGES[:3], "storage", *TORCH_FREE, *USED_BY_COMMANDS},
    "tasks": {"tasks", "pipeline", "storage", *TORCH_FREE},
    "pipeline": {"pipeline", "storage", *TORCH_FREE},
    "model": {"model"},
    "storage": {"storage"},
}
WORKERS_NEVER = {"prefect", "mlflow", "pydantic", "pyarrow", "pandas"}


def imports(path):
    """Every imported dotted name with whether it runs at import time."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    lazy |= {
        id(n)
        for b in ast.walk(tree)
        if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
        for n in ast.walk(b)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            yield name, id(node) not in lazy


def modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield package, path


def test_imports_only_point_down():
    wrong = []
    for package, path in modules():
        for name, _ in imports(path):
            if name.split(".")[0] in PACKAGES and not any(
                name == ok or name.startswith(ok + ".") for ok in MAY[package]
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_workers_never_import_the_orchestrator():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package, path in modules()
        if package == "model"
        for name, _ in imports(path)
        if name.split(".")[0] in WORKERS_NEVER
    ]
    assert not wrong, "\n".join(wrong)


def test_only_stage_knows_prefect_caching_and_only_tracking_knows_mlflow():
    users = {"mlflow": set(), "prefect": set()}
    for _, path in modules():
        for name, _ in imports(path):
            if name.split(".")[0] in users:
                users[name.split(".")[0]].add(path.relative_to(ROOT).as_posix())
    assert all("tracking" in path for path in users["mlflow"]), users["mlflow"]
    flow, server = ("full_pipeline", "handover"), ("pools", "automations")
    known = {"tasks/running/prefect_run.py", *(f"flows/{name}.py" for name in (*flow, *server))}
    assert users["prefect"] <= known, users["prefect"]


def test_no_import_cycles():
    graph = {}
    for _, path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {n for n, eager in imports(path) if eager and n.split(".")[0] in PACKAGES}
    state = {}

    def visit(name, trail):
        if state.get(name) == "done" or name not in graph:
            return
        assert state.get(name) != "open", f"import cycle: {' -> '.join([*trail, name])}"
        state[name] = "open"
        for other in sorted(graph[name] - {name}):
            visit(other, [*trail, name])
        state[name] = "done"

    for name in sorted(graph):
        visit(name, [])


def test_importing_the_dag_leaves_the_heavy_packages_unloaded():
    code = (
        "import sys, flows.dag, flows.cli; print([m for m in ('torch', 'mlflow', 'pandas', 'numba', 'prefect',"
        " 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"
    code = "import sys, flows.full_pipeline; print([m for m in ('torch', 'mlflow', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_every_stage_reaches_what_is_written_down_and_nothing_else():
    pinned = tomllib.loads((ROOT / "tests" / "reach.toml").read_text())
    wrong = []
    for outlined in stages():
        reached: dict[str, list[str]] = {}
        for path in outlined.stage.code():
            folder, _, name = path.rpartition("/")
            reached.setdefault(folder, []).append(name.removesuffix(".py"))
        now = {folder: " ".join(names) for folder, names in reached.items()}
        for folder in sorted(now.keys() | pinned[outlined.name].keys()):
            if now.get(folder) != pinned[outlined.name].get(folder):
                wrong.append(f'[{outlined.name}] "{folder}" = "{now.get(folder, "")}"')
    assert not wrong, "a stage's key reaches other files; if that is meant, write into tests/reach.toml:\n" + "\n".join(
        wrong
    )
    assert {s.name for s in stages()} == pinned.keys()


def test_stages_that_read_the_tables_of_unicode_have_their_version_in_the_key():
    tables = {path.relative_to(ROOT).as_posix() for _, path in modules() if "unicodedata" in dict(imports(path))}
    using = {s.name for s in stages() if tables & s.stage.code().keys()}
    assert using == {s.name for s in stages() if "unicode" in s.stage.libs}


def test_every_error_of_ours_hangs_in_the_one_tree():
    import storage.errors as errors

    tree, builtin = errors.__doc__, {"Exception", "ValueError", "RuntimeError", "OSError", "KeyError", "TypeError"}
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            bases = {base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)}
            if isinstance(node, ast.ClassDef) and bases & {*builtin, "Refused", "Failed", "PipelineError"}:
                assert node.name in tree, f"{path}: {node.name} is not in the tree of storage/errors.py"
                if not bases & builtin:
                    assert path.relative_to(ROOT).as_posix() in tree, f"{node.name} has moved to {path}"


def test_every_benchmark_finds_what_it_imports():
    code = (
        "import runpy, sys, pathlib; sys.path.insert(0, 'benchmarks')\n"
        "for path in sorted(pathlib.Path('benchmarks').glob('*.py')): print(path.name); runpy.run_path(str(path))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, f"{out.stdout}\n{out.stderr}"
