"""Module: a tree of parameters with torch's names for walking, saving and loading it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import Tensor, as_array, no_grad
from tinygrad_llm.autograd.modes import active_recorder


class Parameter(Tensor):
    """A leaf that requires grad; a Module finds it among its attributes."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None) -> None:
        self._begin(as_array(data, dtype))
        self.requires_grad_(requires_grad)


class LoadResult(NamedTuple):
    """What load_state_dict(strict=False) did not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A function with parameters. Subclasses set Parameters and Modules as attributes and define `forward`."""

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module computes."""
        raise TypeError(f"{type(self).__name__}: got a call, expected a subclass that defines forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder = active_recorder()
        return self.forward(*args, **kwargs) if recorder is None else recorder.run_module(self, args, kwargs)

    # Walking ---------------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules one level down, with the attribute each is under."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def children(self) -> Iterator[Module]:
        """The modules one level down."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module ("") and all below it, by dotted name, parents first."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def _all_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), a shared one once, under its first name."""
        seen: set[int] = set()
        for name, parameter in self._all_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Each parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def num_parameters(self) -> int:
        """Number of numbers that training changes; shared ones count once."""
        return sum(p.numel() for p in self.parameters())

    def apply(self, function: Callable[[Module], Any]) -> Module:
        """Call function on every module, children first."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # State -----------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Module:
        """Switch dropout on (or off) in this module and all below it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """train(False)"""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or (set_to_none=False) set them to zero."""
        for p in self.parameters():
            p.grad = None if set_to_none or p.grad is None else Tensor.from_array(np.zeros(p.shape, p.dtype))

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze (False) or thaw every parameter."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """name → a copy of the values. A shared parameter appears under each of its names, as in torch."""
        return {name: p.numpy().copy() for name, p in self._all_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy values into the parameters by name; everything is checked before anything is written.

        Errors: KeyError for names missing or unexpected (where strict), ValueError for a shape that differs or for two
        different values for one shared parameter.
        """
        own = dict(self._all_parameters())
        missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
        if strict and (missing or unexpected):
            raise StateKeyError(f"load_state_dict: got {len(missing)} missing names {missing[:3]} and {len(unexpected)} "
                                f"unexpected {unexpected[:3]}, expected the names of {type(self).__name__}.state_dict()")
        arrays = {name: np.asarray(state[name]) for name in own if name in state}
        self._check_state(own, arrays)
        with no_grad():
            for name, array in arrays.items():
                own[name].copy_(array)
        return LoadResult(missing, unexpected)

    def _check_state(self, own: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray]) -> None:
        first: dict[int, str] = {}
        for name, array in arrays.items():
            if array.shape != own[name].shape or array.dtype.kind != "f":
                raise ValueError(f"load_state_dict: {name}: got shape {array.shape} of {array.dtype}, "
                                 f"expected {own[name].shape} of {own[name].dtype}")
            other = first.setdefault(id(own[name]), name)
            if not np.array_equal(array, arrays[other], equal_nan=True):
                raise ValueError(f"load_state_dict: {name}: got values that differ from {other}, expected one shared tensor")

    # Looking ---------------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What a line of the printed tree says of the module itself."""
        return ""

    def __repr__(self) -> str:
        return "\n".join(self._lines("", set()))

    def _lines(self, name: str, seen: set[int]) -> Iterator[str]:
        own = [f"{n} {list(v.shape)}" + (" (shared)" if id(v) in seen else "") for n, v in vars(self).items()
               if isinstance(v, Parameter)]
        seen.update(id(v) for v in vars(self).values() if isinstance(v, Parameter))
        label = f"{name}: " * bool(name) + type(self).__name__
        note = "  ".join(part for part in (self.extra_repr(), ", ".join(own)) if part)
        yield f"{label:<34}{self.num_parameters():>12,}  {note}".rstrip()
        for child_name, child in self.named_children():
            yield from (f"  {line}" for line in child._lines(child_name, seen))


class StateKeyError(KeyError, ValueError):
    """A state dict whose names are not the module's."""

    def __str__(self) -> str:
        return str(self.args[0])


class ModuleList(Module):
    """Modules under the names 0, 1, 2, ..."""

    def __init__(self, modules: Any = ()) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Any]:
        return self.children()

    def __len__(self) -> int:
        return len(list(self.children()))

    def __getitem__(self, index: int) -> Any:
        return list(self.children())[index]
