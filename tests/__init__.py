"""All tests; this comes before any import, also of numpy, which looks for the number of threads."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # of the tests, and of the processes that they start
# Otherwise each of these processes, of which there are hundreds, would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
