"""One training in several processes, which torchrun starts: each holds the whole network, or a share of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipway.connect.drop import Dropper
from skipway.errors import SkipwayError, choose
from skipway.torchrun import on_this_machine, processes

STRATEGIES = ("ddp", "fsdp")


def share_of(batch_size: int) -> int:
    """How many examples of a batch each process sees; raises SkipwayError where they do not divide."""
    if batch_size % processes():
        raise SkipwayError(
            f"a batch of {batch_size} does not divide among {processes()} processes: choose another batch_size"
        )
    return batch_size // processes()


def agree(value: Any) -> Any:
    """What the first process says, in all of them."""
    if processes() == 1:
        return value
    import atexit

    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    said = [value]
    dist.broadcast_object_list(said, 0, device=torch.device("cpu"))
    return said[0]


def check_processes(strategy: str) -> None:
    """Raise SkipwayError for a strategy that there is not, or that takes more processes than one."""
    if choose("strategy", strategy, STRATEGIES) == "fsdp" and processes() == 1:
        raise SkipwayError(
            "strategy fsdp divides a network among several processes, and this is a single one: "
            "start it with torchrun --nproc-per-node 2 -m skipway ..., or leave the strategy out"
        )


def check_strategy(strategy: str, network: nn.Module, compiled: bool) -> None:
    """Raise SkipwayError where a network cannot be trained as "ddp" or "fsdp" in the processes that there are."""
    check_processes(strategy)
    if strategy == "ddp":
        return
    if any(isinstance(module, Dropper) and module.rate and module.mode == "batch" for module in network.modules()):
        raise SkipwayError(
            "stochastic depth leaves a branch out in one process and not in another, and under fsdp each needs its "
            "share of every branch from the others: use strategy ddp, or the skip 'stochastic-depth-row'"
        )
    if compiled:
        raise SkipwayError("a compiled network is not divided among processes: leave compile out, or use strategy ddp")


def trainer_options(strategy: str, network: nn.Module) -> dict[str, Any]:
    """What Lightning's Trainer needs to know of the processes that torchrun started; nothing where it did not."""
    local = on_this_machine()
    if local is None:
        return {}
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    if strategy == "fsdp":
        # A checkpoint is one file, whole, so that any number of processes can go on with it.
        chosen = ModelParallelStrategy(processes(), 1, save_distributed_checkpoint=False)
    else:
        from skipway.edit import history

        # A branch that stochastic depth leaves out has no gradient to exchange, nor has a projection that was cut.
        unused = any(isinstance(module, Dropper) for module in network.modules()) or bool(history(network))
        chosen = DDPStrategy(find_unused_parameters=unused)
    return {"strategy": chosen, "devices": local, "num_nodes": processes() // local}


def shard(network: nn.Module, mesh: Any, run: Callable[[], None]) -> None:
    """Divide parameters, gradients and optimizer state among the processes of a mesh (FSDP; Zhao et al. 2023,
    arXiv:2304.11277), block by block; `run` passes something through the network.

    Numbers that are parameters by themselves cannot be divided, and stay whole in every process.
    """
    from torch.distributed.fsdp import fully_shard

    units = _units(network, run)
    # Shares are cut from memory as it lies.
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for unit in units:
        fully_shard(unit, mesh=mesh, ignored_params=set(_numbers(unit)))
    fully_shard(network, mesh=mesh, ignored_params=set(_numbers(network)))


def is_sharded(network: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def mean_numbers(network: nn.Module) -> None:
    """The gradients of what `shard` left whole, which nothing else averages over the processes."""
    import torch.distributed as dist

    gradients = [number.grad for number in _numbers(network) if number.grad is not None]
    if gradients:
        together = torch.stack(gradients)
        dist.all_reduce(together)
        for gradient, mean in zip(gradients, together / dist.get_world_size(), strict=True):
            gradient.copy_(mean)


def clip(network: nn.Module, longest: float) -> None:
    """Bring the gradient of a divided network to a length, where it is longer."""
    import torch.distributed as dist

    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    shares = [local(parameter.grad) for parameter in parameters if parameter.ndim]  # pyright: ignore
    square = torch.stack([share.float().square().sum() for share in shares]).sum()
    dist.all_reduce(square)
    whole = [parameter.grad for parameter in parameters if not parameter.ndim]
    square = square + sum(gradient.square() for gradient in whole if gradient is not None)
    factor = (longest / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for share in [*shares, *whole]:
        share.mul_(factor)  # pyright: ignore[reportOptionalMemberAccess]


def length(gradient: Tensor) -> float:
    """The norm of a gradient; of one that is divided, all processes ask for it together."""
    import torch.distributed as dist

    share = local(gradient)
    if share is gradient:
        return float(gradient.norm())
    square = share.float().square().sum()
    dist.all_reduce(square)
    return float(square.sqrt())


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first, such as running statistics, as DDP does."""
    import torch.distributed as dist

    for buffer in network.buffers():
        dist.broadcast(buffer, 0)


def whole_state(network: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a network; of one that is divided, gathered: all processes call this, and the first has them."""
    if not is_sharded(network):
        return network.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(network, options=options)  # pyright: ignore[reportReturnType]


def local(value: Tensor) -> Tensor:
    """The share of a tensor that this process holds."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def _numbers(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.ndim == 0]


def _units(network: nn.Module, run: Callable[[], None]) -> list[nn.Module]:
    """The blocks that can be gathered one by one: entries of lists whose parameters are used while they run alone."""
    found = [unit for unit in _entries(network) if any(parameter.ndim > 1 for parameter in unit.parameters())]
    owners: dict[int, nn.Module | None] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owner = next((unit for unit in found if _holds(network, unit, name)), None)
        # What two blocks share belongs to neither.
        owners[id(parameter)] = owner if owners.get(id(parameter), owner) is owner else None
    shared = {id(unit) for unit in found for p in unit.parameters() if owners[id(p)] is not unit}
    watch = _Watch(owners)
    with watch.over(found):
        run()
    return [unit for unit in found if unit in watch.ran and unit not in watch.used_outside and id(unit) not in shared]


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    listed = isinstance(module, (nn.ModuleList, nn.Sequential))
    for child in module.children():
        if listed and not isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield child
        else:
            yield from _entries(child)


def _holds(network: nn.Module, unit: nn.Module, name: str) -> bool:
    module = network
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
        if module is unit:
            return True
    return False


class _Watch(TorchFunctionMode):
    """Which blocks run, and whose parameters something uses while they do not."""

    def __init__(self, owners: Mapping[int, nn.Module | None]) -> None:
        super().__init__()
        self.owners = owners
        self.running: set[nn.Module] = set()
        self.ran: set[nn.Module] = set()
        self.used_outside: set[nn.Module] = set()

    @contextlib.contextmanager
    def over(self, units: list[nn.Module]) -> Iterator[None]:
        hooks = [unit.register_forward_pre_hook(lambda module, _: self._enter(module)) for unit in units]
        hooks += [unit.register_forward_hook(lambda module, *_: self.running.discard(module)) for unit in units]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module) -> None:
        self.ran.add(module)
        self.running.add(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for one in value if isinstance(value, (list, tuple)) else (value,):
                owner = self.owners.get(id(one))
                if owner is not None and owner not in self.running:
                    self.used_outside.add(owner)
        return func(*args, **(kwargs or {}))
