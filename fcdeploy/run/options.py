"""What a user may choose for a run, whatever the system: search, threads, memory, device, where files go."""

from dataclasses import dataclass
from pathlib import Path

from fcdeploy import machine

KNN_METHODS = ("auto", "exact", "ivf")
MERGE, AS_PUBLISHED = DUPLICATES = ("merge", "as-published")
UNCOVERED = ("singleton", "drop")
TABLES = ("float32", "float16")
LINKS = ("density-peaks", "pairs")
INFERENCES = ("auto", "exact", "layerwise")


@dataclass(frozen=True)
class Options:
    """What a user may choose for a run; None means what the bundle's recipe says.

    knn: 'auto', 'exact', 'ivf', or a file of neighbor lists; reranked: a file of re-ranked lists. k sets every
    k of the recipe. min_probability: what a link needs of a network that accepts or refuses it, beyond being
    accepted. inference: 'exact', 'layerwise' or 'auto'. batch: neighborhoods an engine call at most. threads: 0 means
    all cores that this process may use (its affinity and CPU quota). memory: bytes that a run should get along with; 0
    means half of what this process may use (the machine's memory, or the limit of its container). uncovered: what
    becomes of faces that no cluster was found for, 'singleton' or 'drop' (-1); None means 'singleton'. device: 'cpu'
    or 'cuda', where the engine runs; None means where it can, the CPU first. vram: bytes of device memory to get
    along with; 0 means what is there. tables: 'float32' or, rounded, 'float16', for what is kept between the layers of
    layer-wise inference. link: how clusters come about where there is a choice, 'density-peaks' or 'pairs'. scratch:
    the folder for what does not fit into memory, None for one on a disk. duplicates: 'merge' lets equal rows, and
    near-copies that fill neighbor lists, count once and have one label; 'as-published' computes on all rows as they
    are.
    """

    knn: str = "auto"
    reranked: Path | None = None
    k: int | None = None
    hops: tuple[int, int] | None = None
    tau: float | None = None
    min_probability: float | None = None
    inference: str = "auto"
    batch: int | None = None
    threads: int = 0
    memory: int = 0
    uncovered: str | None = None
    device: str | None = None
    vram: int = 0
    tables: str = "float32"
    link: str | None = None
    scratch: Path | None = None
    duplicates: str = MERGE

    @property
    def lists(self) -> dict[str, Path]:
        """Files of lists that were given, by the options that name them."""
        given = {"--knn": self.knn_file, "--reranked": self.reranked}
        return {name: path for name, path in given.items() if path is not None}

    @property
    def knn_file(self) -> Path | None:
        """The file of neighbor lists to use instead of searching, if one was given."""
        return None if self.knn in KNN_METHODS else Path(self.knn)

    @property
    def cores(self) -> int:
        """The threads to use: no more than there are cores for this process."""
        return machine.threads_for(self.threads)

    @property
    def budget(self) -> int:
        """The memory budget in bytes."""
        return self.memory or machine.memory() // 2
