"""Who is near whom: kNN lists, re-ranking, neighborhoods, densities and links, as numba kernels over arrays."""
