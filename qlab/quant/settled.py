"""What a module that holds codes or scales must not lose: the dtype of its tensors, and the settings that say what they mean.

    model.half()        turns every floating-point tensor of a model to half precision. A scale would keep 11 of its 24 bits (8 in
                        bfloat16), and one below 3e-8 would be 0. The tensors of a `Settled` module move to other devices and keep
                        their dtype.
    load_state_dict     compares names and shapes, and the codes of 4 bits have the shape of those of 8. A Settled module writes its
                        settings into the state dict, as a tensor like the rest, and refuses a state that was saved under others.
"""

import json

import torch
from torch import nn

KEY = "_extra_state"  # nn.Module's own name for what a state dict holds beside parameters and buffers


def as_tensor(settings: dict) -> torch.Tensor:
    """The settings as JSON text, one uint8 a byte: a tensor, so that any file of tensors can hold it. NumPy's integers become int.

    >>> as_settings(as_tensor({"bits": 4}))
    {'bits': 4}
    """
    return torch.tensor(list(json.dumps(settings, default=int).encode()), dtype=torch.uint8)


def as_settings(state: torch.Tensor, name: str = "the state") -> dict:
    """The inverse of as_tensor. Raises ValueError, with the name, for a tensor that is no such text."""
    try:
        settings = json.loads(bytes(state.tolist()))
    except (AttributeError, TypeError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{name} holds settings that cannot be read: save it again with state_dict().")
    return settings


class Settled(nn.Module):
    """A module whose tensors keep their dtype, and whose state dict fits only a module with the same `settings`.

    Loading raises ValueError, strict or not, before anything of this module is changed: for other settings, and for a tensor of another
    dtype (but a bias, which is no code and no scale).

    >>> class Step(Settled):
    ...     def __init__(self, bits):
    ...         super().__init__()
    ...         self.bits = bits
    ...         self.register_buffer("scale", torch.ones(()))
    ...     def settings(self):
    ...         return {"bits": self.bits}
    >>> Step(8).half().scale.dtype
    torch.float32
    >>> Step(8).load_state_dict(Step(4).state_dict())
    Traceback (most recent call last):
    ValueError: the state was saved with bits=4, and this Step has bits=8: load it into one that is like it.
    """

    settings_required = True  # False: a strict load takes a state that says nothing of its settings, tensors alone, as it is

    def settings(self) -> dict:
        """What the tensors mean, by name: numbers, text, None."""
        raise NotImplementedError

    def get_extra_state(self) -> torch.Tensor:
        return as_tensor(self.settings())

    def set_extra_state(self, state: torch.Tensor) -> None:
        pass  # they are equal, or loading would have stopped

    def _apply(self, fn, recurse=True):
        def moved(tensor):
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(moved, recurse)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *rest):
        name = f"the state of {prefix[:-1]}" if prefix else "the state"
        if prefix + KEY in state_dict:
            saved, own = as_settings(state_dict[prefix + KEY], name), self.settings()
            if other := [key for key in own if saved.get(key) != own[key]]:
                theirs, ours = (", ".join(f"{key}={found.get(key)!r}" for key in other) for found in (saved, own))
                raise ValueError(f"{name} was saved with {theirs}, and this {type(self).__name__} has {ours}: load it into one that "
                                 "is like it.")
        for key, tensor in [*self._parameters.items(), *self._buffers.items()]:
            given = state_dict.get(prefix + key)
            if tensor is not None and isinstance(given, torch.Tensor) and key != "bias" and given.dtype != tensor.dtype:
                raise ValueError(f"{name} holds {key} as {given.dtype}, and it must be {tensor.dtype}: save the state as state_dict() "
                                 "gives it.")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if not self.settings_required and prefix + KEY in missing_keys:
            missing_keys.remove(prefix + KEY)
