"""What every folder stands on: errors, files, configs, run-time state of long computations. Nothing here imports torch at import time."""
