"""Scenarios for tests, of made-up numbers near those of the shipped ones."""

from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.offloading.mec.scenario import Devices, Radio, Scenario, Servers, Uncertainty

PROFILE = Profile(
    name="made-up",
    source="tests",
    local_accuracy=0.958,
    local_ms=236.0,
    options=tuple(
        Option(name=f"v{ratio}", accuracy=accuracy, payload_bytes=payload, device_ms=device_ms, edge_ms=edge_ms)
        for ratio, accuracy, payload, device_ms, edge_ms in (
            (2, 0.956, 140e3, 7.9, 11.0),
            (8, 0.947, 31e3, 2.8, 9.5),
            (16, 0.940, 14e3, 2.2, 9.4),
            (64, 0.915, 3e3, 0.7, 8.4),
        )
    ),
)


def small(*, devices: int = 10, servers: int = 2, slots: int = 50) -> Scenario:
    """Certain, of any size."""
    return Scenario(
        name="small",
        profile=PROFILE,
        devices=Devices(count=devices, speed=(0.8, 3.0), arrival=(0.4, 0.8)),
        servers=Servers(count=servers),
        radio=Radio(bandwidth_mhz=8, area_m=200),
        slots=slots,
    )


def certain() -> Scenario:
    """Ten devices, two servers; what is seen is what comes."""
    return small()


def uncertain() -> Scenario:
    """The same with estimates that are off."""
    sure = small()
    return Scenario(
        name="unsure",
        profile=sure.profile,
        devices=sure.devices,
        servers=Servers(count=2, capacity=(1.0, 0.75, 0.5), foreign=(0.0, 0.5)),
        radio=sure.radio,
        uncertainty=Uncertainty(estimate_error=0.1, device_jitter=0.1, edge_jitter=0.2, known_load=False),
        slots=sure.slots,
    )
