"""Metrics of the running job through Flink's REST API, summed over its subtasks."""

from collections import Counter
from collections.abc import Iterable
from urllib.parse import quote

from deploy.local.flink_rest import FlinkRest

# More names than this in one address and Flink's server refuses it.
_AT_ONCE = 20


def job_metrics(rest: FlinkRest, names: Iterable[str]) -> Counter[str]:
    """Values of the job's metrics by name; a metric that is not there counts 0.

    Flink answers with what it fetched last and only then fetches anew (metrics.fetcher.update-interval), so
    a caller that wants the present asks, waits, and asks again. Raises UnreachableError.
    """
    wanted = set(names)
    totals: Counter[str] = Counter()
    jobs = rest.jobs()
    if not jobs:
        return totals
    for vertex in rest.get(f"/jobs/{jobs[-1].id}")["vertices"]:
        path = f"/jobs/{jobs[-1].id}/vertices/{vertex['id']}/metrics"
        # SUBTASK.OPERATOR.NAME
        found = [m["id"] for m in rest.get(path) if m["id"].rsplit(".", 1)[-1] in wanted]
        for start in range(0, len(found), _AT_ONCE):
            asked = quote(",".join(found[start : start + _AT_ONCE]))
            for metric in rest.get(f"{path}?get={asked}"):
                totals[metric["id"].rsplit(".", 1)[-1]] += int(float(metric["value"]))
    return totals
