"""Several processes that train or evaluate as one, as their launcher's environment says.

`launch/local.py`, Kubernetes and SkyPilot set FER_JAX_COORDINATOR, FER_JAX_PROCESSES and
FER_JAX_PROCESS; under Slurm the step's own variables are read. Without any of these a process runs
alone and opens no port.
"""

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import compilation_cache, compiler, xla_bridge
from jax._src import distributed as jax_distributed  # what is done with these has no public name
from jax.experimental import multihost_utils
from jax.extend import backend
from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)

from fer_jax import storage
from fer_jax.errors import PREEMPTED, InputError

VARIABLES = ("FER_JAX_COORDINATOR", "FER_JAX_PROCESSES", "FER_JAX_PROCESS")
LOOPBACK = "127.0.0.1"
HEARTBEAT_TIMEOUT_S = 10  # without one, the other processes end
START_TIMEOUT_S = 300  # the nodes of a cluster start one after the other
END_TIMEOUT_S = 60
FIRST_EXIT_DELAY_S = 2.0


class ProcessInfo(NamedTuple):
    """How many processes the launcher started, and which of them this is."""

    processes: int
    process: int  # from 0; -1 if JAX reads it from Slurm
    coordinator: str  # "host:port" of the first process; "" if JAX reads it from Slurm


def process_info_from_env(environment: Mapping[str, str]) -> ProcessInfo:
    """Reads the launcher's variables; one process without them, InputError if some are invalid."""
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not given:
        # SLURM_NTASKS is also set in a batch script, which is one process.
        in_a_step = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") if in_a_step else "1"
        return ProcessInfo(int(tasks), -1, "")
    if missing := [name for name in VARIABLES if name not in given]:
        raise InputError(f"{', '.join(given)} without {', '.join(missing)}: set all three")
    coordinator, processes, process = given.values()
    if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
        raise InputError(
            f"FER_JAX_PROCESS must be 0 to FER_JAX_PROCESSES - 1, got '{process}' of '{processes}'"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"FER_JAX_COORDINATOR must be HOST:PORT with a port of 1 to 65535, got '{coordinator}'"
        )
    return ProcessInfo(int(processes), int(process), coordinator)


def initialize() -> None:
    """Connects the processes that the launcher started; a single one does nothing.

    Only the first process prints from then on, except errors. A process that fails ends at once
    instead of waiting for the others, which then end too. Raises InputError if the environment is
    invalid, the coordinator's port is taken or cannot be reached, or another number of processes
    connected.
    """
    info = process_info_from_env(os.environ)
    if info.processes == 1:
        return
    options: dict[str, Any] = {}
    if info.coordinator:
        host, _, port = info.coordinator.rpartition(":")
        if info.process == 0:
            _check_port(LOOPBACK if host == LOOPBACK else "", int(port))
        options = {
            "coordinator_address": info.coordinator,
            "num_processes": info.processes,
            "process_id": info.process,
            "cluster_detection_method": "deactivate",
        }
        if host == LOOPBACK:
            # JAX's coordinator and gloo would listen on every address of the host.
            options["coordinator_bind_address"] = f"{LOOPBACK}:{port}"
            backend.register_backend_factory("cpu", _loopback_client, fail_quietly=False)
    elif len(os.environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1:
        # JAX would take the GPU of the task's number, but Slurm shows each task only its own.
        options["local_device_ids"] = [0]
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            initialization_timeout=START_TIMEOUT_S,
            shutdown_timeout_seconds=END_TIMEOUT_S,
            **options,
        )
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"no connection to the other processes: {first}") from error
    sys.excepthook = _exit_on_error
    if jax.default_backend() == "cpu":
        compiler._cache_write = _write_to_cache
    check_count(jax.process_count(), info.processes)
    # gloo gives the first exchange 30 seconds. Do it now, when all processes have started: after
    # a compilation, which only some of them may find in the cache, it could time out.
    wait_for_all("started")
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def check_alone(verb: str) -> None:
    """Refuses a verb that does not support several processes."""
    processes = process_info_from_env(os.environ).processes
    if processes > 1:
        raise InputError(f"{verb} runs in one process, and {processes} were started")


def check_count(connected: int, expected: int) -> None:
    """Refuses another number of connected processes than the launcher was asked for.

    A launcher with a wrong setting starts that many runs of one process each.
    """
    if connected != expected:
        raise InputError(
            f"the launcher was asked for {expected} processes, and {connected} are connected"
        )


def _check_port(host: str, port: int) -> None:
    """Refuses a coordinator's port that is taken: JAX would wait for minutes and abort."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} of FER_JAX_COORDINATOR cannot be opened: {error.strerror}; "
                "choose another"
            ) from error


def _loopback_client() -> Any:
    collectives = _jax.make_gloo_tcp_collectives(
        distributed_client=jax_distributed.global_state.client, hostname=LOOPBACK
    )
    return xla_bridge.make_cpu_client(collectives)


def _write_to_cache(
    key: str, compile_time_s: float, name: str, client: Any, program: Any, callbacks: Any = ()
) -> None:
    """Writes a compiled program to the cache, whichever process compiled it.

    JAX lets only the first process write, which is enough where all processes run the same
    program. On CPU each has its own under its own key, and would compile again at every start.
    Since 0.12 JAX no longer passes the callbacks.
    """
    minimum_s = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    if not callbacks and compile_time_s >= minimum_s:
        compilation_cache.put_executable_and_time(key, name, program, client, int(compile_time_s))


def _exit_on_error(kind: Any, error: Any, trace: Any) -> None:
    traceback.print_exception(kind, error, trace)
    exit_process(1)


def exit_process(code: int) -> int:
    """Ends this process where it is one of several and did not finish; else returns the code.

    At an ordinary exit JAX waits for the other processes, which may wait for this one in a step.
    """
    if not code or not jax.distributed.is_initialized():
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if code == PREEMPTED:
        # All processes exit; without this the others would report that this one is lost.
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()
    elif is_first():
        # The others end with this process, and may have errors to print first.
        time.sleep(FIRST_EXIT_DELAY_S)
    os._exit(code)


def is_first() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def lock(workdir: Path) -> AbstractContextManager[None]:
    """Locks a workdir, the first process for all; InputError if another run has it."""
    return storage.lock(workdir) if is_first() else contextlib.nullcontext()


def smallest(value: int) -> int:
    """Returns the smallest of the processes' values, so that all decide alike."""
    if jax.process_count() == 1:
        return value
    # In two int32: JAX arrays have 32 bits.
    words = multihost_utils.process_allgather(np.asarray(divmod(value, 2**31), np.int32))
    return min(int(high) * 2**31 + int(low) for high, low in np.asarray(words))


def wait_for_all(what: str) -> None:
    """Returns when every process has called it; at once where there is one."""
    multihost_utils.sync_global_devices(what)
