"""What knows nothing of reasoning: options, devices, run folders. Nothing here imports from the rest of the
repository.
"""

import os

# Read by OpenMP when torch is imported, so every file imports `lab` first. A thread that waits for the others
# spins for this many rounds before it sleeps: the default, millions, starves them when another process has
# the core (bench/RESULTS.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
