"""The network that is inside what a user has: out of its wrappings, in float32 and eval mode, or refused."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convlens.errors import ModelError
from convlens.instrument import private_tree

# What the layers of a network that does not fit its input raise, in practice (timm asserts sizes).
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network within DataParallel, DistributedDataParallel, torch.compile or AveragedModel."""
    while True:
        within = getattr(module, "_orig_mod", None)
        if within is None and isinstance(module, _WRAPPERS):
            within = module.module
        if not isinstance(within, nn.Module):
            return module
        module = within


def private_copy(module: nn.Module) -> nn.Module:
    """The network in eval mode, in float32, none of its parameters requiring a gradient; weights are shared.

    Its layers are out of their wrappings, and scripted ones in one of ours (``Scripted``). Only weights of another
    width, or on another device than the CPU, are copied. ModelError as ``require_computable`` raises it.
    """
    require_computable(module)
    tree = _opened(private_tree(unwrapped(module)), {})
    shared: dict[int, nn.Parameter] = {}
    for part in tree.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue  # a copy already
        for name, parameter in part._parameters.items():
            if parameter is not None:
                # Of a weight that is used at two places there must stay one.
                own = shared.setdefault(
                    id(parameter), nn.Parameter(parameter.detach().cpu().float(), requires_grad=False)
                )
                part._parameters[name] = own
        for name, buffer in part._buffers.items():
            if buffer is not None:
                buffer = buffer.detach().cpu()
                part._buffers[name] = buffer.float() if buffer.is_floating_point() else buffer
    return _in_eval_mode(tree)


def for_inference(module: nn.Module) -> nn.Module:
    """The same for a network that nobody else holds: its own layers are changed."""
    require_computable(module)
    network = _in_eval_mode(_opened(unwrapped(module), {})).float()
    for parameter in network.parameters():
        # Gradients are by the image: those of the parameters would only cost time and memory.
        parameter.requires_grad_(False)
    return network


class Scripted(nn.Module):
    """A copy of a scripted or traced layer: what is in it cannot be seen, and what it gives can.

    Hooks on a scripted module are never called; those on this one are.
    """

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        with torch.no_grad():  # or its copied weights would be computed from the others, and keep their gradients
            self.network = copy.deepcopy(network).float().cpu()
        if hasattr(self.network, "training"):  # a frozen one has no modes
            self.network.eval()
        for parameter in self.network.parameters():
            parameter.detach_().requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # its __deepcopy__ would copy the scripted module alone, out of this one
                raise
            return getattr(super().__getattr__("network"), name)


def _opened(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """The tree with each of its layers out of its wrappings; scripted ones are copied, and wrapped as ``Scripted``."""
    module = unwrapped(module)
    if id(module) not in known:
        if isinstance(module, Scripted):
            known[id(module)] = module
        elif isinstance(module, torch.jit.ScriptModule):
            known[id(module)] = Scripted(module)
        else:
            known[id(module)] = module
            # What Module.compile leaves behind is called instead of forward, and without hooks.
            module.__dict__.pop("_compiled_call_impl", None)
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _opened(child, known)
    return known[id(module)]


def _in_eval_mode(network: nn.Module) -> nn.Module:
    try:
        return network.eval()
    except NotImplementedError:
        # What torch.export gives has the mode that it was exported in, and refuses to be asked.
        for part in network.modules():
            vars(part).pop("eval", None)
            vars(part).pop("train", None)
            part.training = False
        return network


def require_computable(module: nn.Module) -> None:
    """ModelError for weights without values (meta, lazy) and for quantised layers, with what to do."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{name} has no shape yet: its lazy layer has seen no image; run one batch through the network first"
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device, which holds shapes and no values; load the weights first "
                "(module.to_empty(device='cpu'), then load_state_dict)"
            )
        if tensor.is_quantized:
            raise ModelError(_quantised(name, "a quantised tensor"))
    for name, part in module.named_modules():
        if ".quantized" in type(part).__module__ or ".quantizable" in type(part).__module__:
            raise ModelError(_quantised(name or "the network", type(part).__name__))
        if isinstance(part, torch.jit.ScriptModule) and _calls_quantised(part):
            raise ModelError(_quantised(name or "the network", "scripted, with quantised steps"))


def _calls_quantised(part: torch.jit.ScriptModule) -> bool:
    return hasattr(part, "inlined_graph") and "quantized::" in str(part.inlined_graph)


def _quantised(name: str, what: str) -> str:
    return (
        f"{name} is quantised ({what}): its answers move in steps, depend on the other images of a batch where it is "
        "quantised dynamically, and no gradient passes it; wrap the float network that it was made from"
    )


def is_scripted(module: nn.Module) -> bool:
    """Whether any part of the network is a scripted or traced one."""
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def holds(module: nn.Module, tensor: Tensor) -> bool:
    """Whether the tensor lies in memory that the network keeps: a buffer, a weight or a plain attribute."""
    own = tensor.untyped_storage().data_ptr()
    kept = (value for part in module.modules() for value in (*part._buffers.values(), *vars(part).values()))
    tensors = (*module.parameters(), *(value for value in kept if isinstance(value, Tensor)))
    return any(each.untyped_storage().data_ptr() == own for each in tensors)
