"""The import rules of the package, read from its source.

Every `import` under vnic/ is an arrow from one layer to another. An arrow that the table below does not
name is a defect, also inside a function and also under `if TYPE_CHECKING` (but for the exceptions named).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "vnic"

IPSEC_VALUES = frozenset(
    {
        "ipsec.algorithms",
        "ipsec.association",
        "ipsec.drops",
        "ipsec.headers",
        "ipsec.lifetime",
        "ipsec.policy",
        "ipsec.udp_encapsulation",
    }
)

CORE = frozenset({"packet", "ipsec", "ndis", "transport", "miniport", "engine"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "packet": frozenset({"errors"}),
    "ipsec": frozenset({"errors", "packet"}),
    "ndis": frozenset({"errors", "ipsec", "packet"}),
    "miniport": frozenset({"errors", "ipsec", "ndis", "packet"}),
    "transport": frozenset({"errors", "ipsec", "ndis", "packet"}),
    "engine": CORE | {"errors"},
    "ports": frozenset({"errors", "ipsec.drops", "ndis", "netlink", "packet"}),
    "netlink": frozenset({"errors"}),
    "control": IPSEC_VALUES | {"errors", "ndis.oids"},
    "daemon": CORE | {"control", "errors", "netlink", "ports"},
    "cli": IPSEC_VALUES | {"control", "errors", "ndis.oids"},
    "driver": frozenset({"control", "errors", "ndis"}),
    "__main__": frozenset({"cli"}),
}
"""Layer → what it may import besides itself and the bare package: a whole layer, or one of its modules."""

TYPES_ONLY = frozenset({("errors", "ndis.status")})
"""Arrows for the type checker alone: OidError carries an NDIS status and needs nothing of it at run time."""

NOT_IN_CORE = frozenset({"asyncio", "socket", "time", "random", "secrets", "logging", "os"})
"""The outside world. The core takes time, random bytes and frames as arguments."""

NOT_ANYWHERE = frozenset({"scapy"})
"""The tests' oracle. Sharing its code would make the comparison worthless."""


@dataclass(frozen=True)
class Import:
    """One imported name, absolute: `from ..ndis import status` in vnic.ports.tap is `vnic.ndis.status`."""

    line: int
    name: str
    types_only: bool


def imports_of(source: str, module: str, *, is_package: bool, submodules: frozenset[str]) -> Iterator[Import]:
    """Yield every import in `source`, of the module with the dotted name `module`.

    `submodules` tells a module, as in `from vnic.ipsec import drops`, from a name inside one.
    """
    tree = ast.parse(source)
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = len(parents) - node.level + is_package
                base = ".".join([*parents[:kept], *([base] if base else [])])
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [member if member in submodules else base for member in members]
        else:
            continue
        for name in names:
            yield Import(node.lineno, name, id(node) in guarded)


def offence(module: str, found: Import) -> str | None:
    """Say what is wrong with one import of `module`, or None."""
    layer = module.split(".")[1] if "." in module else ""
    top, _, inside = found.name.partition(".")
    if top in NOT_ANYWHERE:
        return f"{top} is for tests only"
    if top in NOT_IN_CORE and layer in CORE:
        return f"{layer} is core: no {top} here, it comes as an argument"
    if top != "vnic" or not inside:
        return None
    target = inside.split(".")[0]
    if layer not in MAY_IMPORT:
        return f"the layer '{layer}' is not in the table of this test"
    if target == layer or {target, ".".join(inside.split(".")[:2])} & MAY_IMPORT[layer]:
        return None
    if found.types_only and (layer, inside) in TYPES_ONLY:
        return None
    return f"{layer} may not import {inside}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = frozenset(module_name(path) for path in SOURCES)


def offences(source: str, module: str, *, is_package: bool = False) -> list[str]:
    found = imports_of(source, module, is_package=is_package, submodules=MODULES)
    return [f"line {one.line}: {text}" for one in found if (text := offence(module, one)) is not None]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_name(path))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert offences(path.read_text(), module_name(path), is_package=path.name == "__init__.py") == []


def test_the_bare_package_imports_nothing_of_its_own() -> None:
    found = imports_of((PACKAGE / "__init__.py").read_text(), "vnic", is_package=True, submodules=MODULES)
    assert [one for one in found if one.name.startswith("vnic")] == []


def test_every_layer_of_the_table_exists() -> None:
    layers = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(MAY_IMPORT) <= layers


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vnic.transport.outbound", "from vnic.miniport import adapter"),
        ("vnic.transport.outbound", "import vnic.miniport.adapter"),
        ("vnic.transport.outbound", "from ..miniport.adapter import Miniport"),
        ("vnic.transport.outbound", "from .. import miniport"),
        ("vnic.transport.outbound", "def late():\n    import vnic.engine.reference"),
        ("vnic.transport.outbound", "if TYPE_CHECKING:\n    from vnic.engine.contract import Engine"),
        ("vnic.packet.esp", "from vnic.ipsec.algorithms import Algorithm"),
        ("vnic.ports.tap", "from vnic.ipsec.replay import ReplayWindow"),
        ("vnic.cli.main", "from vnic.daemon.config import load"),
        ("vnic.cli.main", "from vnic.daemon import config"),
        ("vnic.engine.reference", "import time"),
        ("vnic.miniport.esp", "from os import urandom"),
        ("vnic.packet.esp", "import os.path"),
        ("vnic.daemon.main", "from scapy.layers.ipsec import ESP"),
        ("vnic.errors", "from vnic.ndis.status import NdisStatus"),
        ("vnic.novelty.thing", "from vnic.errors import VnicError"),
    ],
)
def test_forbidden_import_is_noticed(module: str, source: str) -> None:
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vnic.engine.reference", "from vnic.miniport import adapter\nfrom vnic.transport import outbound"),
        ("vnic.ports.tap", "from vnic.ipsec.drops import DropReason\nimport os, socket, asyncio"),
        ("vnic.transport.sad", "from .spd import Spd\nfrom . import audit\nfrom ..errors import VnicError"),
        ("vnic.daemon.main", "import vnic\nfrom vnic import __version__"),
        ("vnic.errors", "if TYPE_CHECKING:\n    from vnic.ndis.status import NdisStatus"),
    ],
)
def test_allowed_import_passes(module: str, source: str) -> None:
    assert offences(source, module) == []


def test_relative_import_in_a_package_file_counts_from_the_package() -> None:
    assert offences("from ..miniport import adapter", "vnic.transport", is_package=True) != []
    assert offences("from .spd import Spd", "vnic.transport", is_package=True) == []
