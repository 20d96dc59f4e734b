"""A network that reads the last few characters (Bengio, Ducharme, Vincent & Jauvin, 2003, JMLR 3).

Counting cannot use what it has never counted: a context of three characters is one of 19,683
strings to an n-gram, each on its own. Here every character is a point in a small space that is
learned along with the rest (the paper's matrix C), so that contexts whose characters play the same
part lie near each other and share what was learned.

    . . e m   ->  four embeddings, side by side  ->  hidden layers  ->  scores of a, b, ..., .

Shapes: B batch, T time, N places whose scores are wanted, V = vocab_size, K = block_size
characters of context, C = n_embd, H = n_hidden.

The file also holds what makes deep ones trainable, as in Karpathy's makemore part 3 (activations
and batch norm): the scale of the first weights, chosen by name, and batch normalisation.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.data import BOUNDARY, context_windows
from makemore.model import CharacterModel
from makemore.noising import blank

InitName = Literal["naive", "xavier", "he"]
ActivationName = Literal["tanh", "relu"]

# What a layer's weights are multiplied by so that its outputs spread like its inputs. relu drops
# half of the power, hence sqrt(2) (He et al., 2015, eq. 10). tanh squashes: 5/3 is the value at
# which a deep stack of them settles at a spread of about 0.65 and neither fades nor saturates.
GAINS: dict[ActivationName, float] = {"tanh": 5 / 3, "relu": math.sqrt(2)}
ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
# The output layer's first weights, from part 3: scores near zero say "all alike", so that the
# first loss is log V and no step is spent on taking back confident nonsense.
HEAD_STD = 0.01


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The shape of an `MLP` and its start; the defaults are those of part 2 (MLP)."""

    vocab_size: int = 27
    """Characters and the boundary."""
    block_size: int = 3
    """Characters of context."""
    n_embd: int = 10
    """Numbers that stand for a character."""
    n_hidden: int = 200
    """Units of a hidden layer."""
    n_layer: int = 1
    """Hidden layers."""
    batch_norm: bool = False
    """Normalise what goes into each activation over the batch."""
    init: InitName = "he"
    """First weights: naive (standard normal), xavier (Glorot & Bengio) or he (He et al.)."""
    activation: ActivationName = "tanh"
    """What bends each hidden layer: tanh or relu."""
    dropout: float = 0.0
    """Share of the embedded context's numbers and of hidden units zeroed in training (0 to 1)."""
    noise: float = 0.0
    """Share of characters read as a blank in training (0 to 1; see `noising`)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_embd", "n_hidden", "n_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("dropout", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 0 and below 1; try 0.1"
                )
        for name, known in (("init", ("naive", "xavier", "he")), ("activation", tuple(GAINS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(known)}")


class BatchNorm1d(nn.Module):
    """Normalise each feature over the batch, then scale and shift it (Ioffe & Szegedy, 2015).

        y = weight * (x - mean) / sqrt(var + eps) + bias                                  (alg. 1)

    In training, mean and variance are those of the N rows; running averages of them are kept, and
    are what evaluation takes, so that then no row depends on another (alg. 2). A single row has
    no variance: it is normalised by the running averages in training as well.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.register_buffer("running_mean", torch.zeros(n_features))
        self.register_buffer("running_var", torch.ones(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, n_features) to the same shape."""
        x = x.to(self.running_mean.dtype)  # bf16, under autocast, is too coarse for averages
        if self.training and len(x) > 1:
            mean = x.mean(0)
            x = x - mean
            var = x.square().mean(0)  # faster than torch.var_mean here
            self.remember(mean.detach(), var.detach(), len(x))
        else:
            x, var = x - self.running_mean, self.running_var
        # Scale by one row instead of dividing N of them.
        return torch.addcmul(self.bias, x, self.weight * (var + self.eps).rsqrt())

    def remember(self, mean: Tensor, var: Tensor, rows: int) -> None:
        """Move the running averages towards this batch's.

        The variance of a sample is too small by (rows - 1) / rows on average; what evaluation
        needs is that of the population (alg. 2, line 10).
        """
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (rows / (rows - 1)), self.momentum)


@torch.no_grad()
def initialise(linear: nn.Linear, init: InitName, activation: ActivationName) -> None:
    """Draw the first weights of a hidden layer; the names are explained in `MLPConfig`.

    A unit adds up `fan_in` products, so its variance is fan_in * var(weight) * var(input): naive
    weights of variance 1 make it fan_in times too large, and tanh saturates. `he` keeps the spread
    on the way forward; `xavier` compromises between that and the spread of gradients on the way
    back, which add up fan_out products.
    """
    gain, (fan_out, fan_in) = GAINS[activation], linear.weight.shape
    if init == "naive":
        linear.weight.normal_()
    elif init == "xavier":  # Glorot & Bengio (2010), eq. 16; its uniform density too
        bound = gain * math.sqrt(6 / (fan_in + fan_out))
        linear.weight.uniform_(-bound, bound)
    else:  # He et al. (2015), eq. 10, whose sqrt(2) is the gain of relu
        linear.weight.normal_(std=gain / math.sqrt(fan_in))
    if linear.bias is not None:
        linear.bias.normal_() if init == "naive" else linear.bias.zero_()


class Hidden(nn.Sequential):
    """One hidden layer: linear, batch norm if wanted, activation, dropout if wanted."""

    def __init__(self, n_in: int, config: MLPConfig) -> None:
        # The mean that batch norm subtracts takes any bias of the linear layer with it.
        linear = nn.Linear(n_in, config.n_hidden, bias=not config.batch_norm)
        initialise(linear, config.init, config.activation)
        super().__init__()
        self.linear = linear
        if config.batch_norm:
            self.norm = BatchNorm1d(config.n_hidden)
        self.activation = ACTIVATIONS[config.activation]()
        if config.dropout:
            self.dropout = nn.Dropout(config.dropout)


class MLP(CharacterModel):
    """Embeddings of the last K characters, side by side, through hidden layers to scores.

    With one layer of tanh this is Bengio et al.'s y = b + U tanh(d + H x) (eq. 1 without the
    direct connections W). In training, batch norm makes a score depend on the other rows of its
    batch as well; in evaluation it does not.
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        has_blank = config.noise > 0
        self.embed = nn.Embedding(config.vocab_size + has_blank, config.n_embd)  # standard normal
        self.dropout = nn.Dropout(config.dropout)
        widths = [config.block_size * config.n_embd] + [config.n_hidden] * (config.n_layer - 1)
        self.layers = nn.Sequential(*(Hidden(width, config) for width in widths))
        self.head = nn.Linear(config.n_hidden, config.vocab_size)
        std = 1.0 if config.init == "naive" else HEAD_STD
        nn.init.normal_(self.head.weight, std=std)
        nn.init.normal_(self.head.bias, std=std if config.init == "naive" else 0.0)

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the scores (N, V) of what follows the places in `keep`."""
        if self.training and self.config.noise:
            idx = blank(idx, self.config.noise, self.vocab_size, idx == BOUNDARY)
        windows = context_windows(idx, self.block_size)[keep]  # (N, K): nothing for padding
        x = F.embedding(windows, self.embed.weight).flatten(1)  # (N, K * C)
        scores: Tensor = self.head(self.layers(self.dropout(x)))
        return scores

    def flops_per_character(self) -> float:
        """Return the floating-point operations of one place: a multiplication and an addition each.

            K C H  first hidden layer      (n_layer - 1) H H  the others      H V  output layer

        Looking embeddings up costs none, and the work per unit (bias, norm, tanh) is left out: it
        is H where a layer is H^2.
        """
        c = self.config
        first, others = c.block_size * c.n_embd * c.n_hidden, (c.n_layer - 1) * c.n_hidden**2
        return 2.0 * (first + others + c.n_hidden * c.vocab_size)
