"""Scenarios as TOML files, those that come with the package by name, and changed scenarios for sweeps.

docs/offloading.md lists every key. Numbers are checked where ``Scenario`` is made; here the file's own mistakes are.
"""

import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import ScenarioError, SettingsError
from aecnn_deploy.offloading.mec.profile import Profile
from aecnn_deploy.offloading.mec.profiles import paper_profile, profile_from_bundle, read_profile
from aecnn_deploy.offloading.mec.scenario import (
    Count,
    Devices,
    Energy,
    Name,
    Positive,
    Radio,
    Scenario,
    Servers,
    Uncertainty,
)
from aecnn_deploy.zoo import PREFIX, zoo_bundle

_MAX_BYTES = 1 << 20
_PARTS: dict[str, type[msgspec.Struct]] = {
    "devices": Devices,
    "servers": Servers,
    "radio": Radio,
    "uncertainty": Uncertainty,
    "energy": Energy,
}
_OWN_TYPES: dict[str, Any] = {"name": Name, "slots": Count, "slot_ms": Positive}  # the keys of [scenario]
_OWN = tuple(_OWN_TYPES)
_NEEDED = ("profile", "devices", "servers")


class ProfileTable(msgspec.Struct, frozen=True, kw_only=True):
    """The table [profile]: where the options come from. Keys that its source does not know are refused."""

    source: Literal["paper", "file", "bundle"] = "paper"
    method: str = "aecnn"  # paper
    split: int = 1  # paper
    options: tuple[str, ...] = ()  # by name, of any source; empty: all of them
    path: str = ""  # file, bundle; beside the scenario's file unless it is absolute or zoo:NAME
    profiles: str = ""  # bundle: the folder of its latency profiles
    device: str = ""  # bundle: the device's profile, where several are kept
    edge: str = ""


_KEYS_OF_SOURCE = {
    "paper": {"source", "options", "method", "split"},
    "file": {"source", "options", "path"},
    "bundle": {"source", "options", "path", "profiles", "device", "edge"},
}


def scenario_names() -> tuple[str, ...]:
    """The scenarios that come with the package."""
    found = resources.files("aecnn_deploy.offloading").joinpath("scenarios").iterdir()
    return tuple(sorted(item.name.removesuffix(".toml") for item in found if item.name.endswith(".toml")))


def load_scenario(name: str) -> Scenario:
    """The scenario of this name, or in the file at this path (it has a ``/`` or ends in ``.toml``).

    Raises ScenarioError: there is none, or it is no TOML, has unknown keys, or contradicts itself. Errors of a bundle
    and of its latency profiles pass through.
    """
    if name in scenario_names():
        content = resources.files("aecnn_deploy.offloading").joinpath("scenarios", f"{name}.toml").read_bytes()
        return parse_scenario(content, name, Path())
    path = Path(name)
    if not (path.suffix == ".toml" or len(path.parts) > 1):
        raise ScenarioError(
            f"no scenario is called {name!r}; there are {', '.join(scenario_names())}, or name a .toml file"
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ScenarioError(f"{path} has over {_MAX_BYTES} bytes, which no scenario has; is it another file?")
        content = path.read_bytes()
    except OSError as exc:
        raise ScenarioError(
            f"cannot read the scenario {path}: {exc.strerror or exc}; name a .toml file or one of "
            f"{', '.join(scenario_names())}"
        ) from None
    return parse_scenario(content, str(path), path.parent)


def parse_scenario(content: bytes, where: str, folder: Path) -> Scenario:
    """The scenario in ``content``. ``where`` is named by errors, paths are relative to ``folder``. Raises as above."""
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise ScenarioError(f"{where} is no TOML: {exc}") from None
    _check_keys(where, "", document, ("scenario", "profile", *_PARTS))
    own = _table(where, document, "scenario")
    _check_keys(where, "scenario.", own, _OWN)
    for table, kind in _PARTS.items():
        _check_keys(where, f"{table}.", _table(where, document, table), kind.__struct_fields__)
    if missing := [table for table in _NEEDED if table not in document]:
        raise ScenarioError(f"{where} lacks {', '.join(f'[{table}]' for table in missing)}; every scenario has these")
    profile = _profile(where, _table(where, document, "profile"), folder)
    parts = {table: document[table] for table in _PARTS if table in document}
    return _made({"name": Path(where).stem, **own, **parts}, profile, where)


def with_changes(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """``scenario`` with other values: ``{"devices.count": 20, "slots": 50, "profile.method": "ca-pruned"}``.

    Keys are those of the file, with ``scenario.`` left out or not. ``profile.options`` names options of the profile
    that the scenario has; ``profile.method`` and ``profile.split`` take another one from the paper. Raises
    SettingsError: no such key. ScenarioError: a value is wrong, or contradicts another.
    """
    document = msgspec.to_builtins(scenario)
    document.pop("profile")
    chosen: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in _changeable():
            near = difflib.get_close_matches(key, _changeable(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_changeable())}"
            raise SettingsError(f"a scenario has no {key}; {hint}")
        table, _, name = key.removeprefix("scenario.").rpartition(".")
        if table == "profile":
            chosen[name] = value
        elif table:
            document[table] = {**(document[table] or {}), name: value}
        else:
            document[name] = value
    where = f"scenario {scenario.name} with {', '.join(f'{key} = {value!r}' for key, value in changes.items())}"
    return _made(document, _other_profile(where, scenario.profile, chosen), where if changes else scenario.name)


def _changeable() -> tuple[str, ...]:
    parts = [f"{table}.{name}" for table, kind in _PARTS.items() for name in kind.__struct_fields__]
    own = [name for key in _OWN for name in (key, f"scenario.{key}")]
    return (*own, *parts, "profile.method", "profile.split", "profile.options")


def _other_profile(where: str, profile: Profile, chosen: dict[str, Any]) -> Profile:
    if "method" in chosen or "split" in chosen:
        return _profile(where, chosen, Path())
    if "options" in chosen:
        options = _converted(where, {"options": chosen["options"]}).options
        return profile.chosen(options) if options else profile
    return profile


def _made(document: dict[str, Any], profile: Profile, where: str) -> Scenario:
    """The scenario of plain values and a profile that is read already."""
    made: dict[str, Any] = {}
    for name, value in document.items():
        if value is None:
            continue
        try:
            made[name] = msgspec.convert(value, _PARTS.get(name) or _OWN_TYPES[name])
        except msgspec.ValidationError as exc:
            raise ScenarioError(f"{where}: {name}: {exc}") from None
        except ScenarioError as exc:
            raise ScenarioError(f"{where}: {exc}") from None
    try:
        return Scenario(profile=profile, **made)
    except ScenarioError as exc:
        said = str(exc).removeprefix(f"scenario {made['name']}: ")
        raise ScenarioError(f"{where}: {said}") from None


def _profile(where: str, table: dict[str, Any], folder: Path) -> Profile:
    _check_keys(where, "profile.", table, ProfileTable.__struct_fields__)
    given = _converted(where, table)
    allowed = _KEYS_OF_SOURCE[given.source]
    for key in table:
        if key not in allowed:
            raise ScenarioError(
                f"{where}: profile.{key} says nothing of a profile from {given.source!r}, which knows "
                f"{', '.join(sorted(allowed))}; leave it out, or take another source"
            )
    if given.source != "paper" and not given.path:
        raise ScenarioError(f"{where}: profile.path is missing; name the {given.source} that the profile is in")
    if given.source == "paper":
        profile = paper_profile(given.method, given.split)
    elif given.source == "file":
        profile = read_profile(folder / given.path)
    else:
        return _of_bundle(given, folder)
    return profile.chosen(given.options) if given.options else profile


def _of_bundle(given: ProfileTable, folder: Path) -> Profile:
    path = zoo_bundle(given.path) if given.path.startswith(PREFIX) else folder / given.path
    kept, device, edge = (folder / name if name else None for name in (given.profiles, given.device, given.edge))
    return profile_from_bundle(open_bundle(path), kept, device=device, edge=edge, variants=given.options or None)


def _converted(where: str, table: dict[str, Any]) -> ProfileTable:
    try:
        return msgspec.convert(table, ProfileTable)
    except msgspec.ValidationError as exc:
        sources = ", ".join(_KEYS_OF_SOURCE)
        hint = f"; sources are {sources}" if "$.source" in str(exc) else ""
        raise ScenarioError(f"{where}: [profile] {exc}{hint}") from None


def _table(where: str, document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ScenarioError(f"{where}: {name} is {table!r}, expected a table; write [{name}]")
    return table


def _check_keys(where: str, prefix: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? Known are" if near else "known are"
            raise ScenarioError(f"{where}: unknown key {prefix + key!r}; {hint} {', '.join(known)}")
