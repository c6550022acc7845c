"""Trees: tensors in tuples, lists and dicts, as functional transforms take and return them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tinygrad_llm.autograd.errors import AutogradError


class FormError(AutogradError, ValueError, TypeError):
    """A function or an argument of a transform is not of the form that it must have: its tree, place, shape or type."""


def flatten(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """(leaves, rebuild): what is no tuple, list or dict, in order; rebuild(new leaves) gives a tree of the same form."""
    children, build = open_tree(tree)
    if build is None:
        return [tree], lambda leaves: leaves[0]
    parts = [flatten(child) for child in children]
    sizes = [(len(own), part) for own, part in parts]  # and not the leaves: who keeps rebuild keeps none of them alive

    def rebuild(leaves: list[Any]) -> Any:
        rest = iter(leaves)
        return build([part([next(rest) for _ in range(size)]) for size, part in sizes])

    return [leaf for own, _ in parts for leaf in own], rebuild


def tree_map(function: Callable[..., Any], tree: Any) -> Any:
    """The tree with function(leaf) for each leaf."""
    leaves, rebuild = flatten(tree)
    return rebuild([function(leaf) for leaf in leaves])


def same_leaves(who: str, tree: Any, like: Any) -> list[Any]:
    """The leaves of a tree that must have the form of another. Errors: FormError where it has not."""
    (leaves, _), (wanted, _) = flatten(tree), flatten(like)
    if _form(tree) != _form(like):
        raise FormError(f"{who}: got a tree of {len(leaves)} leaves and the form {_form(tree)}, expected {len(wanted)} "
                         f"and {_form(like)}")
    return leaves


def open_tree(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any] | None]:
    """(children, build): build(new children) gives a tuple, list or dict of the same form; None for a leaf, which has none."""
    kind = type(tree)
    if isinstance(tree, dict):
        return list(tree.values()), _like_dict(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(tree), lambda values: kind(*values)
    if isinstance(tree, tuple | list):
        return list(tree), kind
    return [], None


def _like_dict(tree: dict[Any, Any]) -> Callable[[list[Any]], Any]:
    """Makes a dict of the same class with the same keys: a Counter counts nothing, a defaultdict keeps its default."""
    keys, empty = list(tree), copy.copy(tree)
    empty.clear()

    def build(values: list[Any]) -> Any:
        made = copy.copy(empty)
        dict.update(made, zip(keys, values))
        return made

    return build


def _form(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _form(value) for key, value in tree.items()}
    return type(tree)([_form(child) for child in tree]) if type(tree) in (tuple, list) else "·"


def form_of(tree: Any) -> Any:
    """Equal for trees of the same form: the classes of tuples, lists and dicts, their lengths and keys. None for a leaf.

    Errors: FormError for one of a class of its own that has attributes too.
    """
    if not isinstance(tree, tuple | list | dict):
        return None
    if getattr(tree, "__dict__", None):
        raise FormError(f"tree: got a {type(tree).__name__} with attributes, expected a plain tuple, list or dict")
    if isinstance(tree, dict):
        return type(tree), tuple([(type(key), key) for key in tree]), tuple([form_of(child) for child in tree.values()])
    return type(tree), tuple([form_of(child) for child in tree])
