"""BatchNorm whose statistics span all ranks, on GPU and CPU.

Shape letters: B rows on this rank, C channels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dcd_core._precision import at_least_float32

ModelT = TypeVar("ModelT", bound=nn.Module)


def synchronise_batch_norm(model: ModelT, group: dist.ProcessGroup | None = None) -> ModelT:
    """Make every BatchNorm of a model compute its training statistics over all ranks.

    Names, parameters, buffers and hooks stay. A model on a GPU gets ``torch.nn.SyncBatchNorm``;
    one on the CPU, which that class does not support, gets ``SynchronisedBatchNorm``. Move the
    model to its device first.

    Args:
        model: changed in place.
        group: the ranks; by default all.

    Returns:
        The model.
    """
    parameter = next(model.parameters(), None)
    on_gpu = parameter is not None and parameter.is_cuda
    synchronised = nn.SyncBatchNorm if on_gpu else SynchronisedBatchNorm
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            # The class changes, not the object: its hooks and its other users stay valid.
            object.__setattr__(module, "__class__", synchronised)
            object.__setattr__(module, "process_group", group)
    return model


def is_synchronised(model: nn.Module) -> bool:
    """Whether any BatchNorm of the model computes its statistics over all ranks."""
    return any(isinstance(m, (nn.SyncBatchNorm, SynchronisedBatchNorm)) for m in model.modules())


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over all ranks: one all-gather forward, one all-reduce backward.

    In eval mode, or without a process group of more than one rank, it is plain BatchNorm. A rank
    may hold no rows. The gradients of weight and bias are those of the own rows, for DDP to reduce.

    Attributes:
        process_group: the ranks, or None for all.
    """

    process_group: dist.ProcessGroup | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel.

        Raises:
            ValueError: there is only one value per channel over all ranks.
        """
        if not (self.training and _num_ranks(self.process_group) > 1):
            return super().forward(input)
        output, mean, var, count = _NormaliseOverRanks.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        self._track(mean, var * (count / (count - 1)))
        normalised: Tensor = output
        return normalised

    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # kept wherever running statistics are
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            # Momentum None is a plain average over all batches.
            share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            self.running_mean += share * (mean.to(self.running_mean.dtype) - self.running_mean)
            self.running_var += share * (unbiased_var.to(self.running_var.dtype) - self.running_var)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs an input (B, C, ...), not {input.dim()} dimensions")


class _NormaliseOverRanks(torch.autograd.Function):
    """Normalisation by the mean and variance of all ranks' values.

    With x' = (x - mean) / std and means over all M values of a channel (Ioffe & Szegedy 2015):
    dx = weight / std * (dy - mean(dy) - x' mean(dy x')).
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = at_least_float32(input)
        mean, var, count = _global_statistics(x, group)
        inverse_std = (var + eps).rsqrt().to(x.dtype)  # (C,)
        centred = (x - _per_channel(mean.to(x.dtype), x)) * _per_channel(inverse_std, x)
        ctx.save_for_backward(centred, inverse_std, weight, count)
        ctx.group = group
        output = centred
        if weight is not None:
            output = output * _per_channel(weight.to(x.dtype), x)
        if bias is not None:
            output = output + _per_channel(bias.to(x.dtype), x)
        ctx.mark_non_differentiable(mean, var, count)
        return output.to(input.dtype, copy=output is centred), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor, *_: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        centred, inverse_std, weight, count = ctx.saved_tensors
        grad = grad_output.to(centred.dtype)
        dims = _all_but_channel(grad)
        grad_sum = grad.sum(dims)  # (C,)
        grad_centred_sum = (grad * centred).sum(dims)  # (C,)
        grad_input = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([grad_sum, grad_centred_sum]).double()  # (2, C)
            dist.all_reduce(sums, group=ctx.group)
            grad_mean, grad_centred_mean = (sums / count).to(grad.dtype).unbind()
            scale = inverse_std if weight is None else inverse_std * weight.to(grad.dtype)
            grad_input = _per_channel(scale, grad) * (
                grad
                - _per_channel(grad_mean, grad)
                - centred * _per_channel(grad_centred_mean, grad)
            )
            grad_input = grad_input.to(grad_output.dtype)
        return (
            grad_input,
            grad_centred_sum.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            grad_sum.to(weight.dtype) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _global_statistics(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () of each channel over all ranks, in float64.

    Each rank's mean and squared deviations are combined as in Chan, Golub & LeVeque (1979), which
    loses no digits where the mean is large, as the difference of two sums of squares would.
    """
    channels = x.shape[1]
    own_count = x.numel() // channels
    own = x.new_zeros(2 * channels + 1, dtype=torch.float64)
    own[-1] = own_count
    if own_count > 0:
        var, mean = torch.var_mean(x, _all_but_channel(x), correction=0)
        own[:-1] = torch.cat([mean, var])
    ranks = [torch.empty_like(own) for _ in range(_num_ranks(group))]
    dist.all_gather(ranks, own, group=group)
    gathered = torch.stack(ranks)  # (ranks, 2C + 1)
    means, variances, counts = gathered.split([channels, channels, 1], dim=1)
    count = counts.sum()
    if count <= 1:
        raise ValueError(
            f"BatchNorm needs more than 1 value per channel over all ranks, got {int(count)} "
            f"from inputs such as {tuple(x.shape)}"
        )
    mean = (counts * means).sum(0) / count  # (C,)
    var = (counts * (variances + (means - mean).square())).sum(0) / count  # (C,)
    return mean, var, count


def _num_ranks(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _all_but_channel(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))
