"""What knows nothing of reasoning: options, devices, run folders. Nothing here imports from the repository's
root.
"""

import os

# Read by OpenMP when torch is imported, so every file imports `lab` first. A thread that waits for the others
# spins for so many rounds before it sleeps. By default it spins for milliseconds, which starves them when
# another process wants the core: bench/busy_machine.py measures it.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
