"""Characters that a net does not get to see in training (Xie et al., 2017, sec. 3.2).

A net trained for many epochs on few items learns strings by heart: after "emm" comes "a". Where a
few characters are blanked, it cannot rely on any single one and must use what the others say. This
is to a net what smoothing is to an n-gram, which also asks: and if I knew less of the context?
"""

import torch
from torch import Tensor


def blank(ids: Tensor, share: float, blank_id: int, first: Tensor) -> Tensor:
    """Replace a `share` of `ids` (any shape) by `blank_id`, except where `first` is True.

    An item's first id is the boundary, which is always there; the targets stay as they are. The
    choice is drawn from torch's global generator.
    """
    hidden = (torch.rand(ids.shape, device=ids.device) < share).logical_and_(~first)
    return ids.masked_fill(hidden, blank_id)
