"""Runs: stages, their files, progress, and the Python interface."""

from fcdeploy.machine import check_platform
from fcdeploy.packages import import_package

check_platform()
import_package("numba", "numba", "pip install fcdeploy")  # one for another NumPy is told in a sentence
