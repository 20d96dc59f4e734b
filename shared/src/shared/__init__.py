"""Machinery under the packages: data sets, token shards, trainer, checkpoints, profiling."""

import os

# The one thing that an import of ours does, as it must come before torch loads OpenMP: threads
# that wait for others sleep instead of spinning. Spinning is a little faster on a quiet machine,
# but with a busy neighbour a thread may spin for the one whose core was taken, for milliseconds
# at every operation. Set OMP_WAIT_POLICY=ACTIVE for a machine of your own.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
