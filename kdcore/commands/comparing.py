"""`kdcore compare`: two records side by side, what differs in how they were made and in what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from kdcore.commands.checkout import root
from kdcore.commands.ledger import interval
from kdcore.commands.recorded import find_record, record_files, record_folders, record_name
from kdcore.commands.tables import show_json, show_table
from kdcore.study.records import read_record

__all__ = ["EXAMPLES", "compare_records", "complete_record", "differences_in_results", "differences_in_setting"]

EXAMPLES = (
    "kdcore compare cpu:kd cpu:spherical_kd",
    "kdcore compare quick:kd results/temperature=2/quick/foundations/kd.json",
    "kdcore compare cpu:kd gpu:kd --json",
)


def complete_record(incomplete: str) -> list[str]:
    """Names of records that begin so.

    Example:
        >>> complete_record("cpu:spher")
        ['cpu:spherical_kd']
    """
    names = {record_name(path) for path in record_files([*record_folders(), root() / "results"])}
    return sorted(name for name in names if name.startswith(incomplete))


def compare_records(
    first: Annotated[str, typer.Argument(help="A file, or a name such as cpu:kd.", autocompletion=complete_record)],
    second: Annotated[str, typer.Argument(help="Another one.", autocompletion=complete_record)],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Show what differs between two records: setting, versions, hardware, results, verdicts.

    Raises:
        ValueError: a record is not there or corrupt, or the two have no arm and metric in common.

    Example:
        >>> compare_records("cpu:kd", "cpu:kd")
        The setting is the same.
        <BLANKLINE>
        Results: ...
        The verdicts are the same.
    """
    paths = find_record(first), find_record(second)
    a, b = map(read_record, paths)
    setting = list(differences_in_setting(a, b))
    results = differences_in_results(a, b)
    verdicts = list(_verdicts(a, b))
    if as_json:
        show_json({"setting": setting, "results": results, "verdicts": verdicts, "only": _only(a, b)})
        return
    if setting:
        show_table(setting, title="Setting")
    else:
        print("The setting is the same.")
    print()
    show_table([_row(row) for row in results], title="Results: B minus A, 95 % interval")
    for side, names in _only(a, b).items():
        print(f"only in {side}: {'; '.join(names)}")
    print()
    if verdicts:
        show_table(verdicts, title="Verdicts")
    else:
        print("The verdicts are the same.")


def differences_in_setting(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Everything but results and claims in which two records differ: one row each, `what`, `A` and `B`.

    Example:
        >>> a = {"chapter": "logits/dhkd", "parameters": {"alpha": 1.0}, "provenance": {"versions": {"torch": "2.6"}}}
        >>> list(differences_in_setting(a, a | {"parameters": {"alpha": 2.0}}))
        [{'what': 'parameters: alpha', 'A': '1.0', 'B': '2.0'}]
    """
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    for name in [*flat_a, *(name for name in flat_b if name not in flat_a)]:
        if flat_a.get(name) != flat_b.get(name):
            yield {"what": name, "A": flat_a.get(name, "–"), "B": flat_b.get(name, "–")}


def differences_in_results(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """B minus A, for each arm and metric that both records have.

    With the same chapter and seeds the differences are paired, seed by seed; else two samples are compared (Welch).
    Both give the 95 % interval of the difference of the means.

    Returns:
        Rows of `arm`, `metric`, `A` and `B` (means), `difference`, `low`, `high` (None with a single seed), and
        `how`: "bit-equal", "paired" or "unpaired".

    Raises:
        ValueError: no arm and metric in common.

    Example:
        >>> rows = [{"arm": "KD", "seed": k, "metric": "accuracy", "value": 90.0 + k} for k in range(3)]
        >>> other = [row | {"value": row["value"] + 2 + row["seed"]} for row in rows]
        >>> a, b = ({"chapter": "foundations/kd", "results": results} for results in (rows, other))
        >>> (row,) = differences_in_results(a, b)
        >>> row["difference"], row["how"]
        (3.0, 'paired')
    """
    values_a, values_b = _values(a), _values(b)
    common = [key for key in values_a if key in values_b]
    if not common:
        raise ValueError("the two records have no arm and metric in common, so there is nothing to compare.")
    paired = a["chapter"] == b["chapter"]  # another chapter makes other data and networks of the same seed
    return [
        {"arm": arm, "metric": metric} | _difference(values_a[arm, metric], values_b[arm, metric], paired)
        for arm, metric in common
    ]


def _difference(a: dict[int, float], b: dict[int, float], paired: bool) -> dict[str, Any]:
    """One row of `differences_in_results`, from the values by seed."""
    from scipy import stats

    how = "paired" if paired and a.keys() == b.keys() else "unpaired"
    first, second = list(a.values()), [b[seed] for seed in (a if how == "paired" else b)]
    mean_a, mean_b = sum(first) / len(first), sum(second) / len(second)
    changes = {later - earlier for earlier, later in zip(first, second, strict=False)}
    steady = len(changes) == 1 if how == "paired" else len(set(first)) == len(set(second)) == 1
    low, high = None, None
    if min(len(first), len(second)) > 1 and not steady:
        test = stats.ttest_rel(second, first) if how == "paired" else stats.ttest_ind(second, first, equal_var=False)
        low, high = map(float, test.confidence_interval())
    elif min(len(first), len(second)) > 1:  # a spread of zero, for which no test is defined
        low = high = mean_b - mean_a
    row = {"A": mean_a, "B": mean_b, "difference": mean_b - mean_a, "low": low, "high": high}
    return row | {"how": "bit-equal" if a == b else how, "seeds": f"{len(a)}, {len(b)}"}


def _values(record: Mapping[str, Any]) -> dict[tuple[str, str], dict[int, float]]:
    """(arm, metric) → value by seed."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in record["results"]:
        found.setdefault((row["arm"], row["metric"]), {})[row["seed"]] = row["value"]
    return found


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested names and values, as text, without results and claims."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif name not in ("results", "claims"):
            yield f"{prefix}{name}", f"{value[:12]}…" if value and name.endswith("digest") else str(value)


def _only(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    """Arms that one of the records lacks."""
    arms = [list(dict.fromkeys(arm for arm, _ in _values(record))) for record in (a, b)]
    found = {"A": [arm for arm in arms[0] if arm not in arms[1]], "B": [arm for arm in arms[1] if arm not in arms[0]]}
    return {side: names for side, names in found.items() if names}


def _verdicts(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Claims of both records with another verdict."""
    others = {claim["id"]: claim for claim in b["claims"]}
    for claim in a["claims"]:
        other = others.get(claim["id"])
        if other and other["verdict"] != claim["verdict"]:
            sides = {side: f"{it['verdict']}, {interval(it)}" for side, it in (("A", claim), ("B", other))}
            yield {"claim": claim["id"], **sides}


def _row(row: Mapping[str, Any]) -> dict[str, object]:
    """A row as the table shows it."""
    shown = f"{row['difference']:+.3g}" if row["low"] is None else interval(dict(row))
    return {name: row[name] for name in ("arm", "metric", "A", "B")} | {
        "difference": shown, "how": row["how"], "seeds": row["seeds"],
    }  # fmt: skip
