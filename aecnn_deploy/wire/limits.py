"""How large a message may be; both halves check a header against these before they keep a payload."""

from dataclasses import dataclass, fields

from aecnn_deploy.errors import SettingsError

_U32_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Sizes that this half accepts. Raises SettingsError: one is not in 1..2**32 - 1."""

    max_payload_bytes: int = 8 << 20  # of an INFER message, as sent
    max_raw_bytes: int = 8 << 20  # of an INFER message, after decoding
    max_control_bytes: int = 64 << 10  # of every other message

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 1 <= (value := getattr(self, field.name)) <= _U32_MAX:
                raise SettingsError(f"WireLimits.{field.name} is 1 to {_U32_MAX} bytes, got {value}")
