"""Squeeze and excitation: fields weighted by how much they matter in this row."""

from torch import Tensor, nn

from ctrkit.layers.tower import linear


class SENet(nn.Module):
    """FiBiNET's SENET layer (Huang et al. 2019)::

        z_i = mean of v_i over its dims                     squeeze
        a   = relu(W_2 relu(W_1 z))                         excitation, through fields / reduction units
        out = a_i v_i                                       re-weight

    ``[batch, fields, dim]`` -> the same shape.
    """

    def __init__(self, fields: int, reduction: int) -> None:
        super().__init__()
        units = max(1, fields // reduction)
        self.excitation = nn.Sequential(linear(fields, units, bias=False), nn.ReLU(), linear(units, fields, bias=False), nn.ReLU())

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors * self.excitation(vectors.mean(2)).unsqueeze(2)
