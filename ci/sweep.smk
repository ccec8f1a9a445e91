# A sweep: one chapter, a job per combination of parameters. Planned and started by `kdcore sweep`, in whose folder
# plan.json lists the jobs; values travel in parameters.json of each job's folder, never through a shell.
import json
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
sys.path[:0] = [str(ROOT / "ci")]
from needs import needs

PLAN = json.loads(Path("plan.json").read_text(encoding="utf-8"))
CHAPTER, PROFILE = PLAN["chapter"], PLAN["profile"]
EXECUTE = ROOT / "ci" / "execute.py"
PYTHON = sys.executable


localrules: all


rule all:
    input:
        expand("jobs/{job}/executed.ipynb", job=PLAN["jobs"]),
        expand(f"jobs/{{job}}/{PROFILE}/{CHAPTER}.json", job=PLAN["jobs"]),


rule job:
    output:
        executed="jobs/{job}/executed.ipynb",
        record=f"jobs/{{job}}/{PROFILE}/{CHAPTER}.json",
    params:
        digest=PLAN["digest"],
    log:
        "jobs/{job}/log.txt",
    threads: needs(CHAPTER, PROFILE).cores
    resources:
        mem_mb=lambda wildcards, attempt: needs(CHAPTER, PROFILE, attempt).mem_mb,
        runtime=PLAN["minutes"],
        gpu=needs(CHAPTER, PROFILE).gpus,
    shell:
        "{PYTHON:q} {EXECUTE:q} {CHAPTER} --profile {PROFILE} --parameters jobs/{wildcards.job}/parameters.json "
        "--results-dir jobs/{wildcards.job} --output {output.executed:q} --time-limit {PLAN[minutes]} > {log:q} 2>&1"
