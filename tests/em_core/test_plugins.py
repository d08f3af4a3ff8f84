"""Registry: names, near misses, owners, and plugins that other distributions bring."""

import sys
from pathlib import Path

import pytest

from em_core.errors import UserError
from em_core.plugins import Registry


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """An importable package with two built-in plugins; each test has its own name for it."""
    name = f"builtins_of_{abs(hash(tmp_path)) % 10**9}"
    folder = tmp_path / "site" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from em_core.plugins import Registry\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield name
    for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[module]


def registry_of(package: str, *entries: tuple[str, object]) -> Registry:
    registry: Registry = Registry("gadget", f"{package}.group", package)
    for name, entry in entries:
        registry.register(name)(entry)
    return registry


def install(site: Path, distribution: str, group: str, points: dict[str, str], source: str) -> None:
    """A distribution as pip leaves it: a module, and metadata with its entry points."""
    module = next(iter(points.values())).split(":")[0]
    (site / f"{module}.py").write_text(source, encoding="utf-8")
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_get_returns_what_was_registered(package):
    one, two = object(), object()
    registry = registry_of(package, ("zeta", one), ("alpha", two))
    assert registry.get("zeta") is one
    assert registry.names() == ["alpha", "zeta"]


def test_unknown_name_lists_the_nearest_names_only(package):
    registry = registry_of(package, ("adamw", 1), ("adam", 2), ("lion", 3), ("muon", 4))
    with pytest.raises(UserError) as caught:
        registry.get("adamv")
    text = str(caught.value)
    assert text.startswith("unknown gadget 'adamv'")
    assert "did you mean" in text and "adamw" in text and "adam" in text
    assert "lion" not in text


def test_name_without_neighbours_lists_all(package):
    registry = registry_of(package, ("adamw", 1), ("lion", 2))
    with pytest.raises(UserError) as caught:
        registry.get("zzzzzzzzz")
    assert str(caught.value) == "unknown gadget 'zzzzzzzzz': known: adamw, lion"


def test_second_owner_of_a_name_is_refused_and_the_first_stays(package):
    registry = registry_of(package, ("twin", "first"))
    with pytest.raises(UserError, match="two plugins are called gadget 'twin'"):
        registry.register("twin")("second")
    assert registry.get("twin") == "first"


def test_same_object_may_register_twice(package):
    entry = object()
    registry = registry_of(package, ("x", entry), ("x", entry))
    assert registry.get("x") is entry


def test_modules_of_the_package_register_themselves(tmp_path, package):
    folder = tmp_path / "site" / package
    (folder / "__init__.py").write_text(
        f"from em_core.plugins import Registry\nregistry = Registry('gadget', 'no.group', {package!r})\n",
        encoding="utf-8",
    )
    for name in ("first", "second"):
        (folder / f"{name}.py").write_text(
            f"from {package} import registry\n@registry.register({name!r})\ndef plugin():\n    return {name!r}\n",
            encoding="utf-8",
        )
    registry = __import__(package).registry
    assert registry.names() == ["first", "second"]
    assert registry.get("second")() == "second"


def test_entry_point_of_another_distribution_is_found(tmp_path, package):
    install(
        tmp_path / "site",
        "foreign_gadgets",
        f"{package}.group",
        {"foreign": "foreign_module:make"},
        "def make():\n    return 42\n",
    )
    registry = registry_of(package, ("own", 1))
    assert registry.names() == ["foreign", "own"]
    assert registry.get("foreign")() == 42


def test_entry_point_of_another_group_is_not(tmp_path, package):
    install(tmp_path / "site", "others", "another.group", {"foreign": "others_module:make"}, "def make():\n    pass\n")
    assert registry_of(package, ("own", 1)).names() == ["own"]


def test_entry_point_with_a_taken_name_is_refused(tmp_path, package):
    install(
        tmp_path / "site",
        "thief",
        f"{package}.group",
        {"own": "thief_module:make"},
        "def make():\n    return 42\n",
    )
    with pytest.raises(UserError, match="two plugins are called gadget 'own'"):
        registry_of(package, ("own", 1)).names()


@pytest.mark.parametrize(
    "source", ["import nothing_like_it", "raise RuntimeError('no\\ndriver')", "def make(:", "1 / 0"]
)
def test_entry_point_that_fails_in_any_way_leaves_the_others(tmp_path, package, source):
    install(tmp_path / "site", "broken", f"{package}.group", {"broken": "failing_module:make"}, source)
    registry = registry_of(package, ("own", 1))
    assert registry.names() == ["own"] and registry.get("own") == 1
    with pytest.raises(UserError, match=r"'broken': failing_module:make cannot be loaded \(\w+Error: ") as caught:
        registry.get("broken")
    assert "\n" not in str(caught.value)


def test_broken_entry_point_names_itself_every_time(tmp_path, package):
    install(
        tmp_path / "site",
        "broken",
        f"{package}.group",
        {"broken": "broken_module:make"},
        "raise ImportError('its own dependency is missing')\n",
    )
    registry = registry_of(package, ("own", 1))
    for _ in range(2):
        with pytest.raises(UserError, match="broken"):
            registry.get("broken")
    assert registry.get("own") == 1
