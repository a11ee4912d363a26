"""A network's weights without what wraps it: torch.compile's ``_orig_mod.``, DDP's ``module.``; tied ones once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from job.exit_status import ExitStatus, UserError

COMPILED = "_orig_mod"
SHOWN = 5  # names in a message


class OtherNetwork(UserError):
    """The checkpoint's weights are not those of this network."""

    status = ExitStatus.JOB_FAILED


def plain_module(model: nn.Module) -> nn.Module:
    """The network inside a compiled or distributed one."""
    while True:
        inner = model._modules.get(COMPILED)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def weights_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(name → tensor, name → the name of the tensor that it is tied to); safetensors holds each memory once."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in plain_module(model).state_dict().items():
        name = name.replace(f"{COMPILED}.", "")
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            tied[name] = seen[place]
            continue
        seen[place] = name
        # A copy where it is a view: two views of one memory would be refused too.
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        kept[name] = tensor.contiguous() if whole else tensor.clone().contiguous()
    return kept, tied


def load_weights(model: nn.Module, saved: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Put them into ``model``, compiled or not. Raises OtherNetwork where names or shapes are others."""
    weights = {name.replace(f"{COMPILED}.", ""): tensor for name, tensor in saved.items()}
    weights |= {name: weights[other] for name, other in tied.items()}
    network = plain_module(model)
    ours = {name.replace(f"{COMPILED}.", ""): name for name in network.state_dict()}
    shapes = network.state_dict()
    wrong = [f"{name} is missing" for name in ours if name not in weights]
    wrong += [f"{name} is not in this network" for name in weights if name not in ours]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, here {tuple(shapes[own].shape)}"
        for name, own in ours.items()
        if name in weights and weights[name].shape != shapes[own].shape
    ]
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise OtherNetwork(
            "the checkpoint is of another network (put what shapes it into config=):\n  "
            + "\n  ".join(wrong[:SHOWN])
            + more
        )
    network.load_state_dict({own: weights[name] for name, own in ours.items()})
