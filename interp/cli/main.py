"""The command line: `interp models | probe | report | generate | icl | evaluate | compare-logs | bench | app`.

A user's mistake is one line on standard error and exit code 2; a failure of ours is one line and exit code 1 (`--debug`
shows the traceback of either). With `--json` standard output is one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.compare_logs import compare_logs
from interp.cli.evaluate import evaluate
from interp.cli.icl import icl
from interp.cli.loading import loaded
from interp.cli.terminal import DEBUG, ReaderGoneError, at_home, bar, command_line, plain_streams, printable
from interp.errors import InterpError
from interp.files.writing import Outputs, expect_writable

if TYPE_CHECKING:
    import xarray as xr

    from interp.probes import Probe

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
DEFAULT_TOKENS = 1024
READER_GONE = 141  # what a shell says of a program that a closed pipe ended: 128 and SIGPIPE

Model = Annotated[str, typer.Argument(help="'demo', a hub id, a folder, or a .gguf file")]
Text = Annotated[
    Path | None, typer.Option("--text", callback=at_home, help="a UTF-8 text file; without it Python's own help topics")
]
Tokens = Annotated[
    int | None, typer.Option("--tokens", min=1, help=f"read the first so many tokens; without it {DEFAULT_TOKENS:,}")
]
Probes = Annotated[
    list[str] | None,
    typer.Option(
        "--probes",
        help="names separated by commas, each with settings if you like, as in "
        "text_sinks:epsilon=[0.3,0.8],position=1,attention_rank (a key=value goes with the name before it); may be "
        "repeated; without it all of them",
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="for models that see: a picture for each <image> in the text, which else come first"),
]
Chat = Annotated[bool, typer.Option("--chat", help="put the text through the model's chat template")]
Dtype = Annotated[str, typer.Option("--dtype", help="dtype of the weights")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@dataclass(frozen=True)
class Reading:
    """What one reading of a text gave, and how."""

    results: dict[str, xr.Dataset]
    probes: list[Probe]
    about: dict[str, Any]


@app.callback()
def _app() -> None:
    """See what attention does, change it while the model runs, show why. Add --debug for tracebacks."""


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be loaded without a network."""
    from interp.subjects.local import local_models

    rows = local_models()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(printable(f"{row['name']:40} {row['what']}"))
    print("Besides these, MODEL may be a folder, a .gguf file, or a hub id.")


@app.command()
def probe(
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", callback=at_home, help="folder for the results, one NetCDF file a probe")
    ],
    text: Text = None,
    tokens: Tokens = None,
    probes: Probes = None,
    images: Images = None,
    chat: Chat = False,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Run probes on a model reading a text and store their results."""
    wanted = _resolved(probes, images)
    expect_writable(*(out / f"{one.name}.nc" for one in wanted))
    run = _read(model, text, tokens, wanted, dtype, images, chat)
    from interp.results.storage import save

    with Outputs() as outputs:
        files = {name: str(save(dataset, out / f"{name}.nc", outputs)) for name, dataset in run.results.items()}
    _tell(run, {"files": files}, as_json)


@app.command()
def report(
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", callback=at_home, help="the HTML file; Markdown and NetCDF go beside it")
    ] = Path("report.html"),
    text: Text = None,
    tokens: Tokens = None,
    probes: Probes = None,
    images: Images = None,
    chat: Chat = False,
    interventions: Annotated[
        list[str] | None,
        typer.Option("--with", help="with --image: show what an attention edit changes, as in var:channels=507"),
    ] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Write a report about a model reading a text: one HTML file that works offline, Markdown, and the numbers."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InterpError(f"--out names the HTML file of the report, not {out}; end it in .html.")
    wanted = _resolved(probes, images)
    from interp.cli.changing import CHANGED, edits_to_show
    from interp.report import write_markdown, write_report
    from interp.report.markdown import data_path

    kept = [one.name for one in wanted] + [CHANGED] * bool(edits_to_show(interventions, wanted, images))
    expect_writable(out, out.with_suffix(".md"), *(data_path(out, name) for name in kept))
    run = _read(model, text, tokens, wanted, dtype, images, chat, interventions)
    with Outputs() as outputs:  # the page, which is opened, comes last
        markdown = write_markdown(run.results, run.about, out.with_suffix(".md"), run.probes, outputs)
        page = write_report(run.results, run.about, out, run.probes, outputs)
    _tell(run, {"files": {"html": str(page), "markdown": str(markdown)}}, as_json)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="the text to continue")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", callback=at_home, help="a UTF-8 text file to continue")
    ] = None,
    interventions: Annotated[
        list[str] | None,
        typer.Option("--with", help="an intervention, as in think:ratio=0.5, or a .toml file of them; may be repeated"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="stop after so many tokens")] = 64,
    chat: Chat = False,
    images: Images = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Continue a prompt with interventions in force, and account for the cache, the speed and the memory."""
    if (prompt is None) == (prompt_file is None):
        raise InterpError("generate continues one text: pass either --prompt TEXT or --prompt-file FILE.")
    from interp.interventions import parse_all
    from interp.subjects.texts import read_text

    intervention = parse_all(interventions or ())
    content = read_text(prompt_file) if prompt_file is not None else prompt
    if not content or not content.strip():
        raise InterpError("the prompt is empty; pass some text.")
    pictures = _pictures(images)
    lens, seconds = loaded(model, dtype)
    from interp.results.provenance import provenance
    from interp.runs.generating import generate as generate_text
    from interp.subjects.quiet import quiet_transformers

    with bar("generating", max_new_tokens) as step, quiet_transformers():
        asked = _with_places(content, images, chat)
        told = generate_text(lens, asked, intervention, max_new_tokens, chat=chat, images=pictures, progress=step)
    about = {
        "model": lens.cfg.model_name,
        "architecture": lens.cfg.architecture,
        "dtype": lens.cfg.dtype,
        "prompt": "--prompt" if prompt_file is None else str(prompt_file),
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        "command": command_line(),
        "seconds": seconds,
        **provenance(lens.device),
    }
    if as_json:
        print(json.dumps({"run": about, **told}, default=str))
        return
    for note in told["notes"]:
        print(f"note: {printable(note)}", file=sys.stderr)
    print("\n".join(printable(line) for line in told["text"].split("\n")))
    print("\n" + "\n".join(map(printable, _account(lens.cfg.model_name, told))))


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="what to time: kernels")] = "kernels",
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", min=64, help="length of the text; may be repeated [1024, 4096]")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; without it a GPU if there is one")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="dtype of the tensors")] = "float32",
    as_json: Json = False,
) -> None:
    """Time the attention kernels here: which path each takes, beside torch's own and the machine's ceilings."""
    if what != "kernels":
        raise InterpError(f"bench knows nothing called {what!r}; there is 'kernels'.")
    import torch

    from interp.lens.loading import dtype_named
    from interp.results.provenance import provenance

    if device not in (None, "cpu", "cuda"):
        raise InterpError(f"--device is cpu or cuda, not {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InterpError("there is no CUDA device that torch can use here; leave --device out, or pass cpu.")
    from interp_kernels.timing import measure

    kind = dtype_named(dtype)
    with bar("timing", 1) as step:
        rows = measure(tuple(tokens or (1024, 4096)), device=device, dtype=kind)
        step(1, 1)
    about = {"command": command_line(), **provenance(device or ("cuda" if torch.cuda.is_available() else "cpu"))}
    if as_json:
        print(json.dumps({"run": about, "kernels": rows}, default=str))
        return
    import pandas as pd

    print(pd.DataFrame(rows).dropna(axis=1, how="all").to_string(index=False))


app.command()(icl)
app.command(name="compare-logs")(compare_logs)
app.command()(evaluate)


@app.command(name="app")
def explorer(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="without it the first free from 8501")
    ] = None,
    address: Annotated[str, typer.Option("--address", help="what to listen on")] = "localhost",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="do not open a browser")] = False,
) -> None:
    """Open the explorer in a browser."""
    from interp.cli.explorer import start

    if code := start(port, address, browser=not no_browser):
        raise typer.Exit(code)


def _account(model: str, told: dict[str, Any]) -> list[str]:
    """What generation took, in words."""
    named = [", ".join(f"{k}={v}" for k, v in one.items() if k != "name") for one in told["interventions"]]
    under = " | ".join(f"{one['name']}({text})" for one, text in zip(told["interventions"], named, strict=True))
    held, dense = told["cache"]["bytes"], told["cache"]["dense_bytes"]
    speed, peak = told["decode_tokens_per_second"], told["peak_resident_bytes"]
    decoding = "" if speed is None else f", then {speed:.1f} tokens a second"
    memory = "" if peak is None else f"; peak resident memory {peak / 2**20:,.0f} MiB, the model's loading included"
    return [
        f"{model} read {told['prompt_tokens']:,} tokens and wrote {told['new_tokens']:,}"
        + (f" under {under}." if under else ", with nothing changed."),
        f"Cache: {held / 2**20:,.2f} MiB for {told['cache']['tokens']:,} tokens; dense it would be "
        f"{dense / 2**20:,.2f} MiB ({1 - held / dense:.0%} saved).",
        f"Prefill {told['prefill_seconds']:.2f} s{decoding}{memory}.",
    ]


def _resolved(probes: list[str] | None, images: list[Path] | None) -> list[Probe]:
    """The probes that are asked for."""
    from interp.probes import resolve
    from interp.settings.reading import split

    return resolve(split(probes, "probe") if probes is not None else None, "images" if images else "text")


def _pictures(images: list[Path] | None) -> list[Any] | None:
    """The pictures, opened; None where there are none."""
    from interp.vision.pictures import opened

    return [opened(path) for path in images] if images else None


def _with_places(content: str, images: list[Path] | None, chat: bool) -> str:
    """A text with places for its images: before it, unless it has some or a chat template puts them there."""
    from interp.vision.prompts import PLACE

    return content if not images or chat or PLACE in content else PLACE * len(images) + "\n" + content


def _read(
    model: str, text: Path | None, tokens: int | None, wanted: list[Probe], dtype: str, images: list[Path] | None,
    chat: bool, specs: list[str] | None = None,
) -> Reading:  # fmt: skip
    """Check everything that can be checked before the model is loaded, then load and probe."""
    from interp.subjects.texts import demo_text, read_text

    if images and text is None:
        raise InterpError("a picture goes with a text: pass --text FILE with what is asked of it.")
    if images and tokens is not None:
        raise InterpError("a text with images is read whole; leave --tokens out.")
    if chat and not images:
        raise InterpError("--chat is for texts with images here; pass --image FILE, or leave it out.")
    content, pictures = demo_text() if text is None else read_text(text), _pictures(images)
    lens, seconds = loaded(model, dtype)
    import interp
    from interp.cli.changing import changed, edits_to_show

    asked = tokens or min(DEFAULT_TOKENS, lens.cfg.n_ctx or DEFAULT_TOKENS)
    lens.check_length(asked)
    given = _with_places(content, images, chat) if images else lens.to_tokens(content, truncate=asked)[0]
    with bar("reading", lens.cfg.n_layers) as step:
        probing = time.perf_counter()
        results = interp.probe(lens, given, wanted, images=pictures, chat=chat, progress=step)
        if edit := edits_to_show(specs, wanted, images):
            results = changed(lens, edit, wanted, results, given, pictures, chat)
        probed = time.perf_counter()
    from interp.results.provenance import provenance

    n = int(next(iter(results.values())).attrs["n_tokens"])
    about = {
        "model": lens.cfg.model_name,
        "architecture": lens.cfg.architecture,
        "text": "the help topics of this Python (pydoc_data.topics)" if text is None else str(text),
        "python_text": "interp.subjects.demo_text()" if text is None else f"interp.subjects.read_text({str(text)!r})",
        **({"python_images": [str(path) for path in images], "python_chat": chat} if images else {}),
        **({"python_edits": specs} if specs else {}),
        "n_tokens": n,
        "tokens_asked": asked,
        **({"images": ", ".join(map(str, images))} if images else {}),
        "context": lens.cfg.n_ctx,
        "command": command_line(),
        "seconds": {**seconds, "probe": probed - probing},
        **provenance(lens.device),
    }
    for dataset in results.values():
        dataset.attrs |= {"text": about["text"], "command": about["command"]}
    return Reading(results, wanted, about)


def _tell(run: Reading, extra: dict[str, Any], as_json: bool) -> None:
    """Findings for a person, or everything as JSON for a program."""
    findings = {p.name: p.findings(run.results[p.name]) for p in run.probes}
    if as_json:
        print(json.dumps({"run": run.about, "findings": findings, **extra}, default=str))
        return
    about = run.about
    short = (
        ""
        if about["n_tokens"] >= about["tokens_asked"] or "images" in about
        else f" (the text has no more than that; {about['tokens_asked']} were asked for)"
    )
    print(printable(f"{about['model']} read the first {about['n_tokens']} tokens of {about['text']}{short}."))
    for name, sentences in findings.items():
        print(f"\n{name}")
        for sentence in sentences:
            print(f"  - {printable(sentence)}")
    print("\n" + "\n".join(printable(f"wrote {path}") for path in extra["files"].values()))


def main() -> None:
    """Entry point: turns errors into one line and an exit code."""
    debug = DEBUG in sys.argv
    sys.argv = [a for a in sys.argv if a != DEBUG] if debug else sys.argv
    with plain_streams():
        try:
            try:
                app()
            finally:
                sys.stdout.flush()  # what cannot be written is found out now, and not when Python ends
        except InterpError as error:
            _fail(error, debug, f"error: {' '.join(str(error).split())}", 2)
        except KeyboardInterrupt:
            sys.exit(130)
        except ReaderGoneError:
            sys.exit(READER_GONE)
        except Exception as error:
            told = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where)"
            _fail(error, debug, told, 1)


def _fail(error: Exception, debug: bool, line: str, code: int) -> None:
    if debug:
        traceback.print_exception(error)
    else:
        print(line, file=sys.stderr)
    sys.exit(code)
