"""Who may import whom, what a bare import loads, and whether every namespace function we call exists in the standard.

The method knows array_api_compat, numpy and the standard library; the prior and the problems know nothing of the
method; only the commands know all three. A method or a problem is named in its table and in its own file.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("enkg_ref", "onnx_priors", "problems")

# A module may import modules of its own layer or of a lower one.
LAYERS = [
    {"_xp"},
    {"diffusion", "ensemble", "likelihood", "metropolis"},
    {"enkg", "protocol"},
    {"presets", "extensions", "diagnostics", "plan", "baselines", "enkg_r"},
    {"methods"},
    {"run", "compare", "statements"},
    {"commands"},
    {"cli", "__main__"},
]
CORE = LAYERS[0] | LAYERS[1] | LAYERS[2] | {"presets", "extensions", "diagnostics", "plan"}
PAPER = {"ensemble", "enkg"}  # the method alone


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Absolute dotted names of everything a file imports, also inside functions and ``if`` blocks."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def roots(path):
    return {name.split(".")[0] for name in imports(path)}


def layer(dotted):
    """Index of the layer of a module of enkg_ref, None for the package itself."""
    parts = dotted.split(".")
    if len(parts) == 1:
        return None
    for index, names in enumerate(LAYERS):
        if parts[1] in names:
            return index
    return None


def test_every_module_of_the_method_has_a_layer():
    homeless = [module_name(path) for path in sources("enkg_ref")
                if path != ROOT / "enkg_ref" / "__init__.py" and layer(module_name(path)) is None]
    assert homeless == []


def test_modules_of_the_method_import_downwards_only():
    for path in sources("enkg_ref"):
        own = layer(module_name(path))
        if own is None:
            continue
        for name in imports(path):
            if name.startswith("enkg_ref."):
                other = layer(name)
                if other is None:  # a name of the package itself, which imports everything below the shell
                    other = len(LAYERS) - 2
                assert other <= own, f"{module_name(path)} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_files_of_a_package_import_each_other_not_even_by_way_of_others(package):
    known = {module_name(path) for path in sources(package)} - {package}
    graph = {}
    for path in sources(package):
        targets = {name if name in known else name.rpartition(".")[0] for name in imports(path)}
        graph[module_name(path)] = targets & known - {module_name(path)}
    done = set()

    def visit(node, above):
        assert node not in above, " -> ".join([*above, node])
        if node not in done:
            for target in sorted(graph[node]):
                visit(target, [*above, node])
            done.add(node)

    for node in sorted(graph):
        visit(node, [])


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_imports_only_array_api_compat_numpy_and_the_standard_library(name):
    path = ROOT / "enkg_ref" / f"{name}.py"
    allowed = sys.stdlib_module_names | {"numpy", "enkg_ref"} | ({"array_api_compat"} if name == "_xp" else set())
    assert roots(path) <= allowed


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_namespace_module_of_a_package_imports_array_api_compat(package):
    offenders = [module_name(path) for path in sources(package)
                 if "array_api_compat" in roots(path) and path.name != "_xp.py"]
    assert offenders == []


@pytest.mark.parametrize("package", ["onnx_priors", "problems"])
def test_priors_and_problems_never_import_the_method(package):
    assert [module_name(path) for path in sources(package) if "enkg_ref" in roots(path)] == []


def test_only_the_commands_know_the_method_the_priors_and_the_problems():
    for path in sources("enkg_ref"):
        if (layer(module_name(path)) or 0) < len(LAYERS) - 2:
            assert not {"onnx_priors", "problems"} & roots(path), module_name(path)


def test_the_method_alone_knows_no_mask_guard_stop_warning_or_diagnostic_and_is_short():
    lines = 0
    for name in PAPER:
        path = ROOT / "enkg_ref" / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        assert imports(path) & {"warnings"} == set()
        tree = ast.parse(text)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
            node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert used & {"isfinite", "finite_rows", "alive", "mask", "guard", "stop", "warn", "trust", "where"} == (
            {"isfinite"} if name == "enkg" else set())  # of the settings, in Config
    assert lines <= 260


def test_no_file_of_the_method_is_longer_than_one_can_read_in_a_sitting():
    lengths = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources("enkg_ref")}
    assert {name: length for name, length in lengths.items() if length >= 450} == {}


def literals(path):
    """The string literals of a file, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = (ast.Module, ast.FunctionDef, ast.ClassDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree)
            if isinstance(n, nodes) and n.body and isinstance(n.body[0], ast.Expr)}
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            and id(n) not in docs}


def test_a_method_is_named_in_the_table_of_methods_and_in_its_own_file_and_a_problem_likewise():
    from enkg_ref.methods import METHODS, TABLE
    from problems import PROBLEMS

    own = {name: place.split(":")[0].rpartition(".")[2] for name, place in TABLE.items()}  # name: file
    assert set(own) == set(METHODS)
    own |= {name: place.split(":")[0].rpartition(".")[2] for name, place in PROBLEMS.items()}
    for path in sources("enkg_ref"):
        module = module_name(path)
        # "enkg" is also the program, the method where none is named, and what a comparison compares with
        allowed = {"enkg"} if module in ("enkg_ref.cli", "enkg_ref.commands.solve",
                                         "enkg_ref.compare.statistics") else set()
        elsewhere = {name for name in literals(path) & set(own) if own[name] != path.stem}
        assert module == "enkg_ref.methods" or elsewhere <= allowed, f"{module} names {elsewhere - allowed}"


@pytest.mark.parametrize("package, heavy", [
    ("enkg_ref", "torch jax cupy onnxruntime onnx scipy matplotlib"),
    ("enkg_ref.enkg", "torch jax cupy onnxruntime onnx scipy matplotlib"),
    ("onnx_priors", "torch jax cupy enkg_ref"),
    ("problems", "torch jax cupy onnxruntime matplotlib astropy enkg_ref"),
])
def test_a_bare_import_loads_no_heavy_package(package, heavy):
    program = f"import sys, {package}; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []


# ------------------------------------------------------------------------------------------------------ namespace scan


def namespace_names(source):
    """Dotted names used on ``xp`` in a source text: {"sum", "fft.rfftn", "linalg.eigh", ...}."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        if isinstance(value, ast.Name) and value.id == "xp":
            found.add(node.attr)
        elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "xp":
            if value.attr in ("fft", "linalg"):
                found.add(f"{value.attr}.{node.attr}")
    return {name for name in found if not name.startswith("__")}


def absent(names, namespace):
    """The names that the namespace does not have."""
    missing = set()
    for name in names:
        target = namespace
        for part in name.split("."):
            target = getattr(target, part, None)
        if target is None:
            missing.add(name)
    return missing


def used_names():
    return set().union(*(namespace_names(path.read_text(encoding="utf-8"))
                         for package in PACKAGES for path in sources(package)))


def strict_namespace():
    import array_api_strict
    return array_api_strict


def cupy_namespace():
    pytest.importorskip("cupy")
    importlib.import_module("array_api_compat.cupy.fft")
    importlib.import_module("array_api_compat.cupy.linalg")
    return importlib.import_module("array_api_compat.cupy")


@pytest.mark.parametrize("namespace", [strict_namespace, cupy_namespace])
def test_every_namespace_function_we_call_exists_in(namespace):
    names = used_names()
    assert {"sum", "where", "matmul"} & names
    assert absent(names, namespace()) == set()


def test_the_namespace_scan_finds_a_made_up_name():
    source = "def f(xp, x):\n    y = xp.fft.rfft2(x)\n    return xp.nansum(xp.sum(xp.linalg.lstsq(y)))\n"
    assert namespace_names(source) == {"fft", "fft.rfft2", "linalg", "linalg.lstsq", "nansum", "sum"}
    assert absent(namespace_names(source), strict_namespace()) == {"fft.rfft2", "nansum", "linalg.lstsq"}
