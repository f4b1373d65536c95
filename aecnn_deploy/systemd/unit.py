"""The systemd units that come with the package, made to run this installation."""

import os
import pwd
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from aecnn_deploy.errors import SettingsError, UnitError

KINDS = ("device", "edge")
USER = "aecnn"  # that both units run as
_PROGRAM = "@PROGRAM@"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # ProtectHome= and PrivateTmp= hide them from a service
_MAKE_USER = f"sudo useradd --system --user-group --home-dir /var/lib/{USER} --shell /usr/sbin/nologin {USER}"


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What is written where for one service, and what is left to do by hand."""

    unit_path: Path
    unit: str
    settings_path: Path
    settings: str  # written only where no file is
    next_commands: tuple[str, ...]
    obstacle: str | None  # why a service cannot run this program from where it lies, with the remedy


def plan_service(kind: str, root: Path = Path("/"), program: Path | None = None) -> ServicePlan:
    """The unit ``kind`` below ``root``, running ``program`` (by default, the command of this environment).

    Raises SettingsError: no such kind. UnitError: there is no such program.
    """
    if kind not in KINDS:
        raise SettingsError(f"no unit for {kind!r}; choose one of {', '.join(KINDS)}")
    program = program or Path(sys.executable).with_name("aecnn-deploy")
    if not program.is_file():
        raise UnitError(f"there is no {program} to run; install aecnn-deploy into an environment of its own")
    name = f"{USER}-{kind}"
    folder = files(__package__)
    settings_path = root / "etc" / USER / f"{kind}.env"
    commands = (
        f"sudo nano /etc/{USER}/{kind}.env",
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --now {name}",
        f"journalctl --unit {name} --follow",
    )
    return ServicePlan(
        unit_path=root / "etc" / "systemd" / "system" / f"{name}.service",
        unit=(folder / f"{name}.service").read_text().replace(_PROGRAM, _quoted(program)),
        settings_path=settings_path,
        settings=(folder / f"{kind}.env.example").read_text(),
        next_commands=commands if _user_exists() else (_MAKE_USER, *commands),
        obstacle=_obstacle(program),
    )


def write_service(plan: ServicePlan) -> list[Path]:
    """Write the unit, and its settings where there are none; the files that were written.

    Raises UnitError: no service sees the program, or the files cannot be written.
    """
    if plan.obstacle is not None:
        raise UnitError(plan.obstacle)
    written = []
    for path, text, replace in ((plan.unit_path, plan.unit, True), (plan.settings_path, plan.settings, False)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if replace or not path.exists():
                partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
                partial.write_text(text)
                partial.replace(path)
                written.append(path)
        except OSError as exc:
            raise UnitError(
                f"cannot write {path}: {exc.strerror or exc}; run it with sudo and the program's whole path, "
                "or use --print"
            ) from None
    return written


def hidden_from_services(place: Path) -> str | None:
    """Why no service can run what lies at ``place``, with the remedy; None: it can, as far as the path tells."""
    hidden = next((folder for folder in _HIDDEN if place.is_relative_to(folder)), None)
    if hidden is None:
        return None
    return (
        f"{place} lies in {hidden}, which is hidden from services; install aecnn-deploy into an environment "
        f"elsewhere (sudo python3 -m venv /usr/local/lib/{USER}) and run its install-unit"
    )


def _obstacle(program: Path) -> str | None:
    """What is wrong with the place of ``program``, or of the Python that runs it."""
    places = (program.absolute(), program.resolve(), Path(sys.executable).resolve())
    return next(filter(None, map(hidden_from_services, places)), None)


def _quoted(program: Path) -> str:
    """The path as systemd.service(5) reads it: a % begins a specifier, a quoted word may hold spaces."""
    text = str(program.absolute()).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _user_exists() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True
