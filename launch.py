"""Say how likely a generative model gives a private record back.

    python launch.py --config=configs/digits.py --workdir=runs/digits

or make a private copy of a data set and say what that is worth: --config=configs/digits_cadp.py for images,
--config=configs/diabetes_cadp.py for tables; or compare four ways to share the same records:
--config=configs/digits_release.py; or audit a model that was trained elsewhere: --config=configs/audit_own_model.py.

One run is a config and a working directory. --mode=study (the default) does everything; another mode does one stage,
which finds what earlier stages left in the workdir. Not every kind of study has every stage: sample and likelihood
belong to audits, privatize and evaluate to private copies, and a wrong mode is answered with the right ones. A finished
stage does no work; an interrupted one goes on where it was. Any field of the config is a flag:
--config.score.training.steps=2000.

Exit status: 0 done; 1 a fault in the program; 2 the data, config or workdir is not usable as given (one line says
what was expected; a full disk too); 75 stopped by a signal, state saved, start it again to go on.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(), e.g. configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run: checkpoints, results, report/index.html.")
_MODES = ("study", "train", "sample", "likelihood", "privatize", "evaluate", "audit", "report")
_MODE = flags.DEFINE_enum("mode", "study", _MODES, "The stage to run; study = all stages of the study, in their order.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if not found from the cluster.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, from 0, with --coordinator.")
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices",
    0,
    "CPU devices to split batches over; 0 chooses (1 for an mlp, one a core for convolutions).",
    lower_bound=0,
)
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/diffusion_privacy", "Where compiled programs are kept between runs; empty for none."
)

_PRECISIONS = ("float32", "tensorfloat32", "default")
_PRECISION = flags.DEFINE_enum(
    "matmul_precision",
    "float32",
    _PRECISIONS,
    "Products of float32 numbers on an accelerator, whose own default rounds the factors to ten bits or fewer: a flow "
    "then does not invert itself any more. Networks in bfloat16 are not affected, nor are CPUs.",
)

_PREEMPTED = 75


class _Stopped(BaseException):
    """SIGTERM outside training. No Exception: who catches those would take it for a fault of what it interrupts."""


_joined: list[bool] = []
"""Not empty once this process is one of a job's."""


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with the project's exit status and one line instead of a page."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}; flags are --name=value")
        # An unset variable in a job script leaves an empty text, which would be the folder that one happens to be in.
        for name, given in (("config", _CONFIG.value is not None), ("workdir", bool(_WORKDIR.value))):
            if not given:
                raise flags.Error(f"--{name} is required; see --help")
        # A config file that cannot be loaded says so only when it is read.
        if not hasattr(_CONFIG.value, "to_dict"):
            raise flags.Error(f"--config: expected get_config() to return a ConfigDict, got {_CONFIG.value!r}")
        _CONFIG.value.to_dict()
        return rest
    except (AttributeError, KeyError) as error:
        if (fault := _in_config_file(error)) is not None:
            _stop(fault)
        # ml_collections quotes its message twice over and breaks its line.
        text = " ".join(str(error.args[0]).replace("\\n", " ").replace("\\", "").split())
        name, _, near = text.partition("Did you mean ")
        hint = f"; did you mean {near.split()[0]}?" if near else ""
        _stop(f"--config: expected a field of the config file, it has no {name.strip(_QUOTES)}{hint}")
        raise AssertionError from error  # not reached
    except (flags.Error, OSError, TypeError, ValueError, ImportError) as error:
        _stop(_unreadable(str(error), argv) or _one_line(str(error)))
        raise AssertionError from error  # not reached
    except Exception as error:
        _stop(_in_config_file(error) or f"--config: {_one_line(f'{type(error).__name__}: {error}')}")
        raise AssertionError from error  # not reached


_QUOTES = " '\""


def _unreadable(text: str, argv: list[str]) -> str | None:
    """One line for a config file that cannot be opened; None for another error.

    ml_collections names every place where it has looked, but not the flag.
    """
    _, found, rest = text.partition("earlier failure to load: ")
    words = [word for one in argv for word in one.lstrip("-").split("=", 1)]
    given = [value for name, value in itertools.pairwise(words) if name == "config"]
    if not found or not given:
        return None
    if Path(given[-1].partition(":")[0]).is_file():
        return f"--config: {given[-1]}: {_one_line(rest)}"
    why = next((why for why in ("No such file or directory", "Is a directory") if why in rest), _one_line(rest))
    return f"--config: expected a file with get_config(), e.g. configs/digits.py, got {given[-1]!r} ({why})"


def _in_config_file(error: Exception) -> str | None:
    """A fault of the config file as one line with its place in it; None where a field is asked for that is not there.

    That is raised in ml_collections, and what is wrong with the file in the file itself.
    """
    if "no attribute 'get_config'" in str(error):
        return "--config: expected a file with a function get_config()"
    last = traceback.extract_tb(error.__traceback__)[-1]
    place, line = last.filename, last.lineno
    if isinstance(error, SyntaxError):
        place, line = error.filename or place, error.lineno
    if "ml_collections" in place:
        return None
    return f"--config: {place}:{line}: {_one_line(f'{type(error).__name__}: {error}')}"


def _one_line(text: str) -> str:
    """A message in one line; of a config file's own error what it says, without the way that led to it."""
    if "Traceback" in text:
        before, lines = text.split("Error whilst parsing", 1)[0], text.strip().splitlines()
        text = f"{before}{lines[-1].partition(': ')[2] or lines[-1]}"
    return " ".join(text.split())


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)


def _of_the_file_system(error: BaseException) -> str | None:
    """What is wrong with a disk or a permission, in one line, if that is behind ``error``; None if it is not.

    Such a fault may show in any of a hundred places that read or write, some of them in libraries that only quote it.
    """
    seen: BaseException | None = error
    while seen is not None:
        said, place = str(seen), getattr(seen, "filename", None) or _WORKDIR.value
        full = [os.strerror(number) for number in _NO_ROOM if os.strerror(number) in said]
        if isinstance(seen, OSError) and seen.errno in _NO_ACCESS:
            return f"{place}: expected a file system that lets this be read and written ({os.strerror(seen.errno)})"
        if full:
            return f"{place}: expected room to write ({full[0]}); with room again, start it again to go on"
        # What was handled and left behind on purpose (`raise … from None`) is not behind this.
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    _exit(2)


def _exit(status: int) -> None:
    if not _joined:
        sys.exit(status)
    from diffusion_privacy.training import sharding

    sharding.leave(status)


def _set_up_devices(network: str) -> None:
    """Lays out the CPU, the compilation cache and the hosts, before anything touches a device."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Only the CPU backend reads this; an accelerator is used whole. Matrix products of an MLP fill all cores from one
    # device and lose a third when split; thin convolutions use one core each and gain.
    jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value or (1 if network == "mlp" else cores))
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", str(Path(_CACHE.value).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    from diffusion_privacy.training import sharding

    if sharding.initialise(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value):
        _joined.append(True)
        if not sharding.is_first():
            # All processes do the same; one says so.
            logging.getLogger().setLevel(logging.WARNING)
    if jax.default_backend() != "cpu" and _PRECISION.value != "default":
        jax.config.update("jax_default_matmul_precision", _PRECISION.value)


def _run(workdir: str) -> None:
    from diffusion_privacy import settings, settings_joined, settings_kinds, settings_own, settings_sweep

    study = settings_kinds.parse(_CONFIG.value.to_dict())
    scored = settings.Study | settings_sweep.SizeSweep | settings_joined.Joined
    # A small flow is a chain of thin layers: splitting its batch costs more than it gains.
    network = study.score.network.name if isinstance(study, scored) else "mlp"
    if isinstance(study, settings_own.OwnModel) and study.model.kind == "diffusers":
        network = "unet"
    _set_up_devices(network)
    from diffusion_privacy.stages import run

    run.run(study, Path(workdir), _MODE.value)


def main(argv: list[str]) -> None:
    """Runs the stage that the flags name."""
    del argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    # jax looks for a TPU on every machine and says that it found none.
    logging.getLogger("jax._src.xla_bridge").addFilter(lambda line: "backend 'tpu'" not in line.getMessage())
    from diffusion_privacy.errors import DivergenceError, InputError
    from diffusion_privacy.training.loop import Preempted

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise _Stopped(f"stopped by {signal.Signals(number).name}; start it again to go on")

    # Training has a handler of its own, which saves first. Elsewhere what is finished lies in the workdir already.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        _run(_WORKDIR.value or "")
    except (InputError, DivergenceError, FloatingPointError) as error:
        # The last: a score or a detector that is not finite in the middle of an audit, named where it is seen.
        _stop(str(error))
    except (Preempted, _Stopped) as stopped:
        print(str(stopped), file=sys.stderr)
        _exit(_PREEMPTED)
    except Exception as error:
        if (told := _of_the_file_system(error)) is not None:
            _stop(told)
        if not _joined:
            raise
        # A process that was killed shows here too, as a sum over devices that it does not take part in.
        traceback.print_exc()
        _exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
