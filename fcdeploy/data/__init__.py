"""Files in and out: features, labels, and outputs that appear whole or not at all."""

from fcdeploy.packages import import_package

import_package("numpy", "NumPy", "pip install fcdeploy")  # a broken one is told in a sentence
