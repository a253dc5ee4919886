"""What autograd keeps."""

from collections.abc import Callable

import torch
from torch import Tensor


def bytes_kept(compute: Callable[[], Tensor]) -> int:
    """Bytes of the storages that `compute` keeps for its gradients."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(kept.values())
