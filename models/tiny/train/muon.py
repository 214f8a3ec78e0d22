"""Muon for every matrix-like weight, convolutions included.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".

``torch.optim.Muon`` takes two-dimensional weights only; a convolution's kernel is a matrix from all its inputs to its
outputs, and most of the embedded denoiser's weights are such kernels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MINIMUM_SIDE = 16  # thinner weights have no spectrum worth flattening


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to ``matrix`` ``[m, n]``, roughly: singular values end within 0.7 .. 1.2.

    Newton-Schulz iteration with the quintic coefficients of the publication, in bfloat16, whose errors it forgives.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised and scaled to AdamW's usual size (``0.2 sqrt(max(m, n))``).

    Args:
        weights: parameters of two or more dimensions; further ones than the first are taken together.
        lr, momentum, weight_decay: as usual; Nesterov momentum, decoupled decay.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(momentum, group["momentum"]).reshape(len(weight), -1)
                update = orthogonalised(update) * (0.2 * max(update.shape) ** 0.5)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view_as(weight), alpha=-group["lr"])


def matrices(modules: nn.Module) -> list[Tensor]:
    """Trained weights of linear and convolutional layers that are no thinner than ``MINIMUM_SIDE`` either way."""
    layers = [m for m in modules.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return [
        layer.weight
        for layer in layers
        if layer.weight.requires_grad and min(len(layer.weight), layer.weight[0].numel()) >= MINIMUM_SIDE
    ]
