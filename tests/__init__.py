"""The tests, as a package that sets what must be set before PyTorch is loaded."""

import os

# Many processes share few processors here, and threads of one would wait for those of others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
