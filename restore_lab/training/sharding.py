"""Training with every weight cut into pieces, one a device (FSDP2), the frozen prior's too. `trainer=fsdp`.

Lightning's ModelParallelStrategy opens the processes; here the blocks of denoiser and trunk become units that are put
together when they run, and the rest of the module is one more. The text encoders stay whole: they run for texts that a
process has not met yet, and a piece cannot be had from one that does not run. A checkpoint is the same file that one
process writes: whole tensors, the trained ones alone; so a run that began on one device goes on sharded, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from restore_lab.methods.speed import UNITS

if TYPE_CHECKING:
    import lightning as L
    from torch.distributed.device_mesh import DeviceMesh

CALLED = ("training_step", "validation_step")


class Sharded(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes; checkpoints hold whole tensors.

    Attributes:
        lockstep: all processes must run the same batches, in validation too, where some would have one more.
    """

    lockstep = True

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return _map_tensors(Strategy.lightning_module_state_dict(self), whole)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return _map_tensors(Strategy.optimizer_state(self, optimizer), whole)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module: Any = self.lightning_module
        with torch.no_grad():
            for name, p in module.trainable().items():
                p.copy_(like(checkpoint["state_dict"][name], p))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            cut = {i: _map_tensors(kept, lambda t, p=params[i]: _cut(t, p)) for i, kept in state["state"].items()}
            optimizer.load_state_dict({**state, "state": cut})


def shard(module: L.LightningModule, mesh: DeviceMesh) -> None:
    """Cut the module's weights over the devices of a mesh, unit by unit, in place.

    Raises:
        ValueError: for a module that steps its optimisers itself.
    """
    if not module.automatic_optimization:
        raise ValueError(f"{type(module).__name__} steps its optimisers itself, which trainer=fsdp does not; use ddp")
    module.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other; pyright: ignore[reportCallIssue]
    for unit in [part for part in module.modules() if type(part).__name__ in UNITS]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    text = {p for name, p in module.named_parameters() if ".text." in f".{name}"}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=text)
    for name in CALLED:
        register_fsdp_forward_method(module, name)


def gather(module: L.LightningModule) -> None:
    """Bring a trained module's weights to the CPU, whole, in place; training is over then. All processes call it."""
    if not any(isinstance(p, DTensor) for p in module.parameters()):
        module.cpu()
        return
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            if isinstance(p, DTensor):
                if id(p) not in made:
                    made[id(p)] = nn.Parameter(whole(p.detach()).cpu(), requires_grad=p.requires_grad)
                part._parameters[name] = made[id(p)]


def whole(value: Tensor) -> Tensor:
    """All of a tensor that may be in pieces; all processes call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, p: Tensor) -> Tensor:
    """A tensor, whole or cut already, on the device of a parameter, and cut as that is."""
    if not isinstance(p, DTensor) or isinstance(value, DTensor):
        return value.to(p.device)
    return distribute_tensor(value.to(p.device), p.device_mesh, p.placements)


def _cut(value: Tensor, p: Tensor) -> Tensor:
    """A tensor of the optimiser: cut if it has a number for each of the parameter's, not if it counts steps."""
    return like(value, p) if value.shape == p.shape else value


def _map_tensors(value: Any, change: Any) -> Any:
    """A nest of dicts and lists with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_map_tensors(entry, change) for entry in value]
    return value
