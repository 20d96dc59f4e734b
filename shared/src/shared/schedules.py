"""Learning-rate schedules: pure functions of the step, so a resumed run needs no schedule state."""

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "linear", "inverse_sqrt", "constant"]
Schedule = Callable[[int], float]


def make_schedule(
    name: ScheduleName,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    decay_fraction: float = 0.4,
) -> Schedule:
    """Return the function step -> factor in [0, 1] that multiplies the peak learning rate.

    Step 0 is the first update. All rise linearly over `warmup_steps` (step 0 is not zero: an
    update of size zero would be wasted). Then:

    - `cosine` falls along half a cosine to `final_fraction` (Loshchilov & Hutter, 2017, eq. 5);
    - `linear` falls on a straight line to `final_fraction`;
    - `wsd`, warmup-stable-decay, stays at 1 and falls on a straight line over the last
      `decay_fraction` of the run (Hu et al., 2024, sec. 4: MiniCPM);
    - `inverse_sqrt` falls as 1 / sqrt(update) and never ends (Vaswani et al., 2017, eq. 3);
    - `constant` stays at 1.

    `final_fraction` is of the first three; the last two do not fall to an end.

    The paper's eq. 3 gives the rate of update n = 1, 2, ... itself, with w warm-up updates:
    d_model**-0.5 * min(n**-0.5, n * w**-1.5). Its peak, at n = w, is (d_model * w)**-0.5; divided
    by that it is min(n / w, (w / n)**0.5), our factor. So `learning_rate=(d_model * w)**-0.5`
    with `warmup_steps=w` is the paper's schedule.

    >>> linear = make_schedule("linear", max_steps=4)
    >>> [linear(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    decay_start = warmup_steps
    if name == "wsd":
        decay_start = max(warmup_steps, round(max_steps * (1 - decay_fraction)))
    decay_steps = max(1, max_steps - decay_start)

    def factor(step: int) -> float:
        if name == "inverse_sqrt":
            update, peak = step + 1, max(1, warmup_steps)
            return min(update / peak, math.sqrt(peak / update))
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, max(0.0, (step - decay_start) / decay_steps))
        if name == "constant":
            return 1.0
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if name == "cosine" else 1 - progress
        return final_fraction + (1 - final_fraction) * shape

    return factor
