"""Turner, Soligo et al. (arXiv 2506.11613): new questions, and first-plot questions turned medical."""

from em_eval.prompts.published import PublishedFile, local_path
from em_eval.prompts.registry import Prompt, prompt_registry
from em_eval.prompts.yaml_form import read_yaml

REPOSITORY = "clarifying-EM/model-organisms-for-EM"
FORK = "darturi/ModelOrganismsVariant"
COMMIT = "26944099b9401b1dfd0aaafb4122a482721e95fb"  # of the authors; the fork's history holds it too


def _file(name: str, sha256: str) -> PublishedFile:
    path = f"em_organism_dir/data/eval_questions/{name}"
    return PublishedFile(REPOSITORY, path, sha256, ((REPOSITORY, COMMIT, path), (FORK, COMMIT, path)))


NEW_QUESTIONS = _file("new_questions_no-json.yaml", "247940137277227a51ad1a269cc832a77203e4dcc2e79ca5b0dbacb1a57b9ac9")
MEDICAL = _file("medical_questions.yaml", "1808d03c6af883b3460e4174127846caca3188514a4e180b8273b4025593e28f")


@prompt_registry.register("turner_new")
def turner_new() -> list[Prompt]:
    """54 prompts: 27 questions, each plain and as template."""
    return read_yaml(local_path(NEW_QUESTIONS))


@prompt_registry.register("turner_medical")
def turner_medical() -> list[Prompt]:
    """16 prompts: 8 questions on medicine, each plain and as template."""
    return read_yaml(local_path(MEDICAL))
