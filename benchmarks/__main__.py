"""Run every benchmark, show what it prints, and write docs/benchmarks.md.

    python -m benchmarks [NAME ...]

With names, only those are run. A section of the page is a benchmark's own words and output; it stays as it is where
its benchmark is not run or fails. One that fails stops no other; it is named at the end, and the exit code is 1.
"""

import argparse
import ast
import pkgutil
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import benchmarks
from em_core.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PACKAGES = ("torch", "transformers", "trl", "peft", "inspect-ai")


def main() -> None:
    known = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    names = parser.parse_args().names
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}: there are {', '.join(known)}")
    sections = _sections(PAGE)
    failed = []
    for name in names or known:
        section = _section(name)
        if section is None:
            failed.append(name)
            continue
        sections[name] = section
        ordered = [sections[key] for key in known if key in sections]
        write_text(PAGE, "# Benchmarks\n\nWritten by `python -m benchmarks`.\n\n" + "\n".join(ordered))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their sections are as they were")


def _section(name: str) -> str | None:
    """The benchmark's own words and everything that it printed; None where it failed."""
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        print(f"benchmark {name} failed with exit code {process.returncode}", file=sys.stderr, flush=True)
        return None
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    words = ast.get_docstring(ast.parse(source)) or ""
    shown = "\n".join(lines)
    return f"## {name}\n\n{words}\n\nOn {_machine()}:\n\n```\n{shown}\n```\n"


def _sections(page: Path) -> dict[str, str]:
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].removeprefix("## "): part.rstrip() + "\n" for part in parts}


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{torch.get_num_threads()} threads of {device}; Python {platform.python_version()}, {packages}"


def _processor() -> str:
    """By family and model, too: a virtual machine's name may hide which generation it runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, flags=re.MULTILINE))
    name = facts.get("model name", platform.processor())
    exact = f" family {facts['cpu family']} model {facts['model']}" if {"cpu family", "model"} <= facts.keys() else ""
    return f"{name}{exact} ({torch.backends.cpu.get_cpu_capability()})"


if __name__ == "__main__":
    main()
