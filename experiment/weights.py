"""Weights under the network's own names, without wrappers such as torch.compile and DDP."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from job.exit_status import ExitStatus, UserError

COMPILED = "_orig_mod"
SHOWN_DIFFERENCES = 5


class ModelMismatch(UserError):
    """The checkpoint's weights or optimizer state belong to a different network or optimizer."""

    status = ExitStatus.JOB_FAILED


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside torch.compile and DistributedDataParallel."""
    while True:
        inner = model._modules.get(COMPILED)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def original_name(name: str) -> str:
    """Return a parameter's name without the parts that torch.compile inserts."""
    return name.replace(f"{COMPILED}.", "")


def collect_weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, and for each tied name the name that holds its tensor.

    safetensors refuses to store the same memory twice.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[tuple[object, ...], str] = {}
    for wrapped_name, tensor in unwrap(model).state_dict().items():
        name = original_name(wrapped_name)
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in names:
            tied[name] = names[memory]
            continue
        names[memory] = name
        # Two views of one memory are refused too: copy a tensor that does not fill its storage.
        is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        tensors[name] = (tensor.clone() if is_view else tensor).contiguous()
    return tensors, tied


def load_weights(model: nn.Module, saved: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Copy the saved weights into ``model``, compiled or not.

    Raises ModelMismatch if a name or a shape differs; ``model`` is then unchanged.
    """
    weights = {original_name(name): tensor for name, tensor in saved.items()}
    weights |= {name: weights[other] for name, other in tied.items()}
    network = unwrap(model)
    state = network.state_dict()
    names = {original_name(name): name for name in state}
    errors = [f"{name} is missing" for name in names if name not in weights]
    errors += [f"{name} is not in this network" for name in weights if name not in names]
    errors += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(state[own].shape)}"
        for name, own in names.items()
        if name in weights and weights[name].shape != state[own].shape
    ]
    if errors:
        hidden = len(errors) - SHOWN_DIFFERENCES
        raise ModelMismatch(
            "the checkpoint belongs to a different network:\n  "
            + "\n  ".join(errors[:SHOWN_DIFFERENCES])
            + (f"\n  and {hidden} more" if hidden > 0 else "")
            + "\nput everything that shapes the network into config=, and use a different --name"
        )
    network.load_state_dict({own: weights[name] for name, own in names.items()})
