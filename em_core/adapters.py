"""From an adapter folder to the base model that it needs, wherever both lie now."""

from pathlib import Path

from em_core.errors import UserError
from em_core.files import write_json
from em_core.manifest import ADAPTER_CONFIG, MANIFEST, adapter_config, read_manifest
from em_core.models import BaseModelInfo, resolve_base


def base_of(folder: Path, given: str = "") -> BaseModelInfo:
    """The base model of an adapter folder, ours or not.

    Our manifest names it by id and weight hash, which outlives a move; a foreign adapter has only the path or
    hub id in its configuration.

    Args:
        given: a base to take instead of the one named there.

    Raises:
        UserError: the base cannot be found, or its weights are not those that were trained on.
    """
    if given:
        return _checked(folder, given)
    config = adapter_config(folder)
    named = str(config.get("base_model_name_or_path") or "")
    if not (folder / MANIFEST).is_file():
        if not named:
            raise UserError(f"{folder / ADAPTER_CONFIG} names no base model")
        beside = folder / named
        return resolve_base(str(beside) if beside.is_dir() else named, config.get("revision"))
    wanted = read_manifest(folder).base
    reasons = []
    for name, revision in ((wanted.id, wanted.revision), (named, None)):
        try:
            base = resolve_base(name, revision)
        except UserError as error:
            reasons.append(str(error))
            continue
        if base.weights_sha256 == wanted.weights_sha256:
            return base
        reasons.append(f"{base.path} has weights {base.weights_sha256[:12]}...")
    raise UserError(
        f"the base of {folder}, {wanted.id} with weights {wanted.weights_sha256[:12]}..., was not found "
        f"({'; '.join(reasons)}): give it with em checkpoint relink --base FOLDER"
    )


def relink(folder: Path, base: str | None = None) -> Path:
    """Write into adapter_config.json where the base model lies on this machine; returns that path.

    `hf/` and other readers follow that path literally, so a moved cache or a copied checkpoint needs it.
    """
    config = adapter_config(folder)
    found = base_of(folder, base or "").path
    write_json(folder / ADAPTER_CONFIG, config | {"base_model_name_or_path": str(found)})
    return found


def _checked(folder: Path, base: str) -> BaseModelInfo:
    """The base, if our manifest does not say that it is another."""
    found = resolve_base(base)
    if (folder / MANIFEST).is_file() and read_manifest(folder).base.weights_sha256 != found.weights_sha256:
        raise UserError(f"{base} is not the base that {folder} was trained on (weight hashes differ)")
    return found
