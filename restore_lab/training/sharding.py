"""Training with all weights sharded over the devices (FSDP2), including those of the frozen prior. `trainer=fsdp`.

Lightning's ModelParallelStrategy starts the processes; here each block of denoiser and trunk becomes a unit, which is
gathered when it runs, and the rest of the module is another unit. The text encoders are not sharded: a process runs
them only for texts that it has not cached, and gathering needs all processes. A checkpoint is the same as without
sharding, full tensors of the trainable parameters, so a run can be resumed on another number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from restore_lab.methods.speed import BLOCK_TYPES
from restore_lab.methods.trainable import trainable_parameters

if TYPE_CHECKING:
    import lightning as L
    from torch.distributed.device_mesh import DeviceMesh

_FORWARD_METHODS = ("training_step", "validation_step")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes, with full tensors in checkpoints.

    Attributes:
        lockstep: all processes must run equally many batches, also in validation, where some would have one more.
    """

    lockstep = True

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return _map_tensors(Strategy.lightning_module_state_dict(self), full_tensor)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return _map_tensors(Strategy.optimizer_state(self, optimizer), full_tensor)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        with torch.no_grad():
            for name, p in trainable_parameters(module).items():
                p.copy_(distribute_like(checkpoint["state_dict"][name], p))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                index: _map_tensors(moments, lambda value, p=params[index]: _shard_state(value, p))
                for index, moments in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})


def shard(module: L.LightningModule, mesh: DeviceMesh) -> None:
    """Shard a module's weights over the devices of a mesh, unit by unit, in place.

    Raises:
        ValueError: for a module with manual optimisation.
    """
    if not module.automatic_optimization:
        raise ValueError(f"{type(module).__name__} steps its optimisers itself, which trainer=fsdp does not; use ddp")
    any_module: Any = module  # torch's annotations of `to` lack memory formats
    any_module.to(memory_format=torch.contiguous_format)  # the only format that FSDP2 supports
    for unit in [part for part in module.modules() if type(part).__name__ in BLOCK_TYPES]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    text = {p for name, p in module.named_parameters() if ".text." in f".{name}"}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=text)
    for name in _FORWARD_METHODS:
        register_fsdp_forward_method(module, name)


def gather_weights(module: L.LightningModule) -> None:
    """Gather a module's weights as full tensors on the CPU, in place, after training; a collective."""
    if not any(isinstance(p, DTensor) for p in module.parameters()):
        module.cpu()
        return
    gathered: dict[int, nn.Parameter] = {}  # parameters may be shared
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            if isinstance(p, DTensor):
                if id(p) not in gathered:
                    gathered[id(p)] = nn.Parameter(full_tensor(p.detach()).cpu(), requires_grad=p.requires_grad)
                part._parameters[name] = gathered[id(p)]


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor of one that may be sharded; a collective."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def distribute_like(value: Tensor, p: Tensor) -> Tensor:
    """A tensor on the device of a parameter, sharded like it."""
    if not isinstance(p, DTensor) or isinstance(value, DTensor):
        return value.to(p.device)
    return distribute_tensor(value.to(p.device), p.device_mesh, p.placements)


def _shard_state(value: Tensor, p: Tensor) -> Tensor:
    """A tensor of the optimiser's state: sharded like the parameter if it has its shape, unlike the step count."""
    return distribute_like(value, p) if value.shape == p.shape else value


def _map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A nest of dicts and lists with `fn` applied to every tensor."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(entry, fn) for key, entry in value.items()}
    if isinstance(value, list):
        return [_map_tensors(entry, fn) for entry in value]
    return value
