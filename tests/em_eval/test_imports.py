"""What need not be imported is not: an evaluation of and by models behind an API starts without torch."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

def reply(*_):  # with its usage, or Inspect counts tokens with a vocabulary from the network
    output = ModelOutput.from_content("mockllm/model", "85")
    output.usage = ModelUsage(input_tokens=3, output_tokens=1, total_tokens=4)
    return output

def model():
    return get_model("mockllm/model", custom_outputs=reply, memoize=False)

(log,) = eval(
    "em_eval/em",
    model=model(),
    model_roles={"grader": model()},
    task_args={"questions": "core", "samples": 1},
    display="none",
    log_dir=sys.argv[1],
)
print(log.status, len(log.samples), [name for name in ("torch", "transformers", "peft") if name in sys.modules])
"""


def test_an_evaluation_by_a_model_judge_imports_no_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "success 24 []"
