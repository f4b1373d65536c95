"""What a model on a Triton server must be to stand for a bundle's: names, types, shapes, and whose it is."""

from dataclasses import dataclass

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.triton_channel import ModelFace, TensorFace

BUNDLE_KEY, VARIANT_KEY = "aecnn_bundle_id", "aecnn_variant"  # of a configuration's parameters
FULL = "full"

_REMEDY = "write this bundle's models into its repository: aecnn-deploy bundle triton BUNDLE DIR"


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """One model of a bundle as a Triton server must have it: input and output are called as in the ONNX files."""

    name: str  # on the server
    variant: str  # the bundle's name for it
    bundle_id: str
    input: TensorFace
    output: TensorFace

    def disagreement(self, face: ModelFace) -> str | None:
        """Why the server's model is not this one, in one line with what was found, expected and to be done."""
        for what, found, wanted in (
            ("takes", face.inputs, self.input),
            ("gives", face.outputs, self.output),
        ):
            if found != (wanted,):
                listed = " and ".join(map(str, found)) or "nothing"
                return f"its model {self.name} {what} {listed}, {self.variant} needs {wanted}; {_REMEDY}"
        theirs = face.parameters.get(BUNDLE_KEY, self.bundle_id)
        if theirs != self.bundle_id:
            return (
                f"its model {self.name} is of bundle {theirs[:12]}, this edge serves bundle {self.bundle_id[:12]}; "
                f"serve that bundle, or {_REMEDY}"
            )
        variant = face.parameters.get(VARIANT_KEY, self.variant)
        if variant != self.variant:
            return f"its model {self.name} is the bundle's {variant}, expected {self.variant}; {_REMEDY}"
        return None


def needs_of(bundle: Bundle, variant: VariantSpec | None, name: str) -> ModelNeeds:
    """What the model called ``name`` on the server must be for the variant's tail; None: for the unsplit model."""
    manifest = bundle.manifest
    output = TensorFace("logits", "FP32", (-1, len(manifest.labels)))
    if variant is None:
        frames = TensorFace("frames", "UINT8", (-1, manifest.input.height, manifest.input.width, 3))
        return ModelNeeds(name, FULL, bundle.id, frames, output)
    return ModelNeeds(name, variant.id, bundle.id, TensorFace("planes", "UINT8", (-1, *variant.planes)), output)
