"""Assigns faces to the clusters of a run folder, in Triton Inference Server's Python backend.

Inputs: embeddings (n, d) float32. Outputs: cluster (n,) int64, -1 for none; confidence (n,) float32, the similarity or
probability of the link that decided; margin (n,) float32, to the second cluster, NaN where there is none near. The
parameters of config.pbtxt say where the run folder and the engine are, as the server sees them.
"""

import json
import os
import sys

# Where the backend's interpreter is an isolated one, it leaves this to us.
sys.path.extend(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)

import numpy as np
import triton_python_backend_utils as pb_utils

import fcdeploy


class TritonPythonModel:
    """One assigner, which answers all requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the run folder."""
        given = json.loads(args["model_config"])["parameters"]
        said = {name: value["string_value"] for name, value in given.items()}
        self.assigner = fcdeploy.Assigner(
            said["run_dir"], engine=said["engine"], threads=int(said["threads"])
        )

    def execute(self, requests: list[object]) -> list[object]:
        """Answer each request by itself: an error in one is that one's."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: object) -> object:
        # By DLPack, both ways: servers that were built for NumPy 1 hand over wrong arrays where NumPy 2 is installed.
        faces = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "embeddings")).copy()
        try:
            found = self.assigner.assign(faces)
        except fcdeploy.FcdeployError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        outputs = (
            ("cluster", found.labels.astype(np.int64)),
            ("confidence", found.similarity),
            ("margin", found.margin),
        )
        tensors = [pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(array)) for name, array in outputs]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def finalize(self) -> None:
        """Free the engines."""
        self.assigner.close()
