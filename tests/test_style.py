"""The words of this code base: docstrings, names and documented fields, as far as a syntax tree can tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "signoff"
GLOSSARY = ROOT / "docs" / "glossary.md"
MODULES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}

# A docstring is a sentence in the imperative, or a noun phrase. It does not begin as a clause.
CLAUSES = set(
    "What Whether It One Who Whom Whose Whoever Whichever Whatever Nobody Somebody Everybody Which Where When While How Why "
    "There They Those These This That Is Are Was Has Have Can May Must Does Do Did".split()
)
NOT_IMPERATIVE = re.compile(
    r"^(Returns|Raises|Gives|Tells|Says|Makes|Takes|Sends|Writes|Reads|Keeps|Starts|Stops|Ends|Begins|Waits|Calls|"
    r"Looks|Counts|Puts|Adds|Moves|Drops|Forgets|Opens|Closes|Checks|Runs|Asks|Hears|Holds|Lets|Seals|Renews|Sets|"
    r"Listens|Watches|Connects|Claims|Settles|Sweeps|Changes|Removes|Registers|Finds|Goes|Gets|Yields|Prints)\b"
)
# Words of an earlier vocabulary, and names that say nothing. See docs/decisions/019.
FORBIDDEN = set(
    "MOVES Move Step Mover mover Desk desk Part courier couriers Courier knock Knobs knobs Reach Parcel parcel wrapped "
    "unwrapped Recent Question Sum Wish wish Room room rooms Refusal Meter meter Flight flight liken unliken alike "
    "file_the_slow Spot spot Seat seat Sight sight well rests era Bell bell ring cast_net Ringer Ear nudge heard "
    "remember still_the_same anew resend veiled look_at look_at_all look_and_wait told asked found given got kept brought "
    "spoken made made_by made_in own_id first_us answer_us keeper keeper_of neighbour neighbours warden Sender sender Ledger "
    "ledger Claim Place Lines Said dice Shared Waits InFlight Composed composed Listing Fresh Hook Arrived".split()
)
# Data classes whose fields are part of the public vocabulary: each field has a docstring of its own.
DOCUMENTED = {
    "core/job.py": {"Job", "Event", "Transition", "Decision", "Edit", "JobError", "FunctionCall"},
    "core/ask.py": {"Ask"},
    "core/model.py": {"Model", "EndpointConfig", "Timeouts", "ProcessLimits"},
    "core/limits.py": {"Limit"},
    "core/policy.py": {"Policy"},
    "work/services.py": {"Rules", "Services", "Adapters", "Caches", "Runtime", "Ids"},
    "core/filters.py": {"JobFilter", "LibraryFilter"},
    "store.py": {"TransitionRequest"},
}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in MODULES.items():
        yield name, ast.parse(path.read_text())


def test_docstrings_start_with_a_verb_in_the_imperative_or_a_noun_phrase() -> None:
    offences = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = (ast.get_docstring(node) or "").split(maxsplit=1)[:1]
            word = first[0].strip("`,.:;") if first else ""
            if word in CLAUSES or NOT_IMPERATIVE.match(word):
                offences.append(f"{name}:{getattr(node, 'lineno', 1)} {word}")
    assert not offences, "\n".join(offences)


def test_no_identifier_is_of_the_earlier_vocabulary() -> None:
    offences = []
    for name, tree in trees():
        if name.startswith("stores/migrations/versions/"):
            continue
        for node in ast.walk(tree):
            for identifier in identifiers(node):
                if identifier.strip("_") in FORBIDDEN:
                    offences.append(f"{name}:{getattr(node, 'lineno', 1)} {identifier}")
    assert not offences, "\n".join(offences)


def identifiers(node: ast.AST) -> Iterator[str]:
    """Names that `node` itself defines or uses."""
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
        classes = {node.name: node for node in ast.parse(MODULES[module].read_text()).body if isinstance(node, ast.ClassDef)}
        assert names <= classes.keys(), module
        for name in sorted(names):
            offences += [f"{module} {name}.{field}" for field in undocumented(classes[name])]
    assert not offences, "\n".join(offences)


def undocumented(node: ast.ClassDef) -> Iterator[str]:
    """Fields of a class that no docstring follows."""
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        match following:
            case ast.Expr(value=ast.Constant(value=str())):
                continue
            case _:
                yield statement.target.id
