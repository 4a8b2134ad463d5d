"""Who is near whom: kNN lists, re-ranking, neighborhoods, densities and links, as numba kernels over arrays."""

from fcdeploy.packages import import_package

import_package("numba", "numba", "pip install fcdeploy")  # one for another NumPy is told in a sentence
