"""Where in a step the first number comes up that is infinite or not a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class FirstNonFinite:
    """Watches modules while it is entered, by hooks that change nothing.

    modules: what is watched, with all of its parts, by the name under which it is told. `found` says in words what came
    first, None where all is finite: the output of a module, or its input where nothing before it was at fault; or, on
    the way back, the gradient at a module's output, for which what comes after the module is to blame, or at one of its
    parameters, for which the module is.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.found: str | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FirstNonFinite:
        for root, whole in self.modules.items():
            for path, module in whole.named_modules():
                name = f"{root}.{path}" if path else root
                self._handles.append(module.register_forward_hook(partial(self._look, name)))
            for path, parameter in whole.named_parameters():
                if parameter.requires_grad:
                    self._handles.append(parameter.register_hook(self._noting(f"gradient of {root}.{path}")))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _look(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._note(f"input of {name}", tensors(inputs))
        self._note(f"output of {name}", tensors(output))
        for tensor in tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._noting(f"gradient at the output of {name}"))

    def _noting(self, what: str) -> Callable[[torch.Tensor], None]:
        return lambda gradient: self._note(what, [gradient])

    def _note(self, what: str, values: Iterable[torch.Tensor]) -> None:
        if self.found is None and not all(value.isfinite().all() for value in values):
            self.found = what


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors in a module's inputs or output, in lists, tuples and mappings too."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
