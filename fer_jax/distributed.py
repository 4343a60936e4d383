"""Several processes that train or evaluate as one, as their launcher's environment says.

`launch/local.py`, Kubernetes and SkyPilot name the coordinator, the count and the place in
FER_JAX_COORDINATOR, FER_JAX_PROCESSES and FER_JAX_PROCESS; under Slurm the step's own variables
do. Without any of these a process is alone, and opens no port.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import compilation_cache, compiler, xla_bridge
from jax._src import config as jax_config
from jax._src import distributed as jax_distributed  # what is done with these has no public name
from jax.experimental import multihost_utils
from jax.extend import backend
from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)

from fer_jax.errors import InputError

VARIABLES = ("FER_JAX_COORDINATOR", "FER_JAX_PROCESSES", "FER_JAX_PROCESS")
LOOPBACK = "127.0.0.1"
# A process that says nothing for so long is dead to the others, and they end.
HEARTBEAT_TIMEOUT_S = 10
# How long to wait for the others to start: a cluster's nodes come up one after the other.
START_TIMEOUT_S = 300
# How long to wait for the others at the end, where all have done the same.
END_TIMEOUT_S = 60
FIRST_STAYS_S = 2.0
PREEMPTED = 75


class Place(NamedTuple):
    """What the launcher asked for.

    Attributes:
      processes: how many there are.
      process: which of them this is; -1 where JAX reads it from Slurm.
      coordinator: "host:port" of the first; "" where JAX reads it from Slurm.
    """

    processes: int
    process: int
    coordinator: str


def asked(environment: Mapping[str, str]) -> Place:
    """What an environment asks for; one process where it says nothing.

    Raises:
      InputError: some of the three variables are missing, or make no sense.
    """
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not given:
        # SLURM_NTASKS is also set in a batch script, which is one process.
        in_a_step = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") if in_a_step else "1"
        return Place(int(tasks), -1, "")
    if missing := [name for name in VARIABLES if name not in given]:
        raise InputError(f"{', '.join(given)} without {', '.join(missing)}: set all three")
    coordinator, processes, process = given.values()
    if not (processes.isdecimal() and process.isdecimal() and int(process) < int(processes)):
        raise InputError(
            f"FER_JAX_PROCESS is 0 to FER_JAX_PROCESSES - 1, not '{process}' of '{processes}'"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"FER_JAX_COORDINATOR is HOST:PORT, not '{coordinator}'")
    return Place(int(processes), int(process), coordinator)


def join() -> None:
    """Joins the processes that the launcher started; alone, does nothing. Once, at the start.

    Only the first process speaks from then on, but for errors; and whoever fails ends at once
    rather than wait for the others, which then end too.

    Raises:
      InputError: the environment makes no sense, or another number came together than it says.
    """
    place = asked(os.environ)
    if place.processes == 1:
        return
    options: dict[str, Any] = {}
    if place.coordinator:
        host, _, port = place.coordinator.rpartition(":")
        options = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
        if host == LOOPBACK:
            # JAX's coordinator and gloo would listen on every address of the host.
            options["coordinator_bind_address"] = f"{LOOPBACK}:{port}"
            backend.register_backend_factory("cpu", _loopback_client, fail_quietly=False)
    elif len(os.environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1:
        # JAX would take the GPU of the task's number, and Slurm lets each task see its own only.
        options["local_device_ids"] = [0]
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        initialization_timeout=START_TIMEOUT_S,
        shutdown_timeout_seconds=END_TIMEOUT_S,
        **options,
    )
    sys.excepthook = _end_at_once
    if jax.default_backend() == "cpu":
        compiler._cache_write = _keep_program
    check_count(jax.process_count(), place.processes)
    # gloo gives the first exchange 30 seconds. It is now, when all are here, and not after a
    # compilation, which one of them may find in its cache and another not.
    wait_for_all("started")
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def check_alone(verb: str) -> None:
    """Refuses a verb that several processes cannot do as one.

    Raises:
      InputError: a launcher started several.
    """
    processes = asked(os.environ).processes
    if processes > 1:
        raise InputError(f"{verb} runs in one process, and {processes} were started")


def check_count(there: int, wanted: int) -> None:
    """Refuses to go on with another number of processes than the launcher was asked for.

    Under a wrong setting a launcher starts that many runs of one process each.

    Raises:
      InputError: names both.
    """
    if there != wanted:
        raise InputError(f"the launcher was asked for {wanted} processes, and {there} are joined")


def _loopback_client() -> Any:
    collectives = _jax.make_gloo_tcp_collectives(
        distributed_client=jax_distributed.global_state.client, hostname=LOOPBACK
    )
    return xla_bridge.make_cpu_client(collectives)


def _keep_program(
    key: str, compile_time_s: float, name: str, client: Any, program: Any, callbacks: Any = ()
) -> None:
    """Keeps a compiled program, whichever process compiled it.

    JAX lets only the first process do so, which is enough where a program is the same in all of
    them. On CPU each has its own under its own key, and would compile again at every start.
    Since 0.12 JAX no longer names the callbacks.
    """
    if not callbacks and compile_time_s >= jax_config.persistent_cache_min_compile_time_secs.value:
        compilation_cache.put_executable_and_time(key, name, program, client, int(compile_time_s))


def _end_at_once(kind: Any, error: Any, trace: Any) -> None:
    traceback.print_exception(kind, error, trace)
    leave(1)


def leave(code: int) -> int:
    """Ends this process where it is one of several and did not finish; else returns the code.

    JAX waits at an ordinary exit for the others, which may wait in the step for this one.
    """
    if not code or jax_distributed.global_state.client is None:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if code == PREEMPTED:
        # All leave, and the others must not take this one for dead.
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()
    elif is_first():
        # The others may have the same to say, and end with this process.
        time.sleep(FIRST_STAYS_S)
    os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def smallest(value: int) -> int:
    """The smallest of the processes' values, so that all decide alike."""
    if jax.process_count() == 1:
        return value
    # In two words: a JAX array has 32 bits.
    words = multihost_utils.process_allgather(np.asarray(divmod(value, 2**31), np.int32))
    return min(int(high) * 2**31 + int(low) for high, low in np.asarray(words))


def wait_for_all(what: str) -> None:
    """Returns when every process is here; at once where there is one."""
    multihost_utils.sync_global_devices(what)
