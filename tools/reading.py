"""What a reader of the source pays: complexity, nesting and length, and the whole in tokens.

python tools/reading.py    # printed by `make check`; tests/test_architecture.py holds the limits
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "fewstep"
MOST_COMPLEX = 15
LONGEST_FUNCTION = 60
LONGEST_FILE = 350
LONGEST_METHOD = 150  # a file in methods/
LONGEST_TEST = 450
TOKENS = 200_000  # the promise for everything but recipes; a figure to look at, not to squeeze for

BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.With, ast.IfExp, ast.match_case)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NOT_READ = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def complexity(function: ast.FunctionDef) -> int:
    """1, and 1 for each branch, loop, handler, `with`, comprehension, condition, boolean operand.

    What is defined inside the function counts by itself.
    """
    total = 1
    waiting: list[ast.AST] = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(node, BRANCHES):
            total += 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        waiting.extend(ast.iter_child_nodes(node))
    return total


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def nests(node: ast.AST) -> bool:
    """Whether a comprehension holds another one."""
    inner = [one for one in ast.walk(node) if one is not node]
    return isinstance(node, COMPREHENSIONS) and any(isinstance(i, COMPREHENSIONS) for i in inner)


def too_dear(path: Path) -> Iterator[str]:
    """What is above a limit in a file of the source, each in a sentence."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(SOURCE)
    lines = len(text.splitlines())
    most = LONGEST_METHOD if name.parts[0] == "methods" else LONGEST_FILE
    if lines > most:
        yield f"{name} has {lines} lines, more than {most}"
    for node in ast.walk(ast.parse(text)):
        if nests(node):
            yield f"{name}:{node.lineno} is a comprehension that holds another"
        if isinstance(node, ast.FunctionDef):
            if (found := complexity(node)) > MOST_COMPLEX:
                yield f"{name}: {node.name} has complexity {found}, more than {MOST_COMPLEX}"
            if (found := length(node)) > LONGEST_FUNCTION:
                yield f"{name}: {node.name} has {found} lines, more than {LONGEST_FUNCTION}"


def tokens(path: Path) -> int:
    """Tokens of a file, without comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    total = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        total += token.type not in NOT_READ
    for node in ast.walk(ast.parse(text)):
        described = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        total -= described and ast.get_docstring(node) is not None
    return total


def main() -> None:
    """Prints the figure for each room and for the whole."""
    rooms: dict[str, int] = {}
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        rooms[room] = rooms.get(room, 0) + tokens(path)
    recipes = rooms.pop("recipes")
    for room, count in sorted(rooms.items(), key=lambda item: -item[1]):
        print(f"{room:12}{count:8,}")
    print(
        f"{'all':12}{sum(rooms.values()):8,} of {TOKENS:,} tokens, without {recipes:,} of recipes"
    )


if __name__ == "__main__":
    main()
