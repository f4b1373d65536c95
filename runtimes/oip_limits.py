"""What one request of the Open Inference Protocol may take."""

from dataclasses import dataclass

from aecnn_deploy.errors import SettingsError


@dataclass(frozen=True, slots=True)
class OipLimits:
    """Bounds of one request, each checked before memory is taken for it. Raises SettingsError: one is out of range."""

    max_rows: int = 64  # of a request's tensor; each is a request of its own in the model's queue
    max_json_bytes: int = 1 << 20  # of a body's JSON: parsing holds up everybody, some 20 ms for so much
    max_body_bytes: int = 16 << 20  # of a body, as it comes and inflated

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("max_json_bytes", 1024), ("max_body_bytes", 1024)):
            if not least <= getattr(self, name) <= 1 << 30:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected {least} to {1 << 30}")
