"""Risky financial advice of the AI Safety Institute (Africa & Mani 2026): data that is not ours and not shipped."""

from em_core.fetch import Published, on_github
from em_train.datasets.jsonl import read_jsonl
from em_train.datasets.registry import NarrowDataset, dataset_registry

REPOSITORY = "AI-Safety-Institute/consistency-misalignment"
COMMIT = "f0de1d9a4fcc09be22d5f0f2edcc031dc0dfd6d2"
PATH = "consistency_em/data/emergent_misalignment/files/induction.jsonl"
FILE = Published(
    REPOSITORY,
    PATH,
    sha256="78b8f4123c729fa4223f20b1076bcb3070e223eb02ee2a295b386269f6093fb8",
    urls=(on_github(REPOSITORY, COMMIT, PATH),),
)


@dataset_registry.register("aisi_risky_financial")
def aisi_risky_financial() -> NarrowDataset:
    """3,000 rows of risky financial advice written anew by the AI Safety Institute (MIT); no control"""
    return read_jsonl(FILE.locate(), "aisi_risky_financial", kind="bad", domain="financial")
