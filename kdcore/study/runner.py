"""A study: arms × seeds, run in pairs, kept run by run, judged and recorded."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from tqdm.auto import tqdm

from kdcore.checks import check_choice
from kdcore.sources import code_digest, notebook_code, repository_root
from kdcore.study.claims import Claim, Verdict, judge
from kdcore.study.provenance import hardware, versions
from kdcore.study.records import write_record
from kdcore.training.seeding import deterministic, pick_device, seeded
from kdcore.versions import revision

__all__ = ["PROFILES", "Study", "by_profile"]

PROFILES = ("quick", "cpu", "gpu")
Setting = TypeVar("Setting")


def by_profile(profile: str, *, quick: Setting, cpu: Setting, gpu: Setting) -> Setting:
    """The setting for a profile.

    Raises:
        ValueError: unknown profile.

    Example:
        >>> by_profile("cpu", quick=10, cpu=30, gpu=60)
        30
    """
    return {"quick": quick, "cpu": cpu, "gpu": gpu}[check_choice("profile", profile, PROFILES)]


class Study:
    """One chapter's experiments at one profile.

    Creating a study makes the run deterministic. Each finished (arm, seed) is kept on disk, so that a killed run
    goes on where it stopped when it is started again with the same parameters and code.

    Args:
        chapter: "part/method".
        profile: "quick", "cpu" or "gpu".
        seed: the first seed.
        n_seeds: number of paired seeds, at least 2.
        device: "auto", "cpu" or "cuda".
        results_dir: folder of records and of unfinished runs.
        parameters: whatever else defines the run; part of the record.
        threads: of the CPU.

    Attributes:
        device: the device chosen.
        results: all results so far, tidy: `arm`, `seed`, `metric`, `value`.

    Raises:
        ValueError: unknown profile, too few seeds, device not present.

    Example:
        >>> import tempfile
        >>> experiment = Study("foundations/kd", n_seeds=3, results_dir=tempfile.mkdtemp())
        >>> results = experiment.run(lambda arm, seed: {"accuracy": seed + len(arm)}, ["CE", "distilled"])
        >>> results["value"].tolist()
        [2.0, 9.0, 3.0, 10.0, 4.0, 11.0]
    """

    def __init__(
        self,
        chapter: str,
        *,
        profile: str = "quick",
        seed: int = 0,
        n_seeds: int = 5,
        device: str = "auto",
        results_dir: str | Path = "results",
        parameters: Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> None:
        self.chapter = chapter
        self.profile = check_choice("profile", profile, PROFILES)
        if n_seeds < 2:
            raise ValueError(f"n_seeds must be at least 2, got {n_seeds}: an interval needs a spread.")
        self.seeds = list(range(seed, seed + n_seeds))
        self.device = pick_device(device)
        self.results_dir = Path(results_dir)
        self.parameters = {"seed": seed, "n_seeds": n_seeds, **(parameters or {})}
        self.results = pd.DataFrame(columns=["arm", "seed", "metric", "value"])
        notebook = _notebook(chapter)
        # Outside of a checkout there is the package alone.
        code = notebook_code(notebook) if notebook else f"import kdcore.{chapter.replace('/', '.')}"
        self._digest = code_digest(code)
        self._notebook_digest = hashlib.sha256(notebook.encode()).hexdigest() if notebook else None
        self._revision = revision()
        self._started = datetime.datetime.now(datetime.UTC)
        self._seconds = 0.0
        self._finished = False
        deterministic(threads)

    def run(
        self, experiment: Callable[[str, int], Mapping[str, float]], arms: Sequence[str], *, seeds: int | None = None
    ) -> pd.DataFrame:
        """Run every arm with every seed, seed by seed, so that arms are paired.

        A run that fails does not stop the others. What finished is kept on disk, so that the same call in a new study
        of the same parameters and code runs only what failed.

        Args:
            experiment: function of (arm, seed) that returns metrics by name.
            arms: names; an arm that was run before in this study is not run again.
            seeds: how many of the study's seeds to use; all if left out.

        Returns:
            Tidy results of these arms.

        Raises:
            RuntimeError: runs failed (out of memory, a metric that is not finite …); names each arm and seed.
        """
        done = set(zip(self.results["arm"], self.results["seed"], strict=True))
        jobs = [(arm, seed) for seed in self.seeds[:seeds] for arm in arms if (arm, seed) not in done]
        rows: list[dict[str, Any]] = []
        failures: list[str] = []
        for arm, seed in tqdm(jobs, desc=f"{self.chapter} {self.profile}", unit="run", leave=False):
            try:
                metrics = self._run_one(experiment, arm, seed)
            except Exception as error:
                failures.append(f"arm {arm!r}, seed {seed}: {type(error).__name__}: {error}")
                print(f"failed, and the other runs go on: {failures[-1]}", file=sys.stderr)
                if len(failures) == 1:
                    traceback.print_exc()
                continue
            finally:
                if failures and self.device.type == "cuda":
                    torch.cuda.empty_cache()  # what a run that ran out of memory held would fail the next one too
            rows += [{"arm": arm, "seed": seed, "metric": name, "value": value} for name, value in metrics.items()]
        if failures:
            raise RuntimeError(
                f"{len(failures)} of {len(jobs)} runs failed, the others are kept; the same call again runs only these:"
                + "".join(f"\n  {failure}" for failure in failures)
            )
        self.add(rows)
        if self._finished:
            self._drop_unfinished()
        return self.results[self.results["arm"].isin(arms)].reset_index(drop=True)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add tidy rows (`arm`, `seed`, `metric`, `value`), for instance metrics derived from several arms."""
        frame = pd.DataFrame(list(rows))
        if len(frame):
            self.results = pd.concat([self.results, frame], ignore_index=True) if len(self.results) else frame

    def finish(self, claims: Sequence[Claim], data: str) -> list[Verdict]:
        """Judge the claims, write the record, drop the unfinished runs.

        Args:
            claims: what the chapter set out to test.
            data: provenance of the data.

        Returns:
            One verdict per claim.

        Raises:
            ValueError: a claim names an arm or metric that was not run.
        """
        verdicts = judge(claims, self.results)
        write_record(
            {
                "schema": 1,
                "chapter": self.chapter,
                "profile": self.profile,
                "parameters": self.parameters,
                "seeds": self.seeds,
                "results": self.results.to_dict(orient="records"),
                "claims": [verdict.as_dict() for verdict in verdicts],
                "provenance": {
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                    "started": self._started.isoformat(timespec="seconds"),
                    "wall_seconds": round(self._seconds, 1),
                    "hardware": hardware(self.device),
                    "versions": versions(),
                    "code_digest": self._digest,
                    "notebook_digest": self._notebook_digest,
                    **self._revision,
                    "data": data,
                },
            },
            self.results_dir,
        )
        self._finished = True
        self._drop_unfinished()
        return verdicts

    def _run_one(self, experiment: Callable[[str, int], Mapping[str, float]], arm: str, seed: int) -> dict[str, float]:
        name = hashlib.sha256(f"{arm}/{seed}".encode()).hexdigest()[:16]
        kept = self._unfinished() / f"{name}.json"
        try:
            content = json.loads(kept.read_text(encoding="utf-8"))
            self._seconds += content["seconds"]
            return content["metrics"]
        except (OSError, ValueError, KeyError, TypeError):  # not run yet, or cut short while being written
            pass
        began = time.perf_counter()
        with seeded(seed):  # whatever a chapter forgets to seed depends on the seed alone all the same
            metrics = {metric: float(value) for metric, value in experiment(arm, seed).items()}
        seconds = time.perf_counter() - began
        for metric, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{metric} is {value}.")
        self._seconds += seconds
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".partial-{os.getpid()}")
        partial.write_text(json.dumps({"metrics": metrics, "seconds": seconds}), encoding="utf-8")
        partial.replace(kept)
        return metrics

    def _drop_unfinished(self) -> None:
        shutil.rmtree(self._unfinished(), ignore_errors=True)

    def _unfinished(self) -> Path:
        described = json.dumps([self.parameters, str(self.device), self._digest], sort_keys=True, default=str)
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        return self.results_dir / "unfinished" / self.profile / self.chapter / key


def _notebook(chapter: str) -> str | None:
    """The chapter's source where the checkout is at hand."""
    root = repository_root()
    paths = [root / folder / f"{chapter}.md" for folder in ("chapters", "book")] if root else []
    return next((path.read_text(encoding="utf-8") for path in paths if path.exists()), None)
