"""The shape of the code: sizes, names, what `import` and `--help` load, and the public names."""

import ast
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import stable_forgetting

SOURCE = Path(stable_forgetting.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, USUAL_FUNCTION, DEEPEST = 300, 70, 40, 4
HELP_LIMIT_S = 1.0

PUBLIC = {
    "unlearn", "Unlearned", "run", "RunConfig", "TrainingConfig", "TargetConfig", "load_config", "BoundedLoraConfig",
    "bounded_linear", "delta_weight", "certificate", "Objective", "build_objective", "RunRecord", "read_record",
    "write_report", "load_adapter", "RichProgress", "StableForgettingError",
}  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)


def functions() -> Iterator[tuple[str, Function]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def length(node: Function) -> int:
    """Lines without the docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= first.end_lineno - first.lineno + 1
    return lines


def depth(node: ast.AST) -> int:
    """Blocks inside each other; `elif` is not one deeper, and a function in a function counts for itself."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def test_the_measures_measure():
    docstring, blocks = '"""One.\n\n Two.\n """', "if a:\n  for b in c:\n   pass\n elif d:\n  pass"
    tree = ast.parse(f"def f():\n {docstring}\n {blocks}\n")
    assert length(tree.body[0]) == 6
    assert depth(tree.body[0]) == 2


def test_files_are_short():
    long = {str(path): lines for path in FILES if (lines := path.read_text().count("\n")) > LONGEST_FILE}
    assert not long


def test_functions_are_short():
    lengths = {name: length(node) for name, node in functions()}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}
    longer = [name for name, lines in lengths.items() if lines > USUAL_FUNCTION]
    assert len(longer) <= 0.05 * len(lengths), longer


def test_nesting_is_shallow():
    assert not {name: found for name, node in functions() if (found := depth(node)) > DEEPEST}


def test_no_file_is_called_after_nothing():
    assert not [path for path in FILES if path.stem in {"utils", "util", "helpers", "misc", "common"}]


def test_every_module_has_a_docstring():
    assert not [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_assert_never_carries_an_exception():
    carriers = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) and isinstance(node.msg, ast.Call)
    ]
    assert not carriers


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_what_it_says(name):
    """Also after its module was imported: a module must not take the place of a function of the same name."""
    home = stable_forgetting._HOMES[name]
    module = importlib.import_module(f"stable_forgetting.{home}")
    assert getattr(stable_forgetting, name) is getattr(module, name)
    assert getattr(stable_forgetting, name).__doc__
    assert not hasattr(getattr(stable_forgetting, name), "__path__")


def test_the_public_names_are_these():
    assert set(stable_forgetting.__all__) == PUBLIC
    assert len(stable_forgetting.__all__) == len(PUBLIC)
    assert set(dir(stable_forgetting)) == PUBLIC
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = stable_forgetting.no_such_name


def in_new_process(code: str) -> str:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=surroundings)
    return done.stdout


def test_importing_the_package_sets_nothing_up():
    heavy = {"torch", "peft", "transformers", "pydantic"}
    code = f"import sys, stable_forgetting; print(sorted({heavy} & set(sys.modules)))"
    assert in_new_process(code).strip() == "[]"


HELP = """
import sys
sys.argv = ["forget", {arguments}"--help"]
from stable_forgetting.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print("LOADED", *sorted({{"torch", "peft", "transformers", "numpy", "datasets", "matplotlib"}} & {{*sys.modules}}))
"""


@pytest.mark.parametrize("arguments", ["", "'run', ", "'list', "])
def test_help_loads_nothing_heavy(arguments):
    last = in_new_process(HELP.format(arguments=arguments)).strip().splitlines()[-1]
    assert last == "LOADED"


def test_help_answers_at_once(record_property):
    """Best of three, less the start of Python itself."""

    def best(code: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            in_new_process(code)
            times.append(time.perf_counter() - start)
        return min(times)

    extra = best(HELP.format(arguments="")) - best("pass")
    record_property("seconds", f"{extra:.2f}")
    assert extra < HELP_LIMIT_S, f"`forget --help` takes {extra:.2f} s more than Python itself"


def test_the_report_never_imports_torch():
    code = "import sys, stable_forgetting.report; print('torch' in sys.modules)"
    assert in_new_process(code).strip() == "False"


def test_exceptions_are_drawn_in_their_docstring():
    import stable_forgetting.errors as errors

    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__))
    defined = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)}
    assert drawn == defined
