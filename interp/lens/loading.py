"""`interp.load`: a Lens from a name, a path, or a model that is already there."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from interp.errors import InterpError
from interp.files.private import expanded
from interp.files.reading import expect_regular
from interp.lens.trying_tokenizers import try_apart
from interp.lens.unwrapping import refuse_adapter, unwrapped
from interp.subjects.claimed_size import Held, bounded, held_in, refuse_impossible
from interp.subjects.panics import PanicError, panics_caught
from interp.subjects.quiet import loading

if TYPE_CHECKING:
    from interp.lens.bridge import BridgeLens
    from interp.lens.lens import Lens

NUMBERED = re.compile(r"(.*?\D)\.(\d+)\.")
"""The name of a weight up to the number of its layer."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@overload
def load(
    model: str | Path,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "float32",
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> Lens: ...


@overload
def load(
    model: Any,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "float32",
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> Lens | BridgeLens: ...


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "float32",
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> Lens | BridgeLens:
    """Make a Lens.

    Args:
        model: `"demo"`, `"emoji-vlm"` (small, and sees), a hub id, a local folder, a `.gguf` file, a loaded model of
            transformers, or a TransformerBridge. Of a peft model (adapters active), a compiled or a parallel one the
            transformers model inside is taken.
        tokenizer: for a model that is already loaded; otherwise it comes with the weights. A transformers tokenizer, or
            a folder or hub id to load one from, or the processor of a model that sees. A folder of weights without a
            tokenizer gives a Lens for tokens only.
        dtype: of the weights, a torch dtype or its name; ignored for a loaded model.
        device_map, attn_implementation: passed to transformers.
        trust_remote_code: run code that a hub repository ships; off unless you say so. Weights load from safetensors
            or GGUF only.
        **kwargs: further arguments of `from_pretrained`, for a hub id or a folder.

    Raises:
        InterpError: the model is not there, its weights are damaged, or its attention is not one a Lens can read.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}
        >>> lens = interp.load(LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape)))  # interp.load("demo"), ...
        >>> lens.cfg.n_layers, lens.cfg.d_head
        (2, 8)
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = _tokenizer_of(str(tokenizer), trust_remote_code, getattr(model, "config", None))
    if isinstance(model, (str, Path)):
        name = str(model)
        loaded, tokenizer = _from_name(
            name, dtype_named(dtype), tokenizer, device_map=device_map, attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code, **kwargs,
        )  # fmt: skip
        return _lens(loaded, tokenizer, name)
    given = {"device_map": device_map, "attn_implementation": attn_implementation, **kwargs}
    if ignored := sorted(name for name, value in given.items() if value is not None):
        raise InterpError(f"{', '.join(ignored)} would be ignored: this model is loaded already.")
    if is_bridge(model):
        from interp.lens.bridge import BridgeLens

        return BridgeLens(model, tokenizer)
    return _lens(model, tokenizer, None)


def is_bridge(model: Any) -> bool:
    """Whether a model is TransformerLens' wrapper, told without importing it (the import silences transformers'
    logger)."""
    module = sys.modules.get("transformer_lens.model_bridge")
    return module is not None and isinstance(model, module.TransformerBridge)


def _lens(model: Any, tokenizer: Any, name: str | None) -> Lens:
    from transformers import PreTrainedModel

    from interp.lens.lens import Lens

    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise InterpError(
            f"interp.load takes 'demo', a hub id, a folder, a .gguf file, a transformers model or a TransformerBridge, "
            f"not {type(model).__name__}."
        )
    return Lens(model, tokenizer, name)


def dtype_named(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of that name. Raises InterpError for one that models are not loaded in."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InterpError(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}.")
    return DTYPES[dtype]


def _from_name(name: str, dtype: torch.dtype, tokenizer: Any, **options: Any) -> tuple[Any, Any]:
    from interp.subjects.demo import demo_gguf
    from interp.subjects.weights import load_gguf

    path = _place(name, "the model")
    if name in ("demo", "emoji-vlm") or name.endswith(".gguf"):
        if ignored := sorted(options.keys() - {"device_map", "attn_implementation", "trust_remote_code"}):
            raise InterpError(f"{', '.join(ignored)} would be ignored: a .gguf file takes no such arguments.")
        if name == "emoji-vlm":
            from interp.subjects.emoji.model import emoji_vlm

            model, own = emoji_vlm(dtype)
            return _placed(model, **options), tokenizer or own
        model, own = load_gguf(demo_gguf() if name == "demo" else path, dtype)
        return _placed(model, **options), tokenizer or own
    if path.exists() and not path.is_dir():
        raise InterpError(
            f"{name} is a file but not a .gguf; give the folder that holds config.json and safetensors weights."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        refuse_adapter(path)
        raise InterpError(f"the folder {name} has no config.json; give the folder that save_pretrained wrote.")
    if path.is_dir():
        _expect_files(path)
    return _from_pretrained(str(path) if path.is_dir() else name, dtype, tokenizer, path.is_dir(), **options)


def _place(name: str, what: str) -> Path:
    """Where a name leads if it is a path. Raises InterpError where no path can be called so, or none that may be
    looked at."""
    path = expanded(name, what)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):  # the name of something else
        return path
    except (OSError, ValueError) as error:
        raise InterpError(f"cannot look for {what} {name}: {getattr(error, 'strerror', None) or error}.") from None
    return path


def _expect_files(folder: Path) -> None:
    """Raises InterpError where something in a folder would be waited for once it is opened, or would never end."""
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        try:
            expect_regular(path)
        except (FileNotFoundError, IsADirectoryError):  # a link to nowhere, a folder: neither is read
            continue
        except OSError as error:
            raise InterpError(f"cannot load the folder {folder}: {path.name}: {error.strerror or error}.") from None


def _placed(model: Any, device_map: Any, attn_implementation: str | None, trust_remote_code: bool) -> Any:
    """A model from a GGUF file where the user wants it."""
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    if device_map is not None:
        try:
            model = model.to(torch.device(device_map))
        except (RuntimeError, TypeError) as error:
            raise InterpError(
                f"a .gguf model goes to one device such as 'cpu' or 'cuda:0', not {device_map!r}."
            ) from error
    return model.eval()


def _from_pretrained(
    name: str, dtype: torch.dtype, tokenizer: Any, local: bool, trust_remote_code: bool, **options: Any
) -> tuple[Any, Any]:
    from transformers import AutoConfig

    options = {key: value for key, value in options.items() if value is not None}
    where = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    said = (
        f"the folder {name}"
        if local
        else f"{name!r} (neither 'demo', a file, a folder, nor a hub id that can be reached)"
    )
    with _in_one_sentence(said), loading():
        refuse_impossible(_config_file(name, local), name)
        config = AutoConfig.from_pretrained(name, **where)
        held = held_in(Path(name)) if local else None
        quantised = getattr(config, "quantization_config", None) is not None
        with bounded(name, lambda: held or _fetched(name, config), quantised):
            model, found = _auto_class(config).from_pretrained(
                name, dtype=dtype, use_safetensors=True, output_loading_info=True, **where, **options
            )
        if tokenizer is None and not (local and not _has_tokenizer(Path(name))):
            with _in_one_sentence(f"{said}, its tokenizer"):
                tokenizer = _read_tokenizer(name, where, config)
    _refuse_more_layers(model, found["unexpected_keys"], name)
    if missing := sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"])):
        raise InterpError(  # transformers would go on with random numbers in their place
            f"the weights of {name} lack {len(missing)} tensors, {missing[0]} among them; download or save them again."
        )
    return model.eval(), tokenizer


def _refuse_more_layers(model: Any, left: Iterable[str], name: str) -> None:
    """Raise InterpError where weights of further layers were left out: a model cut short computes something else.

    Layers that predict further tokens are no part of the text's own model, and configs that have them say so.
    """
    lists = {place for place, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = {(found[1], int(found[2])) for key in left if (found := NUMBERED.match(key)) and found[1] in lists}
    allowed = getattr(model.config, "num_nextn_predict_layers", None) or 0
    for place in {place for place, _ in found}:
        have = len(model.get_submodule(place))
        further = {number for other, number in found if other == place and number >= have}
        if len(further) > allowed:
            raise InterpError(
                f"the config of {name} asks for {have} of {place}, and its weights have {have + len(further)}; mend "
                "its config.json."
            )


def _config_file(name: str, local: bool) -> dict[str, Any]:
    """What config.json says, before anything is made of it; nothing where that is for transformers to refuse."""
    from transformers import PreTrainedConfig

    said = PreTrainedConfig.get_config_dict(name, local_files_only=local)[0]
    return said if isinstance(said, dict) else {}


def _fetched(name: str, config: Any) -> Held | None:
    """What the weights of a hub id hold, which are in the hub's cache beside its config."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=getattr(config, "_commit_hash", None))
    return held_in(Path(path).parent) if isinstance(path, str) else None


def _read_tokenizer(name: str, where: dict[str, Any], config: Any = None) -> Any:
    """A tokenizer or, of a model with this config that sees, the processor that has one, tried before it is read."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    with suppress(OSError):  # there is none, or none to be reached: for transformers to say
        try_apart(Path(cached_file(name, "tokenizer.json", local_files_only=where["local_files_only"])))
    with panics_caught():
        return _seeing(name, config, where) or AutoTokenizer.from_pretrained(name, **where)


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    """What a loader raises, of which each has exceptions of its own, as one sentence."""
    try:
        yield
    except InterpError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = (
                "it needs code that comes with it, which is not run; if you have read that code and trust it, pass "
                "trust_remote_code=True to interp.load"
            )
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says; download it again"
        elif isinstance(error, KeyError):
            reason = f"this transformers knows nothing called {reason}"
        elif isinstance(error, PanicError):
            reason = f"the library that reads it gives up: {reason}"
        elif isinstance(error, TypeError | AttributeError | IndexError | ArithmeticError):
            reason = f"something in its files is not what it should be ({reason})"
        raise InterpError(f"cannot load {what}: {reason[:300]}") from error


def _auto_class(config: Any) -> Any:
    """The auto class whose models of this kind write text: those with an encoder have classes of their own."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    if not getattr(config, "is_encoder_decoder", False):
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        return AutoModelForImageTextToText if sees else AutoModelForCausalLM
    reads_text = type(config) in AutoModelForSeq2SeqLM._model_mapping
    return AutoModelForSeq2SeqLM if reads_text else AutoModelForImageTextToText


def _seeing(name: str, config: Any, where: dict[str, Any]) -> Any:
    """The processor of a model that sees; None, with a warning, where it cannot be made here, so that text is read."""
    from transformers import AutoModelForImageTextToText

    from interp.vision.processors import processor_of, sees

    if type(config) not in AutoModelForImageTextToText._model_mapping:
        return None
    try:
        processor = processor_of(name, **where)
    except Exception as error:  # transformers raises what it likes where a part is missing
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        warnings.warn(f"{name} is read as text alone, since its processor cannot be made: {reason}", stacklevel=4)
        return None
    return processor if sees(processor) else None


TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "spiece*",
    "*.tiktoken",
    "*.model",
    "tekken*",
    "special_tokens_map*",
)


def _has_tokenizer(folder: Path) -> bool:
    """Whether any file of a tokenizer lies in a folder; one that is damaged is not the same as none."""
    return any(next(folder.glob(pattern), None) is not None for pattern in TOKENIZER_FILES)


def _tokenizer_of(name: str, trust_remote_code: bool, config: Any) -> Any:
    """The tokenizer in a folder, or of a hub id; the processor, for a model with this config that sees."""
    folder = _place(name, "the tokenizer")
    local = folder.is_dir()
    if local:
        _expect_files(folder)
    what = f"a tokenizer from {name!r}, neither a folder nor a hub id that can be reached"
    with _in_one_sentence(what), loading():
        return _read_tokenizer(
            str(folder) if local else name,
            {"trust_remote_code": trust_remote_code, "local_files_only": local},
            config,
        )
