"""NSR-FC's golden checkpoints as cases of an export: the whole chain, and the re-scoring alone."""

from typing import NamedTuple


class Exportable(NamedTuple):
    """What an export takes; dim: of the input features."""

    name: str
    checkpoints: tuple[str, ...]
    recipe: str
    dim: int = 32


# Batches are smaller than published, so that few faces make several.
CHAIN = Exportable(
    "nsr-fc",
    ("pse/checkpoint.pth", "nsr/checkpoint.tar", "nsr/LCENet.pth", "nsr/PCENet.pth.xz"),
    "[neighborhood]\nk = 20\nhops = [20, 5]\nactive = 10\n\n[rescore]\nk = 20\nbatch = 50\n\n[pairs]\nk = 16\n",
)
# Weights whose attention is alive, on refined features as they are published: batches of 512.
LIVE = Exportable("nsr-fc", ("nsr/checkpoint_live.tar",), "[rescore]\nk = 20\n", dim=64)
