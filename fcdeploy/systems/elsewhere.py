"""Networks that people have checkpoints of and that are none of ours, told by their tensors."""

from collections.abc import Mapping

CONVOLUTION = 4  # axes of an image convolution's weights: out, in, height, width
COLORS = 3
HEAD = {
    *(f"classifier.{at}.weight" for at in (0, 1, 2)),
    *(f"classifier.{at}.bias" for at in (0, 2)),
}
GCN_V = HEAD | {"conv1.weight", "conv1.bias"}
GCN_E = HEAD | {f"conv{at}.{part}" for at in (1, 2, 3, 4) for part in ("weight", "bias")}
PATCHES = ("patch_embed", "patch_embedding", "class_embedding")


def elsewhere(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Say which network of another system, or of another task, these tensors are of; None where that is not known.

    shapes: of a state_dict without wrappers and prefixes, which is none of ours.
    """
    names = shapes.keys()
    if names in (GCN_V, GCN_E) and len(shapes["conv1.weight"]) == 2:
        network = "GCN-V" if names == GCN_V else "GCN-E"
        return f"is {network} of VE-GCN (learn-to-cluster), a system that fcdeploy does not run"
    convolutions = [
        shape for name, shape in shapes.items() if len(shape) == CONVOLUTION and name.endswith("weight")
    ]
    if any(shape[1] == COLORS for shape in convolutions) or any(
        part in name for name in names for part in PATCHES
    ):
        return (
            "reads pictures: it looks like a face embedder or detector, not a network that clusters features; export "
            "it to ONNX with its own code (torch.onnx.export), for `fcdeploy embed --model`"
        )
    return None
