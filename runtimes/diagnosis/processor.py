"""The processor: what it is, and which of its instructions the heads gain from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.host import Host
from aecnn_deploy.runtimes.diagnosis.subject import Subject

# Arm's part numbers, as /proc/cpuinfo gives them, of the cores in boards that people use
_ARM_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "0xd03": "Cortex-A53",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1",
        "0xd40": "Neoverse-V1",
        "0xd42": "Cortex-A78AE",
        "0xd49": "Neoverse-N2",
    }
)
# name for a person -> the kernel's names, any of which means that the processor has it
_ARM_FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "NEON (asimd)": ("asimd",),
        "dot product (asimddp)": ("asimddp",),
        "fp16 (asimdhp)": ("asimdhp",),
        "int8 matrices (i8mm)": ("i8mm",),
    }
)
_X86_FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "AVX2": ("avx2",),
        "AVX-512": ("avx512f",),
        "VNNI": ("avx512_vnni", "avx_vnni"),
    }
)
ARM = frozenset({"aarch64", "arm64"})
_X86 = frozenset({"x86_64", "AMD64", "amd64"})


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor by name; ``features`` in the kernel's words, None where the kernel does not tell."""

    name: str
    architecture: str
    features: frozenset[str] | None

    def has(self, feature: str) -> bool | None:
        """None: not known."""
        return None if self.features is None else feature in self.features

    @property
    def int8_is_slow(self) -> bool | None:
        """Whether int8 heads lack the instructions that make them faster than fp32; None: not known."""
        if self.features is None:
            return None
        wanted = ("asimddp", "i8mm") if self.architecture in ARM else ("avx2", "avx512_vnni", "avx_vnni")
        return not self.features.intersection(wanted)


def read_processor(host: Host) -> Processor:
    """What ``/proc/cpuinfo`` and the device tree tell."""
    fields: dict[str, str] = {}
    for line in (host.text("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    board = host.text("/proc/device-tree/model") or host.text("/sys/firmware/devicetree/base/model")
    part = fields.get("CPU part", "")
    core = fields.get("model name") or _ARM_PARTS.get(part) or (f"an Arm core of part {part}" if part else "")
    flags = fields.get("Features", fields.get("flags"))
    return Processor(
        name=", ".join(filter(None, (board or fields.get("Model"), core))) or f"an unnamed {host.machine} processor",
        architecture=host.machine,
        features=None if flags is None else frozenset(flags.split()),
    )


def check_processor(subject: Subject) -> Iterator[Finding]:
    """Its name, and which instructions are there."""
    host = subject.host
    processor = read_processor(host)
    known = _ARM_FEATURES if host.machine in ARM else _X86_FEATURES if host.machine in _X86 else None
    if processor.features is None or known is None:
        yield warning(
            "cpu",
            f"{processor.name}: what it can compute is not known",
            "mount /proc, or run on a 64-bit Arm or x86 processor: others were not tried",
        )
        return
    there = [name for name, flags in known.items() if processor.features.intersection(flags)]
    lacks = [name for name in known if name not in there]
    text = f"{processor.name}: {', '.join(there) or 'no vector instructions'}"
    text += f"; no {', no '.join(lacks)}" if lacks else ""
    if host.machine in _X86 and "AVX2" in lacks:
        yield warning("cpu", text, "expect slow heads: take a variant with fewer multiply-adds in 'bundle show'")
        return
    if processor.int8_is_slow:
        text += "; so int8 heads may be slower than fp32: 'aecnn-deploy calibrate device' tells"
    yield ok("cpu", text)


def check_userland(subject: Subject) -> Iterator[Finding]:
    """Whether this Python is a 64-bit one: ONNX Runtime has no wheels for others."""
    host = subject.host
    if host.pointer_bits >= 64:
        yield ok("userland", f"{host.pointer_bits}-bit Python on {host.machine}")
        return
    yield problem(
        "userland",
        f"a {host.pointer_bits}-bit Python on {host.machine}: onnxruntime has no wheel for 32-bit systems",
        "install Raspberry Pi OS (64-bit), or another 64-bit system; a 64-bit kernel alone is not enough",
    )
