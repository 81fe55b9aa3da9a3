"""The Hugging Face Hub, read: a folder, a file or a repository id turned into a local path.

huggingface_hub is imported inside the functions, so that `import samerge` stays light. It knows the Hub's address:
huggingface.co, or HF_ENDPOINT.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from samerge.errors import AdapterError, BaseModelError, HubError, SamergeError
from samerge.weights.hub_errors import hub_errors
from samerge.weights.published import CARD_NAME

#: Files that a message lists.
_SHOWN = 6

logger = logging.getLogger(__name__)

#: What an adapter in PEFT's format consists of.
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
RECORD_NAME = "samerge.json"
#: What a file that holds an adapter, of PEFT or not, ends with, and what it is usually called.
ADAPTER_ENDINGS = (".safetensors", ".gguf")
USUAL_NAMES = (WEIGHTS_NAME, "adapters.safetensors", "pytorch_lora_weights.safetensors")
#: Names of whole models, which are no adapters.
_MODELS = ("model", "diffusion_pytorch_model", "consolidated")
_PICKLED_WEIGHTS_NAME = "adapter_model.bin"
PICKLED_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
#: Why one of these is not opened, and what to do.
PICKLED = (
    "is in PyTorch's pickle format, which is not opened because it can run code; where you trust it, read it with "
    "torch.load(file, weights_only=True) and write what it holds with safetensors.torch.save_file, as "
    "adapter_model.safetensors beside its adapter_config.json, or under a name of its own"
)
#: A pipeline's index, what its models with adapters are called, and other copies of their weights.
PIPELINE_NAME = "model_index.json"
_ADAPTED = ("unet", "transformer", "text_encoder")
_VARIANTS = ("*.fp16*", "*.non_ema*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "LICENSE*", "NOTICE*")


def default_name(source: str | Path) -> str:
    """What an adapter or a checkpoint is called where nobody gives it a name.

    The last part of a folder, a file or a hub id, of either kind of system, without a revision or an ending.

    Example:
        >>> default_name("ada/math-lora@v2"), default_name("runs/code/"), default_name("C:\\\\loras\\\\code")
        ('math-lora', 'code', 'code')
        >>> default_name("loras/style.safetensors")
        'style'
    """
    text = str(source)
    if not isinstance(source, Path) and not Path(text).exists():
        text = text.partition("@")[0] or text
    name = PureWindowsPath(text).name or Path(text).resolve().name or text
    return PureWindowsPath(name).stem if name.endswith(ADAPTER_ENDINGS) else name


def resolve_adapter(
    source: str | Path,
    *,
    local_files_only: bool = False,
) -> Path:
    """The local folder or file of an adapter: as it is, or a repository of the Hub, downloaded or from the cache.

    What exists here wins over a repository of the same name.

    Args:
        source: a folder or a file, or `user/name` on the Hub; `user/name/folder@revision` or
            `user/name/file.safetensors`. Private and gated repositories need `hf auth login`, or HF_TOKEN.
        local_files_only: use what is in the cache and no network; HF_HUB_OFFLINE=1 means the same. Default: False.

    Returns:
        The folder, or the file where there is no other adapter in it (checked for a repository only).

    Raises:
        AdapterError: there is no such folder, or the repository holds no adapter in safetensors, or several.
        HubError: the Hub refuses or cannot be reached, and the cache does not have all of it.

    Example:
        >>> resolve_adapter("ada/math-lora@v2")  # doctest: +SKIP
        PosixPath('/home/ada/.cache/huggingface/hub/models--ada--math-lora/snapshots/4d5c...')
    """
    doing = f"reading the adapter {str(source)!r}"
    local = _local(source, doing, AdapterError, ADAPTER_ENDINGS)
    if local is not None:
        return local
    source, inner, revision = _parts(str(source))
    named = inner.endswith(ADAPTER_ENDINGS)
    prefix = inner.rpartition("/")[0] if named else inner
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def fetched(*names: str) -> Path:
        return _download(
            str(source),
            doing,
            allow_patterns=[CARD_NAME, *(glob.escape(prefix + name) for name in names)],
            revision=revision,
            local_files_only=local_files_only,
        ) / (prefix or "")

    usual = (inner.rpartition("/")[2],) if named else USUAL_NAMES
    folder = fetched(CONFIG_NAME, *usual)
    if any((folder / name).is_file() for name in usual):
        return folder / usual[0] if named else folder
    absent = prefix + (usual[0] if named or (folder / CONFIG_NAME).is_file() else CONFIG_NAME)
    known = only_adapter([path.name for path in folder.iterdir()] if folder.is_dir() and not named else [])
    if local_files_only:  # what was downloaded once may be a part of the repository
        if known is not None:
            return folder / known
        raise AdapterError(
            f"{doing} from the Hub's cache: there is no {absent}; leave local_files_only out, or run `hf download "
            f"{source}` where there is a network; check the revision, and whether the adapter lies in a subfolder"
        )
    try:
        there = _files_of(str(source), f"{doing} from the Hub: there is no {absent}", revision)
    except HubError:
        if known is None:
            raise
        return folder / known
    here = [file.removeprefix(prefix) for file in there if file.startswith(prefix)]
    only = only_adapter(name for name in here if "/" not in name)
    if only is not None and not named:
        return fetched(only) / only
    if _PICKLED_WEIGHTS_NAME in here:
        raise AdapterError(
            f"{doing} from the Hub: the repository has no {prefix}{WEIGHTS_NAME}, only {_PICKLED_WEIGHTS_NAME}, which "
            f"{PICKLED}"
        )
    others = sorted({prefix + name for name in here if name.endswith(ADAPTER_ENDINGS)})
    listed = f"; it has {', '.join(others[:_SHOWN])}{' and more' if len(others) > _SHOWN else ''}" if others else ""
    raise AdapterError(
        f"{doing} from the Hub: the repository has no {absent}{listed}; check that it is an adapter, its revision, "
        f"and whether it lies in a subfolder; one file of several is given as {source}/FILE"
    )


def only_adapter(names: Iterable[str]) -> str | None:
    """The file of a folder that holds its adapter: the only one that can; None where none can, or several.

    Example:
        >>> only_adapter(["README.md", "style.safetensors"]), only_adapter(["a.safetensors", "b.safetensors"])
        ('style.safetensors', None)
    """
    found = [
        name for name in names if name.endswith(ADAPTER_ENDINGS) and not re.match(rf"({'|'.join(_MODELS)})[.-]", name)
    ]
    return found[0] if len(found) == 1 else None


def files_beside(source: str | Path) -> tuple[str, ...]:
    """The names of the files in an adapter's folder of a repository of the Hub, downloaded or not.

    Returns:
        Nothing for a local folder, and where the Hub cannot be asked: then only what was downloaded is known.
    """
    if not str(source) or Path(source).expanduser().exists() or str(source).partition("@")[0].endswith(ADAPTER_ENDINGS):
        return ()
    name, inner, revision = _parts(str(source))
    prefix = f"{inner}/" if inner else ""
    try:
        files = _files_of(name, f"listing the files beside {source}", revision)
    except HubError as error:  # offline, or a Hub that does not answer: the adapter itself is in the cache
        logger.debug("the files beside %s are not known: %s", source, error)
        return ()
    return tuple(
        file.removeprefix(prefix) for file in files if file.startswith(prefix) and "/" not in file[len(prefix) :]
    )


def resolve_base(
    source: str | Path,
    *,
    local_files_only: bool = False,
    companions: bool = False,
) -> Path:
    """The local folder of a base model: a folder as it is, or a repository of the Hub, downloaded or from the cache.

    Only `config.json`, the card and the safetensors at the top of the repository, or of a folder in it, are downloaded,
    unless `companions` asks for more; of a pipeline of diffusers those of its UNet, transformer and text encoders.

    Args:
        source: a folder, or `user/name`, `user/name@revision` or `user/name/folder@revision` on the Hub; private and
            gated ones need `hf auth login`, or HF_TOKEN.
        local_files_only: use what is in the cache and no network; HF_HUB_OFFLINE=1 means the same. Default: False.
        companions: fetch the tokenizer, processor, generation settings and code of the model, too. Default: False.

    Returns:
        A folder with `config.json` and safetensors (checked for a repository only).

    Raises:
        BaseModelError: there is no such folder, or the repository holds no weights in safetensors.
        HubError: the Hub refuses or cannot be reached, and the cache does not have it.

    Example:
        >>> resolve_base("meta-llama/Llama-3.1-8B")  # doctest: +SKIP
        PosixPath('/home/ada/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/d04e...')
    """
    doing = f"reading the base model {str(source)!r}"
    local = _local(source, doing, BaseModelError)
    if local is not None:
        return local
    name, inner, revision = _parts(str(source))
    prefix = f"{inner.strip('/')}/" if inner.strip("/") else ""

    def fetched(names: Iterable[str], ignored: Iterable[str] = ()) -> Path:
        return _download(
            name,
            doing,
            allow_patterns=[CARD_NAME, *(glob.escape(prefix) + pattern for pattern in names)],
            ignore_patterns=[glob.escape(prefix) + pattern for pattern in ignored],
            revision=revision,
            local_files_only=local_files_only,
        ) / (prefix or "")

    folder = fetched(["config.json", PIPELINE_NAME])
    whole = (folder / PIPELINE_NAME).is_file() and not (folder / "config.json").is_file()
    if whole:
        fetched([f"{part}*/{file}" for part in _ADAPTED for file in _WEIGHTS], ["*/*/*", *_VARIANTS])
    else:
        # The patterns' * crosses folders: no copies in other formats (onnx/, original/), no second set of weights
        # under the names of the model's makers, no adapters.
        fetched([*_WEIGHTS, *(_COMPANIONS if companions else ())], ["*/*", "consolidated*", "adapter_*"])
    if not any(folder.glob("*/*.safetensors" if whole else "*.safetensors")):
        place = f"in {prefix}" if prefix else "in its models' folders" if whole else "at its top"
        raise BaseModelError(
            f"{doing} from the Hub: the repository has no *.safetensors {place}; load the model with transformers "
            f"and save it to a folder, which writes safetensors, and give that folder; one model in a folder of a "
            f"repository is given as {name}/FOLDER@main"
        )
    return folder


def resolve_record(source: str | Path) -> Path:
    """Where the record of a merge is: the folder with `samerge.json`, of here or of a repository, or a file.

    Args:
        source: a folder, a file with the record in its header, or `user/name`, `user/name/folder@revision` on the Hub,
            of which only the record is downloaded.

    Raises:
        AdapterError: there is no such folder.
        HubError: the Hub refuses or cannot be reached, and the cache does not have it.
    """
    doing = f"reading the record of {str(source)!r}"
    local = _local(source, doing, AdapterError, ADAPTER_ENDINGS)
    if local is not None:
        return local
    name, inner, revision = _parts(str(source))
    root = _download(
        name,
        doing,
        allow_patterns=[f"{inner}/{RECORD_NAME}" if inner else RECORD_NAME],
        revision=revision,
    )
    if not (root / inner / RECORD_NAME).is_file():
        raise AdapterError(
            f"{doing} from the Hub: the repository has no {RECORD_NAME}, so samerge did not merge it; samerge check "
            f"{source} says what the adapter is"
        )
    return root / inner


def _parts(source: str) -> tuple[str, str, str | None]:
    """Repository, folder in it and revision of `user/name/folder@revision`.

    Example:
        >>> _parts("ada/loras/math@v2"), _parts("ada/math")
        (('ada/loras', 'math', 'v2'), ('ada/math', '', None))
    """
    path, _, revision = source.partition("@")
    parts = path.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None


def _local(source: str | Path, doing: str, error: type[SamergeError], endings: tuple[str, ...] = ()) -> Path | None:
    """The folder, or the file of one of these endings, that `source` names; None if it can only be a repository id."""
    text = str(source)
    path = Path(source).expanduser()
    if text and path.is_dir():  # an empty string would be the current folder
        return path
    if endings and path.exists() and text.endswith(endings):
        return path
    if path.is_file() and text.endswith(PICKLED_ENDINGS):
        raise error(f"{doing}: it {PICKLED}")
    if path.is_file():
        raise error(f"{doing}: it is a file; give the folder that holds it")
    if "://" in text:
        raise error(f"{doing}: it is an address; give the repository id alone, such as 'user/name'")
    if endings and text.endswith(endings) and text.count("/") < 2:  # on the Hub it would be user/name/file
        raise error(f"{doing}: there is no such file; check the path")
    looks_like_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or "\\" in text
    deep = text.count("/") > 1 and "@" not in text and not (endings and text.endswith(endings))
    if not text or looks_like_path or text.endswith("/") or deep:
        raise error(
            f"{doing}: there is no such folder; check the path, or give a repository id such as 'user/name', "
            f"'user/name@revision' or 'user/name/folder@revision'"
        )
    return None


def _download(
    repo_id: str,
    doing: str,
    *,
    allow_patterns: list[str],
    ignore_patterns: list[str] | None = None,
    revision: str | None,
    local_files_only: bool = False,
) -> Path:
    from huggingface_hub import snapshot_download

    with hub_errors(f"{doing} from the Hub (there is no folder of this name)", repo_id):
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
                local_files_only=local_files_only,
                library_name="samerge",
            )
        )


def _files_of(repo_id: str, doing: str, revision: str | None) -> list[str]:
    """All files of a repository; asks the Hub."""
    from huggingface_hub import HfApi

    with hub_errors(f"{doing}, and asking for what else it has failed", repo_id):
        return list(HfApi(library_name="samerge").list_repo_files(repo_id, revision=revision))
