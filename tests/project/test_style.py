"""The style of this code base: docstrings, names and documented fields, as far as a syntax tree shows them."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from support.syntax import tree_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "signoff"
GLOSSARY = ROOT / "docs" / "glossary.md"
MODULES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
TESTS = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tests").rglob("*.py"))}

VOCABULARY = {
    name: set(words.split())
    for name, words in tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text()).items()
}
# Hypothesis' decorator, a column of an earlier schema, a module of the source, and a key of recorded histories.
ALLOWED_IN_TESTS = {"given", "meter", "desk", "wish"}
# Plural nouns that look like verbs in the third person; a docstring of a variable may begin with one.
PLURALS = {"Calls", "Changes", "Waits"}
NOT_IMPERATIVE = re.compile(
    r"^(Returns|Raises|Gives|Tells|Says|Makes|Takes|Sends|Writes|Reads|Keeps|Starts|Stops|Ends|Begins|Waits|Calls|"
    r"Looks|Counts|Puts|Adds|Moves|Drops|Forgets|Opens|Closes|Checks|Runs|Asks|Hears|Holds|Lets|Seals|Renews|Sets|"
    r"Listens|Watches|Connects|Claims|Settles|Sweeps|Changes|Removes|Registers|Finds|Goes|Gets|Yields|Prints)\b"
)
HAS_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)
# Data classes whose fields are part of the public vocabulary: each field has a docstring of its own.
DOCUMENTED = {
    "core/job.py": {"Job", "Event", "Decision", "Edit", "JobError", "FunctionCall"},
    "core/transitions.py": {"Transition"},
    "core/reviews/ruling.py": {"Ruling"},
    "core/ask.py": {"Ask"},
    "core/model.py": {"Model", "EndpointConfig", "Timeouts", "ProcessLimits"},
    "core/limits.py": {"Limit"},
    "core/reviews/policy.py": {"JobPolicy"},
    "core/reviews/rules.py": {"Action", "Rule", "Budget", "PolicyDraft", "ReviewPolicy"},
    "work/services.py": {"Rules", "Services", "Adapters", "Caches", "Runtime", "Ids"},
    "core/filters.py": {"JobFilter", "LibraryFilter"},
    "store.py": {"TransitionRequest"},
}


def trees() -> list[tuple[str, ast.Module]]:
    """Return the name and the syntax tree of each file of the source and of the tests."""
    return [(name, tree_of(path)) for name, path in (MODULES | TESTS).items()]


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes that can have a docstring, without the expressions, which are most of a tree."""
    ahead: list[ast.AST] = [tree]
    while ahead:
        node = ahead.pop()
        yield node
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, HAS_STATEMENTS)]
        ahead += reversed(inner)


def test_docstrings_start_with_a_verb_in_the_imperative_or_a_noun_phrase() -> None:
    offences = []
    for name, tree in trees():
        for line, docstring in docstrings(tree):
            word = "".join(docstring.split(maxsplit=1)[:1]).strip("`,.:;")
            if word in VOCABULARY["clauses"] or NOT_IMPERATIVE.match(word):
                offences.append(f"{name}:{line} {word}")
    assert not offences, "\n".join(offences)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring: of modules, classes and functions, and of their variables."""
    for node in statements(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""
        for statement, following in itertools.pairwise(node.body):
            match statement, following:
                case ast.Assign() | ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                    if text.split(maxsplit=1)[0] not in PLURALS:
                        yield following.lineno, text
                case _:
                    continue


def test_no_identifier_is_of_the_earlier_vocabulary() -> None:
    offences = []
    for name, tree in trees():
        allowed = ALLOWED_IN_TESTS if name in TESTS else set[str]()
        if name.startswith("stores/migrations/versions/"):
            continue
        for node in ast.walk(tree):
            offences += [
                f"{name}:{getattr(node, 'lineno', 1)} {identifier}"
                for identifier in identifiers(node)
                if identifier.strip("_") in VOCABULARY["forbidden"] - allowed
            ]
    assert not offences, "\n".join(offences)


def identifiers(node: ast.AST) -> Iterator[str]:
    """Yield the names that `node` itself defines or uses."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.keyword(arg=str(name)):
            yield name
        case ast.alias(name=name, asname=other):
            yield from (name.rpartition(".")[2], other or "")
        case _:
            return


def test_every_field_of_a_public_data_class_is_documented() -> None:
    offences = []
    for module, names in DOCUMENTED.items():
        classes = {node.name: node for node in tree_of(MODULES[module]).body if isinstance(node, ast.ClassDef)}
        assert names <= classes.keys(), module
        for name in sorted(names):
            offences += [f"{module} {name}.{field}" for field in undocumented(classes[name])]
    assert not offences, "\n".join(offences)


def undocumented(node: ast.ClassDef) -> Iterator[str]:
    """Yield the fields of a class that no docstring follows."""
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        match following:
            case ast.Expr(value=ast.Constant(value=str())):
                continue
            case _:
                yield statement.target.id


def test_class_names_consist_of_words_of_the_field_and_of_the_glossary() -> None:
    own = {word for entry in glossary() for word in words_of(entry)}
    known = VOCABULARY["class_words"] | own | {f"{word}s" for word in own}
    unknown = {
        f"{name} {node.name}: {word}"
        for name, tree in trees()
        if name in MODULES
        for node in statements(tree)
        if isinstance(node, ast.ClassDef)
        for word in words_of(node.name)
        if word not in known
    }
    assert not unknown, "use a term of the field, or add it to vocabulary.toml with its source in the review"


def test_the_glossary_has_at_most_25_words_of_our_own() -> None:
    assert 0 < len(glossary()) <= 25


def glossary() -> list[str]:
    """Return the entries of the glossary."""
    return re.findall(r"^- \*\*(.+?)\*\*:", GLOSSARY.read_text(), re.MULTILINE)


def words_of(name: str) -> list[str]:
    """Return the words of a name in camel case, or of a phrase, in small letters.

    >>> words_of("HTTPDoor"), words_of("wake-up")
    (['http', 'door'], ['wake', 'up'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)]
