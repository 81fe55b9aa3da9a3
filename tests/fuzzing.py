"""Sound folders, broken at random and put through the command line; what must hold of every outcome.

A case is a number: the same number breaks the same file in the same way. `benchmarks/fuzz.py` runs many.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_zoo import COMMANDS, run
from safetensors import SafetensorError, safe_open

#: Seconds of processor time that a case may take.
MOST_SECONDS = 10.0

#: Values that a field of a configuration does not expect.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.0, -0.5, 1e-300, 1e300, float("nan"), float("inf"), "", "4",
    "q_proj", "(", "(a+)+$", "(.*)*x", "a{9999}", "\x1b[2J", "<img src=x>", "../../etc/passwd", "org/kernel",
    "x" * 5000,
    [], [1], ["q_proj"], [[0, 10**7]], [[0, 1]] * 300, [None], {}, {"a": 1}, {"(": 2}, {".*": -1}, {"q_proj": "x"},
)  # fmt: skip
#: Fields that other readers would act on.
FIELDS = (
    *(
        "peft_type",
        "r",
        "lora_alpha",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "use_dora",
        "use_rslora",
    ),
    *("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters", "init_lora_weights"),
    *("fan_in_fan_out", "base_model_name_or_path", "task_type", "peft_version", "exclude_modules", "unheard_of"),
    *("model_type", "architectures", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_size", "vocab_size", "tie_word_embeddings", "attn_implementation", "quantization_config", "auto_map"),
    *("text_config", "rope_scaling", "layer_types", "dtype", "torch_dtype", "num_experts", "is_encoder_decoder"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        kind: "refused" or "accepted" as they should be; or what is wrong.
        words: what was done, and what was said.
        seconds: of processor time.
    """

    kind: str
    words: str
    seconds: float

    @property
    def sound(self) -> bool:
        return self.kind in ("refused", "accepted")


def outcome(number: int, zoo: Path, work: Path) -> Outcome:
    """Run one case.

    Args:
        number: which.
        zoo: of `make_zoo`.
        work: an empty folder, which is empty again afterwards.
    """
    random = Random(number)
    name, command, inputs = random.choice(COMMANDS)
    for folder in inputs:
        shutil.copytree(zoo / folder, work / folder)
    victim = work / random.choice(inputs)
    what = [_break(victim, random) for _ in range(random.choice((1, 1, 1, 2)))]
    start = time.process_time()
    code, said = run(command(work))
    seconds = time.process_time() - start
    kind = _kind(code, said, seconds, victim, work)
    left = sorted(path.name for path in work.iterdir() if path.name not in inputs)
    if code and left:
        kind = f"left {left}"
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return Outcome(kind, f"{number}: {name}, {victim.name}: {'; '.join(what)}: {code}: {said[-300:]}", seconds)


def _kind(code: int, said: str, seconds: float, victim: Path, work: Path) -> str:
    if "Traceback" in said or code not in (0, 2):
        return "traceback"
    if seconds > MOST_SECONDS:
        return "hang"
    if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said):
        return "raw control characters"
    if code:
        return "refused"
    if not all(_takes(file) for out in work.glob("out*") for file in (out, *out.glob("*")) if _holds_weights(file)):
        return "wrote what the library refuses"
    return "accepted" if all(_takes(file) for file in _read_by(victim)) else "accepted what the library refuses"


def _read_by(folder: Path) -> list[Path]:
    """The files of weights that are read of a folder: those of the index, where there is one."""
    if folder.name == "merged":
        return []  # only its record is read
    return list(folder.glob("*.safetensors"))


def _holds_weights(file: Path) -> bool:
    return file.suffix == ".safetensors" and file.is_file()


def _takes(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _break(folder: Path, random: Random) -> str:
    """Do something to a file of a folder; says what."""
    files = [path for path in sorted(folder.iterdir()) if path.name not in ("README.md", "generation_config.json")]
    file = random.choice(files)
    ways = _WAYS_JSON if file.suffix == ".json" and random.random() < 0.75 else _WAYS
    how = random.choice((*ways, _front, _front) if file.suffix == ".gguf" else ways)
    if not file.is_file():
        return f"{file.name} as it is"
    if how is not _node:
        data = how(file.read_bytes(), random)
        file.write_bytes(data)
    else:
        _node(file, random)
    return f"{how.__name__} {file.name}"


def _node(file: Path, random: Random) -> None:
    """Something else than a regular file in its place."""
    file.unlink()
    kind = random.randrange(5)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to("/dev/zero")
    elif kind == 3:
        file.symlink_to("nowhere")
    else:
        file.symlink_to(file.name)


def _bytes(data: bytes, random: Random) -> bytes:
    for _ in range(random.choice((1, 1, 4, 32))):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(4)
        if kind == 0:
            data = data[:at] + random.randbytes(1) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + random.randbytes(random.choice((1, 4, 8))) + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + random.choice((1, 4, 64)) :]
        else:
            data = data[:at] + b"\0" * random.choice((1, 8, 64)) + data[at:]
    return data


def _end(data: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return data[: random.randrange(len(data) + 1)]
    return data + random.randbytes(random.choice((1, 8, 4096)))


def _header(data: bytes, random: Random) -> bytes:
    """The header of a safetensors file changed, its length kept right."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return _bytes(data, random)
    text, body = data[8 : 8 + length], data[8 + length :]
    kind = random.randrange(6)
    if kind == 0:
        text = random.choice((b"\xef\xbb\xbf", b" ", b"\0", b"[" * 100_000)) + text
    elif kind == 1:
        text = text.decode(errors="replace").encode(random.choice(("utf-16", "utf-16-be", "latin-1")), errors="replace")
    elif kind == 2:
        numbers = list(re.finditer(rb"\d+", text))
        if numbers:
            found = random.choice(numbers)
            other = random.choice((b"0", b"-4096", b"4", b"9" * 20, b"9" * 5000, b"1.0", b"null", b"[]", b"1e9"))
            text = text[: found.start()] + other + text[found.end() :]
    elif kind == 3:
        dtype = random.choice(
            (b"F64", b"F16", b"I32", b"I64", b"U16", b"U32", b"F4", b"F8_E4M3", b"BOOL", b"C64", b"XX")
        )
        text = text.replace(b"F32", dtype, random.choice((1, -1)))
    elif kind == 4:
        try:
            header = json.loads(text)
            names = sorted(header)
            one, other = random.choice(names), random.choice(names)
            header[one], header[other] = header[other], header[one]
            if random.random() < 0.5:
                header[random.choice(names) + random.choice(("", ".x", "\x1b[2J", "\ud800"))] = header.pop(one)
            text = json.dumps(header).encode()
        except (ValueError, KeyError, IndexError, RecursionError):
            pass
    else:
        text = text.replace(b"lora_A", b"lora_B", 1).replace(b"layers.0", b"layers.1", random.choice((0, 1)))
    if random.random() < 0.1:
        length = random.choice((0, 2**31, 2**63, len(data)))
        return length.to_bytes(8, "little") + text + body
    return len(text).to_bytes(8, "little") + text + body


def _values(data: bytes, random: Random) -> bytes:
    """Floats at the end of the file that no sound adapter has."""
    odd = random.choice((float("nan"), float("inf"), 1e38, 1e-45))
    count = min(random.choice((1, 16)), max(0, len(data) // 8))
    return data[: len(data) - 4 * count] + torch.full((count,), odd).numpy().tobytes()


def _field(data: bytes, random: Random) -> bytes:
    """A value somewhere in a JSON text replaced by an odd one, or gone, or there as well."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return data
    root = copy.deepcopy(root)
    place, key = root, None
    for _ in range(random.randrange(1, 6)):
        keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        if not keys:
            break
        key = random.choice(keys)
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        if random.random() < 0.3:
            break
        place = inner
    if isinstance(root, dict) and random.random() < 0.4:
        place, key = root, random.choice(FIELDS)
    if key is None or (isinstance(place, list) and not isinstance(key, int)) or not isinstance(place, (dict, list)):
        return data
    if random.random() < 0.15 and isinstance(place, dict):
        place.pop(key, None)
    elif isinstance(place, dict) or key < len(place):
        place[key] = copy.deepcopy(random.choice(ODD))
    return json.dumps(root).encode()


def _text(data: bytes, random: Random) -> bytes:
    """JSON that is none, or that others read otherwise."""
    kind = random.randrange(8)
    if kind == 0:
        return json.dumps(random.choice(ODD)).encode()
    if kind == 1:
        return b"\xef\xbb\xbf" + data
    if kind == 2:
        return data.decode(errors="replace").encode("utf-16")
    if kind == 3:
        return data.replace(b'": ', b'": ' + b"[" * random.choice((70, 100_000)), 1)
    if kind == 4:
        return b'{"r": 1, ' + data.lstrip()[1:]
    if kind == 5:
        return data.replace(b'"', b'"\\ud800', 1)
    if kind == 6:
        return re.sub(rb"\d+", lambda found: random.choice((found[0], b"9" * 5000, b"1e999")), data)
    return data.replace(b'"', b"'")


def _front(data: bytes, random: Random) -> bytes:
    """Bytes of what stands in front of the values, in formats that are not safetensors'."""
    at, size = random.randrange(4, 600), random.choice((1, 2, 4, 8))
    put = random.choice((b"\xff" * 8, b"\0" * 8, random.randbytes(8), (2**31).to_bytes(8, "little")))
    return data[:at] + put[:size] + data[at + size :]


_WAYS: tuple[Callable[..., Any], ...] = (_bytes, _end, _header, _header, _header, _values, _node)
_WAYS_JSON: tuple[Callable[..., Any], ...] = (_field, _field, _field, _field, _text)


@contextmanager
def offline() -> Any:
    """The network cut off: whoever asks for a connection is told so, and it counts as a traceback."""
    import socket

    real = socket.socket.connect

    def refuse(self: Any, address: Any) -> None:
        raise AssertionError(f"it went to the network: {address}")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.socket.connect = real  # type: ignore[method-assign]
