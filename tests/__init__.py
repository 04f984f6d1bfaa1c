"""The tests, as a package that sets what must be set before PyTorch is loaded."""

import os

# Tests run in many processes on few processors. More threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
