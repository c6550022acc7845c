"""Module: a tree of parameters with torch's names for walking, saving and loading it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import Tensor, as_array, no_grad
from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.autograd.modes import active_recorder, meet
from tinygrad_llm.ops import DtypeError, ShapeError
from tinygrad_llm.ops.errors import of_its_own


class Parameter(Tensor):
    """A leaf that requires grad; a Module finds it among its attributes.

    It shares the memory of a tensor, and copies any other data. A deepcopy has its values and requires_grad alone, as in torch.
    """

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None) -> None:
        shared = isinstance(data, Tensor) and (dtype is None or data.dtype == dtype)  # a dtype equals None
        self._begin(data._array if shared else as_array(data, dtype))
        if shared:
            self._counter = data._counter
        self.requires_grad_(requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        make, (kind, requires_grad, _, *place) = self.__reduce_ex__(4)
        return make(kind, requires_grad, None, *copy.deepcopy(place, memo))


class LoadResult(NamedTuple):
    """What load_state_dict(strict=False) did not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class NoForwardError(NotImplementedError, TypeError):
    """A call of a module that does not say what it computes."""


class StateKeyError(KeyError, ValueError, RuntimeError):
    """A state dict whose names are not the module's."""

    def __str__(self) -> str:
        return str(self.args[0])


class Module:
    """A function with parameters. Subclasses set Parameters and Modules as attributes and define `forward`.

    They are plain attributes: no __init__ must run first, and reading one costs what reading any attribute does. Only what
    its value cannot tell is written down, in `__registered`: buffers, and names whose parameter or module is None. To assign
    something else over a parameter, a module or a buffer is a TypeError, as in torch: training would lose it.
    """

    training = True
    __registered: Mapping[str, str] = MappingProxyType({})
    __not_saved: frozenset[str] = frozenset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module computes."""
        raise NoForwardError(f"{type(self).__name__}: got a call, expected a subclass that defines forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder = active_recorder()
        return self.forward(*args, **kwargs) if recorder is None else recorder.run_module(self, args, kwargs)

    # Parts -----------------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self.__registered.get(name) or _kind_of(vars(self).get(name))
        if isinstance(value, Parameter) and (not name or "." in name):
            _check_name(type(self).__name__, name)
        if kind is not None:
            self.__check_part(name, kind, value)
            self.__register(name, kind if value is None or (kind == "buffer" and _kind_of(value) is None) else None)
        if _kind_of(value) not in (None, kind):
            vars(self).pop(name, None)  # parts stand in the order in which they became such
        object.__setattr__(self, name, value)
        changes.count += 1

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self.__register(name, None)
        changes.count += 1

    def __check_part(self, name: str, kind: str, value: Any) -> None:
        """TypeError for a value that cannot take the place of this kind of part."""
        fits = value is None or isinstance(value, Parameter) or (kind != "parameter" and isinstance(value, Module))
        if not fits and not (kind == "buffer" and isinstance(value, Tensor)):
            raise TypeError(f"{type(self).__name__}.{name}: got {type(value).__name__}, expected {_EXPECTED[kind]} or None: "
                            f"cannot assign it as {kind}")

    def __register(self, name: str, kind: str | None) -> None:
        """Write down what its value does not tell, or (None) that it tells all."""
        if kind is not None:
            vars(self)["_Module__registered"] = {**self.__registered, name: kind}
        elif name in self.__registered:
            vars(self)["_Module__registered"] = {n: k for n, k in self.__registered.items() if n != name}
            vars(self)["_Module__not_saved"] = self.__not_saved - {name}

    def __put(self, method: str, name: str, kind: str, value: Any) -> None:
        if kind == "module":  # torch looks at the module first, at other parts last
            _check_type(method, name, kind, value)
        _check_name(method, name)
        if hasattr(self, name) and (self.__registered.get(name) or _kind_of(vars(self).get(name))) != kind:
            raise KeyError(f"{method}: name: got {name!r}, which is an attribute already, expected a new one")
        _check_type(method, name, kind, value)
        self.__register(name, kind if value is None or kind == "buffer" else None)
        object.__setattr__(self, name, value)
        changes.count += 1

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """The parameter under that name; None: a name that has none for now. Errors: KeyError for what is no new name."""
        self.__put("register_parameter", name, "parameter", param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """A tensor that is saved with the module (unless not persistent) and not trained. Errors: KeyError, TypeError."""
        self.__put("register_buffer", name, "buffer", tensor)
        vars(self)["_Module__not_saved"] = self.__not_saved - {name} if persistent else self.__not_saved | {name}

    def add_module(self, name: str, module: Module | None) -> None:
        """The module under that name, which may be no Python name, such as "0". Errors: KeyError, TypeError."""
        self.__put("add_module", name, "module", module)

    register_module = add_module

    # Walking ---------------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules one level down, each once, with the attribute it is under."""
        first: dict[int, tuple[str, Module]] = {}
        for name, module in slots_of(self, "module"):
            first.setdefault(id(module), (name, module))
        return (pair for pair in first.values() if pair[1] is not None)

    def children(self) -> Iterator[Module]:
        """The modules one level down, each once."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module ("") and all below it, by dotted name, parents first.

        A module that is reached under several names is given once, or with remove_duplicate=False under each; one that
        contains itself is not entered again. Those in memo are left out.
        """
        memo = set() if memo is None else memo
        if self in memo:
            return
        memo.add(self)
        yield prefix, self
        for name, child in slots_of(self, "module"):
            if child is not None:
                yield from child.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)
        if not remove_duplicate:
            memo.discard(self)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        seen, stack = set[Module](), [self]
        while stack:
            module = stack.pop()
            if module not in seen:
                seen.add(module)
                yield module
                stack += [child for _, child in reversed(slots_of(module, "module")) if child is not None]

    def __named(self, kind: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(None, prefix, remove_duplicate) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in slots_of(module, kind):
                if value is not None and id(value) not in seen:
                    if remove_duplicate:
                        seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), a shared one once, under its first name, or with remove_duplicate=False under each."""
        return self.__named("parameter", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Each parameter once."""
        return (parameter for _, parameter in self.named_parameters("", recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer), as named_parameters."""
        return self.__named("buffer", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Each buffer once."""
        return (buffer for _, buffer in self.named_buffers("", recurse))

    def get_submodule(self, target: str) -> Module:
        """The module under a dotted name; "" is this one. Errors: AttributeError."""
        module: Any = self
        for name in target.split(".") if target else ():
            module = _part(module, name, target, Module, "a module")
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter under a dotted name. Errors: AttributeError."""
        path, _, name = target.rpartition(".")
        return _part(self.get_submodule(path), name, target, Parameter, "a parameter")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer under a dotted name. Errors: AttributeError."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        found = _part(module, name, target, Tensor, "a buffer")
        if module.__registered.get(name) != "buffer":
            raise AttributeError(f"{type(self).__name__}: got {target!r}, which is {type(found).__name__}, expected a buffer")
        return found

    def num_parameters(self) -> int:
        """Number of numbers that training changes; shared ones count once."""
        return sum(p.numel() for p in self.parameters())

    def apply(self, fn: Callable[[Module], Any]) -> Module:
        """Call fn on every module, children first."""
        self._apply(fn, set())
        return self

    def _apply(self, fn: Callable[[Module], Any], above: set[Module]) -> None:
        above = above | {self}
        for child in self.children():
            if child not in above:
                child._apply(fn, above)
        fn(self)

    # State -----------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Module:
        """Switch dropout on (or off) in this module and all below it. Errors: ValueError for what is no bool."""
        if not isinstance(mode, bool | np.bool_):
            raise ValueError(f"train: mode: got {mode!r}, expected True or False")
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Module:
        """train(False)"""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or (set_to_none=False) write zeros into them."""
        own = (p for module in self.modules() for _, p in slots_of(module, "parameter") if p is not None)
        forget_gradients(own, set_to_none)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze (False) or thaw every parameter."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def __state(self) -> Iterator[tuple[str, Tensor]]:
        """What is saved, under each of its names: of each module its parameters, then its buffers."""
        for path, module in self.named_modules(remove_duplicate=False):
            for name, value in slots_of(module, "parameter") + slots_of(module, "buffer"):
                if value is not None and name not in module.__not_saved:
                    yield (f"{path}.{name}" if path else name), value

    def state_dict(self, *, prefix: str = "") -> dict[str, np.ndarray]:
        """name → a copy of the values of parameters and buffers. A shared one appears under each of its names, as in torch."""
        return {prefix + name: p.numpy().copy() for name, p in self.__state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy values into parameters and buffers by name; everything is checked before anything is written.

        Integers become floats where these are expected. Errors: KeyError for names missing or unexpected (where strict),
        ValueError for a shape that differs or for two different values for one shared parameter, TypeError for a dtype whose
        values would be cut off.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict: state_dict: got {type(state_dict).__name__}, expected a dict, as "
                            "state_dict() gives it")
        own = dict(self.__state())
        missing, unexpected = [n for n in own if n not in state_dict], [n for n in state_dict if n not in own]
        if strict and (missing or unexpected):
            raise StateKeyError(f"load_state_dict: got {len(missing)} missing names {missing[:3]} and {len(unexpected)} "
                                f"unexpected {unexpected[:3]}, expected the names of {type(self).__name__}.state_dict()")
        arrays = {name: np.asarray(state_dict[name]) for name in own if name in state_dict}
        _check_state(own, arrays)
        with no_grad():
            for name, array in arrays.items():
                own[name].copy_(array)
        return LoadResult(missing, unexpected)

    # Looking ---------------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What a line of the printed tree says of the module itself."""
        return ""

    def __repr__(self) -> str:
        return "\n".join(self.__lines("", set(), ()))

    def __lines(self, name: str, seen: set[int], above: tuple[Module, ...]) -> Iterator[str]:
        parts = [(n, v) for n, v in slots_of(self, "parameter") if v is not None]
        own = [f"{n} {list(v.shape)}" + (" (shared)" if id(v) in seen else "") for n, v in parts]
        seen.update(id(v) for _, v in parts)
        label = f"{name}: " * bool(name) + type(self).__name__
        note = "  ".join(part for part in (self.extra_repr(), ", ".join(own)) if part)
        yield f"{label:<34}{Module.num_parameters(self):>12,}  {note}".rstrip()
        for child_name, child in slots_of(self, "module"):
            if child is not None and all(child is not m for m in (self, *above)):
                yield from (f"  {line}" for line in child.__lines(child_name, seen, (self, *above)))


_TYPES: dict[str, Any] = {"parameter": Parameter, "module": Module, "buffer": Tensor}
_FOUND: dict[str, Any] = {"parameter": Parameter, "module": Module, "buffer": ()}  # a buffer is not known by its type
_EXPECTED = {"parameter": "a Parameter", "module": "a Module", "buffer": "a Tensor"}


def slots_of(module: Module, kind: str) -> list[tuple[str, Any]]:
    """(name, value) of the module's own parameters, modules or buffers, those that are None too."""
    registered, wanted = module._Module__registered, _FOUND[kind]  # type: ignore[attr-defined]
    if not registered:
        return [(name, value) for name, value in vars(module).items() if isinstance(value, wanted)]
    return [(name, value) for name, value in vars(module).items()
            if (registered[name] == kind if name in registered else isinstance(value, wanted))]


def _kind_of(value: Any) -> str | None:
    return "parameter" if isinstance(value, Parameter) else "module" if isinstance(value, Module) else None


def _check_name(method: str, name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{method}: name: got {type(name).__name__}, expected a str")
    if not name or "." in name:
        raise KeyError(f"{method}: name: got {name!r}, expected a name without dots that is not empty")


def _check_type(method: str, name: Any, kind: str, value: Any) -> None:
    if value is not None and not isinstance(value, _TYPES[kind]):
        raise TypeError(f"{method}: {name}: got {type(value).__name__}, expected {_EXPECTED[kind]} or None: "
                        f"cannot assign it as {kind}")


def _part(module: Any, name: str, target: str, kind: Any, expected: str) -> Any:
    if not hasattr(module, name):
        raise AttributeError(f"{type(module).__name__}: got {target!r}, expected {expected}: there is no attribute {name!r}")
    found = getattr(module, name)
    if not isinstance(found, kind):
        raise AttributeError(f"{type(module).__name__}: got {target!r}, which is {type(found).__name__}, expected {expected}")
    return found


def forget_gradients(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    """No gradients, or zeros written into those that there are, so that whoever holds one sees them, as in torch.

    In a recorded function that is a write into what is not its own, so that it runs as it is: new zeros would be recorded, and
    gradients of one call added to those of the one before.
    """
    for p in parameters:
        meet(p)
        g = p._grad
        p._grad = None if set_to_none or g is None else (g if g.is_leaf else g.detach_()).requires_grad_(False).zero_()


def _check_state(own: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> None:
    first: dict[int, str] = {}
    for name, array in arrays.items():
        if array.shape != own[name].shape:
            raise ShapeError(f"load_state_dict: {name}: got shape {array.shape}, expected {own[name].shape}")
        if array.dtype.kind == "V" or not np.can_cast(array.dtype, own[name].dtype, "same_kind"):
            expected = of_its_own(f"one that {own[name].dtype} can hold", array.dtype)
            raise DtypeError(f"load_state_dict: {name}: got dtype {array.dtype}, expected {expected}")
        other = first.setdefault(id(own[name]), name)
        if not np.array_equal(array, arrays[other], equal_nan=array.dtype.kind == "f"):
            raise ValueError(f"load_state_dict: {name}: got values that differ from {other}, expected one shared tensor")


class ModuleList(Module):
    """Modules under the names 0, 1, 2, ..., with the methods of a list. It is not called; what holds it calls its modules."""

    def __init__(self, modules: Iterable[Any] | None = None) -> None:
        if modules is not None:
            self.extend(modules)

    def __items(self) -> list[Any]:
        return [module for _, module in slots_of(self, "module")]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__items())

    def __len__(self) -> int:
        return len(slots_of(self, "module"))

    def __getitem__(self, index: Any) -> Any:
        items = self.__items()
        return type(self)(items[index]) if isinstance(index, slice) else items[self.__place(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, str(self.__place(index)), module)

    def __delitem__(self, index: Any) -> None:
        items = self.__items()
        del items[index if isinstance(index, slice) else self.__place(index)]
        self.__become(items)

    def __add__(self, other: Iterable[Any]) -> ModuleList:
        return type(self)([*self, *other])

    def __iadd__(self, other: Iterable[Any]) -> ModuleList:
        return self.extend(other)

    def append(self, module: Any) -> ModuleList:
        """One more at the end; itself."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Any]) -> ModuleList:
        """More at the end; itself. Errors: TypeError for what is no sequence of modules; then nothing is added."""
        if not isinstance(modules, Iterable):
            raise TypeError(f"ModuleList.extend: modules: got {type(modules).__name__}, expected an iterable of modules")
        items, modules = len(self), list(modules)
        if wrong := [m for m in modules if m is not None and not isinstance(m, Module)]:
            raise TypeError(f"ModuleList.extend: modules: got {type(wrong[0]).__name__} among them, expected modules")
        for i, module in enumerate(modules):
            self.add_module(str(items + i), module)
        return self

    def insert(self, index: int, module: Any) -> None:
        """One more before the one at index, which counts as a list's."""
        items = self.__items()
        items.insert(operator.index(index), module)
        self.__become(items)

    def pop(self, key: Any = -1) -> Any:
        """Take out and return the one at key, or of a slice, those."""
        found = self[key]
        del self[key]
        return found

    def __become(self, items: list[Any]) -> None:
        if wrong := [m for m in items if m is not None and not isinstance(m, Module)]:
            raise TypeError(f"ModuleList: module: got {type(wrong[0]).__name__}, expected a Module or None")
        for name, _ in slots_of(self, "module"):
            delattr(self, name)
        self.extend(items)

    def __place(self, index: int) -> int:
        i, n = operator.index(index), len(self)
        if not -n <= i < n:
            raise IndexError(f"{type(self).__name__}: index: got {i}, expected {-n} to {n - 1}")
        return i % n
