"""Every error that samerge raises on purpose, and what an error of others is told by.

Each message says what was being done, to which adapter and module, what was found, and what to do about it.
"""

#: Letters of an error of others that a message repeats.
_LONGEST = 200


class SamergeError(Exception):
    """Base class of all errors that samerge raises on purpose."""


class OptionError(SamergeError, ValueError):
    """An argument is missing, out of its range, or does not go with another one."""


class AdapterError(SamergeError, ValueError):
    """An adapter cannot be read, is not a LoRA that samerge merges, or holds broken tensors."""


class BaseModelError(SamergeError, ValueError):
    """The base model cannot be read, or an adapter does not fit it."""


class GraphError(SamergeError, ValueError):
    """The flow graph is unknown for this architecture, or malformed."""


class OutputExistsError(SamergeError, FileExistsError):
    """The output folder, or the adapter name, is already taken."""


class KernelError(SamergeError, RuntimeError):
    """The kernel that was asked for cannot be had on this machine."""


class HubError(SamergeError, OSError):
    """The Hugging Face Hub refused a request or could not be reached."""


class TuningError(SamergeError, RuntimeError):
    """A candidate has no score, or none of them has."""


class DistributedError(SamergeError, RuntimeError):
    """Another process of the same merge failed."""


def in_short(error: BaseException) -> str:
    """An error of others on one line: its class, and what it says, as far as that is not too long.

    Example:
        >>> in_short(ValueError("no such\\nfile"))
        'ValueError: no such file'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"


def first_line(error: BaseException) -> str:
    """What an error of others says first; its class where it says nothing.

    Example:
        >>> first_line(ValueError(" no such file\\nTraceback ...")), first_line(KeyboardInterrupt())
        ('no such file', 'KeyboardInterrupt')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
