"""How many sampled answers of `peft/` change when they share other batches: 24 rows beside 96.

    python -m benchmarks.batching [--samples 12] [--tokens 96] [--dtypes float32 bfloat16]

8 prompts, 12 samples each, up to 96 new tokens at temperature 1, from a LoRA adapter (rsLoRA r = 32, all linear layers)
of SmolLM2-135M; every answer has the same seed both times. An answer counts as changed where one character differs.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.generate import PROMPTS, make_adapters
from em_core.chat import render
from em_eval.providers.decoding import complete, encode
from em_eval.providers.sampling import Sampling
from em_eval.providers.weights import load_apart

ROWS = (24, 96)


def changed(adapter: Path, dtype: str, samples: int, tokens: int) -> int:
    """How many of 8 x `samples` answers are not the same with 24 rows as with 96; prints the speed of both."""
    loaded = load_apart(str(adapter), dtype)
    texts = [render(loaded.tokenizer, [{"role": "user", "content": text}], prompt=True) for text in PROMPTS]
    prompts = [encode(loaded, text) for text in texts for _ in range(samples)]
    answers = []
    for rows in ROWS:
        started = time.monotonic()
        said = complete(loaded, prompts, range(len(prompts)), Sampling(tokens), rows)
        seconds, count = time.monotonic() - started, sum(answer.output_tokens for answer in said)
        print(f"{dtype}, {rows} rows: {count} tokens in {seconds:.1f} s, {count / seconds:.0f} tokens/s", flush=True)
        answers.append([answer.text for answer in said])
    return sum(few != many for few, many in zip(*answers, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (adapter,) = make_adapters(Path(folder), 1)
        for dtype in given.dtypes:
            count, whole = changed(adapter, dtype, given.samples, given.tokens), len(PROMPTS) * given.samples
            print(f"{dtype}: {count} of {whole} answers changed ({count / whole:.1%})", flush=True)


if __name__ == "__main__":
    main()
