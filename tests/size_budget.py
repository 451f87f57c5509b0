"""The size budget of docs: files, functions and argument lists. Exceptions are named here; the list only shrinks."""

from __future__ import annotations

import ast
import pathlib
import sys

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 8
EXCEPTIONS: dict[str, str] = {}  # "path" or "path:function" -> why it must be larger


def _functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _file_problems(path: pathlib.Path) -> list[str]:
    text = path.read_text()
    problems = []
    if (num_lines := text.count("\n")) > MAX_FILE_LINES and str(path) not in EXCEPTIONS:
        problems.append(f"{path}: {num_lines} lines, at most {MAX_FILE_LINES}")
    if path.suffix != ".py":
        return problems
    for node in _functions(ast.parse(text)):
        where = f"{path}:{node.name}"
        if where in EXCEPTIONS:
            continue
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES:
            problems.append(f"{where}: {length} lines, at most {MAX_FUNCTION_LINES}")
        if (count := len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)) > MAX_ARGUMENTS:
            problems.append(f"{where}: {count} arguments, at most {MAX_ARGUMENTS}")
    return problems


def main() -> int:
    """Print what is over budget; exit status 1 if anything is."""
    roots = ("src", "recipes", "bench", "examples", "tests")
    kinds = {".py", ".cpp", ".h", ".inl"}
    files = sorted(p for root in roots for p in pathlib.Path(root).rglob("*") if p.suffix in kinds)
    problems = [problem for path in files for problem in _file_problems(path)]
    print("\n".join(problems) or f"size budget: {len(files)} files within it")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
