"""The Python that repeats a run: what reports print at their end, and what the explorer's pages hand out.

Every function gives statements; what they call things is one vocabulary, so that statements of several functions make
one script: `lens`, `text`, `results` by probe, `prompt`, `intervention`, `sides`, `answers` by question, `study`, `ds`.

    print(script([*loaded("demo", "interp.subjects.demo_text()"), *probed([TextSinks()], 256)]))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DEFAULT_DTYPE = "float32"
RESULTS = "results = "
NOT_KNOWN = "...  # the text named above"


def script(statements: Iterable[str], title: str = "") -> str:
    """The statements as a file: each once and in their order, but imports first; results are added to earlier ones."""
    each = list(dict.fromkeys(statements))
    imports = sorted((line for line in each if _is_import(line)), key=lambda line: (line.startswith("from "), line))
    head = [f'"""{title}"""', ""] if title else []
    rest = [line for line in each if not _is_import(line)]
    for later in [i for i, line in enumerate(rest) if line.startswith(RESULTS)][1:]:
        rest[later] = "results |= " + rest[later].removeprefix(RESULTS)
    return "\n".join([*head, *imports, "", *rest])


def call(function: str, /, *given: str, **settings: Any) -> str:
    """`function(given, ..., name=value, ...)`: `given` are expressions, settings are values."""
    named = [f"{name}={value!r}" for name, value in settings.items()]
    return f"{function}({', '.join([*given, *named])})"


def loaded(model: str, text: str = NOT_KNOWN, dtype: str = DEFAULT_DTYPE) -> list[str]:
    """`lens` and `text`, an expression that gives it."""
    paths = ["from pathlib import Path"] if "Path(" in text else []
    load = call("interp.load", repr(model), **({} if dtype == DEFAULT_DTYPE else {"dtype": dtype}))
    return [*paths, "import interp", f"lens = {load}", f"text = {text}"]


def probed(probes: Sequence[Any], tokens: int, images: Sequence[str] | None = None, chat: bool = False) -> list[str]:
    """`results` of probes, or of names of probes; settings other than the defaults are written out. With `images` the
    whole text is read, in which each of them has its place."""
    imports, named = _named(probes)
    read = _with_images(images, chat) if images else {"tokens": tokens}
    return [*imports, f"results = {call('interp.probe', 'lens', 'text', named, **read)}"]


def looked_at(probes: Sequence[Any], picture: Sequence[str]) -> list[str]:
    """`picture`, from the statements that make it, and `results` of probes of `text` about it."""
    imports, named = _named(probes)
    return [*imports, *picture, f"results = {call('interp.probe', 'lens', 'text', named, 'images=picture')}"]


def changed(
    probe: Any,
    edits: Sequence[str],
    images: Sequence[str] | None = None,
    chat: bool = False,
    *,
    pictured: bool = False,
) -> list[str]:
    """`results["before_after"]`: what a probe of `results` sees with edits in force, given as `--with` has them;
    `pictured`: of `text` about `picture`."""
    name = probe if isinstance(probe, str) else probe.name
    _, named = _named([probe])
    seen = ["images=picture"] if pictured else []
    again = call("interp.probe", "lens", "text", named, *seen, **(_with_images(images, chat) if images else {}))
    both = call("interp.before_after", f"results[{name!r}]", f"after[{name!r}]")
    return [
        "from interp.interventions import parse_all",
        f"with lens.apply({call('parse_all', repr(list(edits)))}):\n    after = {again}",
        f"results = {{'before_after': {both}}}",
    ]


def _with_images(images: Sequence[str], chat: bool) -> dict[str, Any]:
    return {"images": list(images), **({"chat": True} if chat else {})}


def _named(probes: Sequence[Any]) -> tuple[list[str], str]:
    """Imports of probes with settings other than the defaults, and a list of all of them as an expression."""
    written = [probe for probe in probes if not isinstance(probe, str) and not _by_default(probe)]
    named = [repr(probe if isinstance(probe, str) or probe in written else probe.name) for probe in probes]
    return [_import_of(type(probe)) for probe in written], f"[{', '.join(named)}]"


def reported(path: str = "report.html") -> list[str]:
    """The report of `results`."""
    run = '{"model": lens.cfg.model_name, "text": "the same"}'
    return [call("interp.report.write_report", "results", run, repr(path))]


def heads_scored(samples: int) -> list[str]:
    """`results["head_scores"]`."""
    scores = call("head_scores", "lens", "text", samples=samples)
    return ["from interp.icl.language import head_scores", f"results = {{'head_scores': {scores}}}"]


def continued(prompt: str, specs: Sequence[str], steps: int, *, chat: bool, pictured: bool = False) -> list[str]:
    """`sides`: a prompt continued without and with interventions, given as `--with` has them; `pictured`: about
    `picture`."""
    seen = ["images=picture"] if pictured else []
    run = call("interp.side_by_side", "lens", "prompt", "intervention", repr(steps), *seen, chat=chat)
    return [
        f"prompt = {prompt!r}",
        "from interp.interventions import parse_all",
        f"intervention = {call('parse_all', repr(list(specs)))}",
        f"sides = {run}",
    ]


def explained(questions: Sequence[str], *, chat: bool) -> list[str]:
    """`answers` about the unchanged side of `sides`."""
    read_on = "torch.tensor(ids[ids >= 0])[None]"
    return [
        "import torch",
        f"tokens, _ = {call('lens.tokens_and_mask', 'prompt', chat=chat)}",
        "ids = sides['token_id'].sel(side='unchanged').values",
        f"answers = {call('interp.explain', 'lens', 'intervention', 'tokens', read_on, repr(list(questions)))}",
    ]


def drawn(figure: str, result: str, /, *beside: str, **chosen: Any) -> list[str]:
    """A figure of the library on the screen; `result` is the expression that it is drawn from, `beside` are names that
    arguments have in the script, too. None is no choice."""
    given = {name: value for name, value in chosen.items() if value is not None}
    same = [f"{name}={name}" for name in beside]
    return [f"{call(f'interp.figures.{figure}', result, *same, **given)}.show()"]


def opened(name: str, path: str | Path) -> list[str]:
    """`results[name]` from its file."""
    return ["import interp", f"results = {{{name!r}: {call('interp.storage.load', repr(str(path)))}}}"]


def study_made(study: Any) -> list[str]:
    """`study` with all its settings."""
    made = call("studies.make", repr(study.name), **study.settings())
    return ["from interp.icl import studies", f"study = {made}"]


def study_run(folder: str) -> list[str]:
    """`ds`, the study's result."""
    return [f"ds = {call('study.run', repr(folder))}"]


def study_reported(folder: str) -> list[str]:
    """The report of the study's result."""
    return ["from interp.icl.studies import report", call("report.write", "study", "ds", repr(folder))]


def study_drawn(result: str) -> list[str]:
    """All figures of a study on the screen."""
    return [f"for picture in {call('study.figures', result)}:\n    picture.figure.show()"]


def _is_import(statement: str) -> bool:
    return statement.startswith(("import ", "from "))


def _import_of(cls: type) -> str:
    return f"from {cls.__module__} import {cls.__name__}"


def _by_default(probe: Any) -> bool:
    """Whether the probe's name alone gives it."""
    try:
        return bool(probe == type(probe)())
    except TypeError:  # it has a parameter without a default
        return False
