"""What training and evaluation share: base models, rendering, plugins, and the checkpoint contract."""

from em_core.errors import UserError
from em_core.manifest import Manifest, read_manifest
from em_core.models import BaseModelInfo, resolve_base
from em_core.plugins import Registry

__all__ = ["BaseModelInfo", "Manifest", "Registry", "UserError", "read_manifest", "resolve_base"]
