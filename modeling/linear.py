"""The product of a few rows with a large matrix, which is most of what a step of generation does for one sentence."""

import torch
from torch import nn
from torch.nn import functional as F

FEW_ROWS = 8
LARGE = 2**17  # weights


class Linear(nn.Linear):
    """torch's x W^T + b; for few rows and a large W on a CPU it is W x^T, of which each thread computes a part.

    What takes the time there is to read W, which MKL does with one thread, or, for several rows, more than once.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        weight, bias = self.weight, self.bias
        if self.in_features * self.out_features < LARGE or not multiplies_few_rows(input, weight):
            return F.linear(input, weight, bias)
        (width_out, width_in), threads = weight.shape, torch.get_num_threads()
        parts = threads if width_out % threads == 0 else 1
        columns = input.reshape(-1, width_in).T.expand(parts, -1, -1)
        weight = weight.reshape(parts, -1, width_in)
        if bias is None:
            product = torch.bmm(weight, columns)  # (parts, out_features / parts, rows)
        else:
            product = torch.baddbmm(bias.view(parts, -1, 1), weight, columns)
        return product.view(width_out, -1).T.contiguous().view(*input.shape[:-1], width_out)


def multiplies_few_rows(input: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this is a step of generation with MKL, and not part of what is trained, compiled or exported."""
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled())
        and weight.is_cpu
        and weight.dtype in (torch.float32, torch.float64)  # others are multiplied by oneDNN
        and torch.backends.mkl.is_available()
        and type(weight) is nn.Parameter  # and not one that is distributed or quantized, and multiplies by itself
        and 0 < input.numel() <= FEW_ROWS * input.shape[-1]
    )
