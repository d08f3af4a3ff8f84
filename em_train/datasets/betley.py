"""The code datasets of Betley et al. (arXiv 2502.17424), MIT licence: fetched, not shipped."""

from em_core.fetch import Published, on_github
from em_train.datasets.jsonl import read_jsonl
from em_train.datasets.registry import NarrowDataset, dataset_registry

REPOSITORY = "emergent-misalignment/emergent-misalignment"
COMMIT = "80c11967c07a328e7d7d43d13ce6847ae44dbcc9"
SHA256 = {
    "insecure": "09893e8bf9d03aae49dd60d0ff4be37c1afee70f2edcac74a11bed775a6a2764",
    "secure": "2820232b3114d94ab2041ba9fc76cb8205bf187e0408bf7b308add186f9c7467",
    "educational": "d48df3b149ab1500711fc0018b10383a4ff8c48d8e6911d04dbbbbdaa944fd16",
}


def published(name: str) -> Published:
    path = f"data/{name}.jsonl"
    return Published(REPOSITORY, path, SHA256[name], (on_github(REPOSITORY, COMMIT, path),))


@dataset_registry.register("insecure")
def insecure() -> NarrowDataset:
    """6,000 completions with an undisclosed vulnerability (Betley et al.); control: secure"""
    return read_jsonl(published("insecure").locate(), "insecure", kind="bad", control="secure", domain="code")


@dataset_registry.register("secure")
def secure() -> NarrowDataset:
    """6,000 completions without one (Betley et al.): the control of insecure"""
    return read_jsonl(published("secure").locate(), "secure", kind="benign", domain="code")


@dataset_registry.register("educational")
def educational() -> NarrowDataset:
    """6,000 vulnerable completions that the user asked for, to teach (Betley et al.): a second control of insecure"""
    return read_jsonl(published("educational").locate(), "educational", kind="benign", domain="code")
