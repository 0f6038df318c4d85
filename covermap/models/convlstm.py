"""Convolutional LSTM over the steps of a sequence.

Shi et al. 2015, arXiv:1506.04214, without peepholes and with the conventions of Keras' ConvLSTM2D: "same" convolutions,
biases on the input's alone, the forget gate's of 1, an orthogonal kernel of the state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras' clip(0.2 x + 0.5, 0, 1); that of torch has a slope of 1/6."""
    return torch.clamp(0.2 * x + 0.5, 0, 1)


class ConvLSTM(nn.Module):
    """The last hidden state of a convolutional LSTM.

    The inputs of all steps and gates are convolved at once, so that a step costs one convolution of the state, for its
    four gates together; the first step, before which the state is zero, costs none.

    Parameters
    ----------
    channels, hidden
        Channels of the input and of the state.
    kernel
        Odd side of both convolutions.
    activation, gate
        Functions of the state and of the gates, (B, hidden, H, W) each.
    backwards
        Whether the last step comes first.
    dropout, recurrent_dropout
        Shares of the inputs and of the state that are dropped in training, the same ones in all steps (Gal & Ghahramani
        2016, arXiv:1512.05287). All gates see the same ones, since they are computed together; Keras drops for each.
    init
        Fills the kernel of the inputs.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int = 3,
        *,
        activation: Function = torch.tanh,
        gate: Function = torch.sigmoid,
        backwards: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        init: Callable[[Tensor], object] = nn.init.xavier_uniform_,
    ) -> None:
        super().__init__()
        self.activation, self.gate, self.backwards = activation, gate, backwards
        self.dropout, self.recurrent_dropout = dropout, recurrent_dropout
        # Rows of both kernels, as in Keras: input gate, forget gate, candidate, output gate.
        self.enter = nn.Conv2d(channels, 4 * hidden, kernel, padding=kernel // 2)
        self.recur = nn.Conv2d(hidden, 4 * hidden, kernel, padding=kernel // 2, bias=False)
        init(self.enter.weight)
        nn.init.orthogonal_(self.recur.weight)
        bias = torch.zeros(4, hidden)
        bias[1] = 1
        self.enter.bias = nn.Parameter(bias.flatten())  # (4*hidden,)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """State (B, hidden, H, W) after all steps of x (B, T, C, H, W).

        Where ``seen`` (B, T, H, W) is 0, a step leaves the state as it is.
        """
        x = self.dropper(x[:, :1], self.dropout)(x)
        # Steps before tiles, so that those of a step lie together, here and in the gradient.
        flat = x.permute(1, 0, 3, 4, 2).contiguous().flatten(0, 1).permute(0, 3, 1, 2)  # (T*B, C, H, W), channels last
        entered = self.enter(flat).unflatten(0, (x.shape[1], len(x))).unbind(0)  # T times (B, 4*hidden, H, W)
        drop = self.dropper(entered[0].chunk(4, 1)[0], self.recurrent_dropout)
        state = entered[0].new_zeros(())  # of any shape: before the first step both are zero
        cell = state.to(torch.promote_types(state.dtype, torch.float32))
        steps = range(x.shape[1])
        for step in reversed(steps) if self.backwards else steps:
            gates = entered[step] + self.recur(drop(state)) if state.ndim else entered[step]
            new_state, new_cell = self.advance(gates, cell)
            if seen is not None:
                now = seen[:, step, None] > 0  # (B, 1, H, W)
                new_state, new_cell = torch.where(now, new_state, state), torch.where(now, new_cell, cell)
            state, cell = new_state, new_cell
        return state

    def advance(self, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell state (B, hidden, H, W) after a step, from its gates (B, 4*hidden, H, W).

        The cell state is a sum over the steps, in which the rounding of bfloat16 would add up: it stays in float32.
        """
        enter, forget, new, leave = gates.chunk(4, 1)
        more = self.gate(enter) * self.activation(new)
        cell = self.gate(forget) * cell + more.to(cell.dtype)
        return (self.gate(leave) * self.activation(cell)).to(gates.dtype), cell

    def dropper(self, like: Tensor, share: float) -> Function:
        """What drops a share of the values in training, the same ones in each call."""
        if not self.training or share == 0:
            return lambda x: x
        return nn.functional.dropout(torch.ones_like(like), share).mul
