"""The documentation: its commands parse, its links lead somewhere, and its tables name what the code has."""

import pkgutil
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from aecnn_deploy.bundle import manifest
from aecnn_deploy.cli.main import app
from aecnn_deploy.wire import WIRE_VERSION

ROOT = Path(__file__).resolve().parents[1]
CODE = (
    "aecnn_deploy",
    "benchmarks",
    "calibration",
    "configs",
    "deploy",
    "exporters",
    "runtimes",
    "tests",
    "tools",
    "zoo",
)
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "zoo").glob("*.md")])

# None of it may stand in a file: where and by whom it was written says nothing to a reader, and registries move.
FORBIDDEN = re.compile(
    r"/(?:work|root|home/\w+)/|/tmp/w\w?/|/opt/\w+/|\bissue\s+#?\d|\bhelper \d"
    r"|python[h]osted|pypi[.]org|index[-]url|find[-]links",
    re.IGNORECASE,
)


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def texts() -> list[Path]:
    """Every file that people read or write: no caches, no builds, no archives."""
    files = [path for folder in (*CODE, "docs", ".ci") for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.iterdir() if path.name not in (".coverage", ".git")]
    return sorted(path for path in files if path.is_file() and path.suffix not in (".pyc", ".zst"))


def commands_in(text: str) -> list[str]:
    """Lines that begin with ``aecnn-deploy``, in code blocks (fenced or indented), continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"^ *(?:\$ |.*?# )?(?:\.venv/bin/)?aecnn-deploy ([^\n#]+)", text, re.MULTILINE)


def documented() -> list[tuple[str, str]]:
    """(where, command line without its first word) of every command in the documentation, configs and help."""
    found = [(path.relative_to(ROOT).as_posix(), line) for path in DOCS for line in commands_in(path.read_text())]
    for path in sorted((ROOT / "configs").glob("*.toml")):
        found += [(f"configs/{path.name}", line) for line in commands_in(path.read_text())]
    for name, command in all_commands().items():
        epilog = command.epilog or ""
        assert epilog.startswith("Example: aecnn-deploy "), f"{name} has no example"
        found.append((f"{name} --help", epilog.removeprefix("Example: aecnn-deploy ")))
    return found


def all_commands() -> dict[str, Any]:
    """Every command by its words, e.g. ``bundle show``."""
    found: dict[str, Any] = {}
    queue: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while queue:
        prefix, group = queue.pop()
        for name, command in group.commands.items():
            words = f"{prefix} {name}".strip()
            if hasattr(command, "commands"):
                queue.append((words, command))
            else:
                found[words] = command
    return found


def parse(line: str) -> None:
    """Parse ``line`` as the command line would, without running it. Raises what Typer raises for wrong use."""
    words = shlex.split(line)
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    if words not in (["--help"], ["--version"]):
        command.make_context("aecnn-deploy", words)


class TestCommands:
    @pytest.mark.parametrize(("where", "line"), documented(), ids=lambda text: text[:60])
    def test_a_documented_command_is_one_with_those_options(self, where: str, line: str) -> None:
        parse(line)

    @pytest.mark.parametrize(
        "line", ["serve", "run-device bundle --edges ws://x --source y", "export run", "bundle sho x"]
    )
    def test_a_wrong_command_would_be_noticed(self, line: str) -> None:
        with pytest.raises((AssertionError, typer.TyperException)):
            parse(line)

    def test_the_readme_shows_the_whole_chain(self) -> None:
        shown = {line.split()[0] for line in commands_in((ROOT / "README.md").read_text())}
        assert {"demo", "train", "export", "serve-edge", "run-device"} <= shown

    def test_every_make_target_that_is_named_exists(self) -> None:
        targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for path in [*DOCS, ROOT / ".ci" / "run"]:
            for name in re.findall(r"(?:^|`|    )make ([a-z0-9-]+)", path.read_text(), re.MULTILINE):
                assert name in targets, f"{path.name}: make {name}"


class TestLinks:
    @pytest.mark.parametrize("name", names(DOCS))
    def test_links_lead_to_files(self, name: str) -> None:
        path = ROOT / name
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target.partition("#")[0]).exists(), target

    @pytest.mark.parametrize("name", names(DOCS))
    def test_paths_in_backticks_exist(self, name: str) -> None:
        tops = "|".join((*CODE, "docs"))
        for target in re.findall(rf"`((?:{tops})/[\w./-]*)`", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), target

    @pytest.mark.parametrize("name", names(DOCS))
    def test_python_names_in_backticks_exist(self, name: str) -> None:
        for dotted in re.findall(r"`(aecnn_deploy(?:\.\w+)+)`", (ROOT / name).read_text()):
            pkgutil.resolve_name(dotted)


class TestWords:
    def test_no_file_names_the_place_where_it_was_written(self) -> None:
        files = texts()
        assert len(files) > 100
        found = {path.name: FORBIDDEN.search(path.read_text(errors="replace")) for path in files}
        assert {name: match.group() for name, match in found.items() if match} == {}

    def test_the_changelog_has_headings_for_what_others_rely_on(self) -> None:
        text = (ROOT / "CHANGELOG.md").read_text()
        for heading in ("### Wire format", "### Bundle format", "### JSON documents"):
            assert heading in text
        assert f"- Version {WIRE_VERSION}: `docs/wire-format.md`" in text
        assert f"- Format {manifest.FORMAT}: `docs/bundle-format.md`" in text

    def test_the_readme_lists_every_extra(self) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        text = (ROOT / "README.md").read_text()
        assert [extra for extra in extras if not re.search(rf"^\|[^|]*`{extra}`[^|]*\|", text, re.MULTILINE)] == []


class TestBundleFormat:
    @pytest.mark.parametrize(
        "struct", [manifest.Manifest, manifest.InputSpec, manifest.VariantSpec, manifest.EngineSpec, manifest.FileEntry]
    )
    def test_the_page_names_every_key_of_the_manifest(self, struct: type[msgspec.Struct]) -> None:
        text = (ROOT / "docs" / "bundle-format.md").read_text()
        for field in msgspec.structs.fields(struct):
            assert re.search(rf'[`"]{field.encode_name}[`"]', text), field.encode_name

    def test_the_page_is_of_the_format_that_is_written(self) -> None:
        assert f"# Bundle format, version {manifest.FORMAT}\n" in (ROOT / "docs" / "bundle-format.md").read_text()
