"""Starts a VM again by the command that is configured for it."""

import os
import subprocess
import tempfile
from typing import Final

import trio

from panicd.rules.incident import Outcome, StepResult
from panicd.rules.plan import RunRelaunch

OUTPUT_KEPT: Final = 1024  # bytes of the command's output that are kept where it fails


async def run_relaunch(step: RunRelaunch, environment: dict[str, str]) -> StepResult:
    """Run a relaunch command and say how it ended.

    Args:
        step: the command, and its time limit in seconds.
        environment: what it is told beside panicd's own environment.
    """
    # A file and not a pipe: a QEMU that the command leaves behind inherits it.
    with tempfile.TemporaryFile() as output:
        try:
            with trio.fail_after(step.timeout):
                finished = await trio.run_process(
                    list(step.command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
        except trio.TooSlowError:
            return StepResult(Outcome.FAILED, f"{step.command[0]}: ran {step.timeout:g} s")
        except (OSError, ValueError) as error:  # ValueError: a name that no environment can hold
            return StepResult(Outcome.FAILED, str(error))
        if finished.returncode == 0:
            return StepResult(Outcome.DONE)
        output.seek(0)
        said = output.read(OUTPUT_KEPT).decode(errors="replace")
        detail = f"{step.command[0]}: exit status {finished.returncode}: {said}"
        return StepResult(Outcome.FAILED, detail)
