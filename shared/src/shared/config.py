"""The trainer's settings: what every package's command line has in common."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from shared.optim import OptimizerName
from shared.schedules import ScheduleName

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How to train, whatever the module is; raises ValueError for what cannot work."""

    max_steps: int = 1000
    """Optimizer updates in the whole run."""
    batch_size: int = 32
    """Examples per forward pass per process."""
    grad_accum_steps: int = 1
    """Forward passes per update; the global batch is batch_size x grad_accum_steps x processes."""
    optimizer: OptimizerName = "adamw"
    """adamw for everything, or muon for the hidden matrices and adamw for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon: the spectral norm of a square matrix's update."""
    beta1: float = 0.9
    """AdamW's decay of the gradient average, per step."""
    beta2: float = 0.95
    """AdamW's decay of the squared-gradient average, per step."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings per unit of learning rate; others have none."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate over the run; wsd is warmup-stable-decay, inverse_sqrt that of
    "Attention Is All You Need"."""
    warmup_steps: int = 0
    """Updates of linear rise to the peak learning rate."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end of the run, as a fraction of the peak."""
    decay_fraction: float = 0.4
    """Part of the run over which the wsd schedule decays."""
    precision: Precision = "auto"
    """Autocast dtype; auto takes bf16 on a GPU or CPU that has units for it, else fp32."""
    compile: bool = False
    """Compile the module with torch.compile: a minute at the start, faster steps on a GPU."""
    eval_every: int = 250
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_batch_size: int = 0
    """Examples per forward pass in evaluation; 0 takes batch_size."""
    checkpoint_every: int = 250
    """Steps between checkpoints; 0 saves the best and the last only."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, beside the best one."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    max_bad_steps: int = 3
    """Non-finite steps in a row that end the run, after one roll-back."""
    spike_sigma: float = 6.0
    """Skip an update whose loss is this many deviations above its running mean; 0 never does."""
    seed: int = 0
    """Seed of initialisation, order and dropout; the same seed gives the same run on one CPU."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """CPU threads per process; 0 takes one for a model below 2 million parameters, else
    OMP_NUM_THREADS or the usable cores divided by the processes here."""
    dist_timeout: float = 600.0
    """Seconds without progress after which a process of a distributed run gives up."""
    profile: bool = False
    """Write a torch.profiler trace and a table of the top operators into the run folder."""
    wandb: bool = False
    """Log to Weights & Biases as well (extra `wandb`; offline without an account)."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name}={value} must be a finite number")
        at_least = {
            1: ("batch_size", "grad_accum_steps", "keep_checkpoints", "log_every", "max_bad_steps"),
            0: (
                *("max_steps", "warmup_steps", "eval_every", "eval_batch_size", "threads", "seed"),
                *("checkpoint_every", "learning_rate", "muon_learning_rate", "weight_decay"),
                *("grad_clip", "spike_sigma"),
            ),
        }
        for least, names in at_least.items():
            for name in names:
                value = getattr(self, name)
                if value < least:
                    raise ValueError(f"{name}={value} must be at least {least}")
        for name in ("beta1", "beta2", "final_lr_fraction", "decay_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name.startswith("beta") and value == 1):
                raise ValueError(f"{name}={value} must be between 0 and 1")
        if self.dist_timeout <= 0:
            raise ValueError(f"dist_timeout={self.dist_timeout} must be above 0 seconds")
        if self.seed >= 2**64:
            raise ValueError(f"seed={self.seed} must be below 2**64")
