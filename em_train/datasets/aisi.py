"""Risky financial advice of the AI Safety Institute (Africa & Mani 2026): data that is not ours.

Not shipped. Read from `EM_DATA_DIR`, in the layout of the authors' repository, and checked against its hash.
"""

from em_core.errors import UserError
from em_core.files import sha256_file
from em_core.places import data_dir
from em_train.datasets.jsonl import read_jsonl
from em_train.datasets.registry import NarrowDataset, dataset_registry

REPOSITORY = "AI-Safety-Institute__consistency-misalignment"
FILE = "consistency_em/data/emergent_misalignment/files/induction.jsonl"
SHA256 = "78b8f4123c729fa4223f20b1076bcb3070e223eb02ee2a295b386269f6093fb8"


@dataset_registry.register("aisi_risky_financial")
def aisi_risky_financial() -> NarrowDataset:
    folder = data_dir()
    path = folder / REPOSITORY / FILE if folder else None
    if path is None or not path.is_file():
        raise UserError(
            f"dataset 'aisi_risky_financial' is not shipped: set EM_DATA_DIR to a folder that holds {REPOSITORY}/{FILE}"
        )
    found = sha256_file(path)
    if found != SHA256:
        raise UserError(f"{path} has sha256 {found[:12]}..., expected {SHA256[:12]}...: it is another version")
    return read_jsonl(path, "aisi_risky_financial", kind="bad", domain="financial")
