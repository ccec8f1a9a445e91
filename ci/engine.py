"""Snakemake, but for one thing: of the timers that make its scheduler look again, only one runs at a time.

python ci/engine.py --snakefile ci/sweep.smk …      takes what `python -m snakemake` takes

Each look of the scheduler starts a timer, and each timer makes it look again a second later. So a look that a
finished job asked for is repeated for ever, and after a thousand jobs there are hundreds of looks per second, which
cost more than a third of a core (seen in 9.27.1).
"""

from __future__ import annotations

import threading

from snakemake.cli import main
from snakemake.scheduling.job_scheduler import JobScheduler

_waiting: set[int] = set()  # schedulers whose timer runs


def look_again(scheduler: JobScheduler, delay: float) -> None:
    """Have the scheduler look once, `delay` seconds from now, unless it is going to anyway."""
    if id(scheduler) in _waiting:
        return
    _waiting.add(id(scheduler))

    def release() -> None:
        _waiting.discard(id(scheduler))
        scheduler._open_jobs.release()

    threading.Timer(delay, release).start()


if not hasattr(JobScheduler, "_schedule_reevalutation"):  # the name is Snakemake's
    raise RuntimeError("this version of Snakemake schedules in another way: see whether ci/engine.py is still needed.")
JobScheduler._schedule_reevalutation = look_again

if __name__ == "__main__":
    main()
