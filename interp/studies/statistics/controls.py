"""Controls that every table can have: the same method twice, and choosing at random.

An A/A control compares what cannot differ. `same_twice` takes two runs of one method; `false_alarms` makes as many null
studies as wanted out of the study's own scores. A method that drops tokens at the same budget is worth its idea only if
it beats dropping them at random: `against_random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import InterpError
from interp.studies.statistics.clusters import RESAMPLES, clustered_means
from interp.studies.statistics.differences import paired
from interp.studies.statistics.items import complete, items_of
from interp.studies.statistics.wording import amount


def same_twice(scores: pd.DataFrame | xr.Dataset, first: str, second: str, **settings: Any) -> pd.DataFrame:
    """The A/A control: two runs of the same method, as `paired` compares them, with what that says of the study.

    first, second: columns of scores of the two runs; settings: those of `paired`.

    Returns the one row of `paired`, its `family` "A/A control", with `alarm` (whether a difference is shown, which
    there should not be) and a sentence.

    Examples:
        >>> import pandas as pd
        >>> from interp.studies import statistics
        >>> scores = pd.DataFrame({"item": range(3), "run 1": [0.1, 0.2, 0.3], "run 2": [0.1, 0.2, 0.3]})
        >>> statistics.same_twice(scores, "run 1", "run 2", cluster=None)["sentence"][0]
        'A/A control: run 2 and run 1 score the same on every one of 3 items.'
    """
    table = paired(scores, first, [second], **{"family": "A/A control", **settings})
    row = table.iloc[0]
    alarm = bool(row["p_holm"] < 1 - row["confidence"]) or bool(row["se"] == 0 and row["difference"] != 0)
    if row["se"] == 0 and row["difference"] == 0:
        said = f"{second} and {first} score the same on every one of {row['items']:,} items."
    elif alarm:
        said = (
            f"something besides the method differs between {second} and {first}, and no difference of that size is to "
            f"be trusted. {row['sentence']}"
        )
    else:
        said = (
            f"the runs are not identical, but no difference is shown between them: {row['difference']:+.3g} "
            f"({row['confidence']:.0%} interval {amount(row['low'])} to {amount(row['high'], row['units'])})."
        )
    return table.assign(alarm=alarm, sentence=f"A/A control: {said}")


def false_alarms(
    scores: pd.DataFrame | xr.Dataset,
    first: str,
    second: str,
    *,
    item: str = "item",
    cluster: str | None = "cluster",
    alpha: float = 0.05,
    studies: int = 2_000,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """How often these very scores give a false alarm when nothing differs.

    In each of `studies` null studies the two columns are swapped in a random half of the clusters. What is left differs
    by chance alone, with the study's own clusters, sizes and spread, and p should be below `alpha` in a share `alpha`
    of them.

    Returns a row with `share`, `low`, `high` (Wilson's interval of the share, 99 %), `alpha`, `studies`, `sentence`.
    Raises InterpError where the two columns are equal: then there is nothing to swap.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from interp.studies import statistics
        >>> rng = np.random.default_rng(0)
        >>> scores = pd.DataFrame({"item": range(60), "a": rng.normal(size=60), "b": rng.normal(size=60)})
        >>> table = statistics.false_alarms(scores, "a", "b", cluster=None, resamples=999)
        >>> bool(0.03 < table["share"][0] < 0.08)
        True
    """
    from statsmodels.stats.proportion import proportion_confint

    given, _ = complete(scores, [first, second], item, cluster)
    values = (given.scores[second] - given.scores[first]).to_numpy()
    if not values.any():
        raise InterpError(f"{first} and {second} are equal on every item; name two methods that differ somewhere.")
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (given.cluster.max() + 1, studies))
    found = clustered_means(values[:, None] * signs[given.cluster], given.cluster, seed=seed, resamples=resamples)
    alarms = sum(one.p() < alpha for one in found)
    low, high = proportion_confint(alarms, studies, 0.01, method="wilson")
    told = (
        f"A/A control: of {studies:,} null studies made by swapping {first} and {second} in half of the clusters, "
        f"{alarms / studies:.1%} have p < {alpha:g} (99% interval {low:.1%} to {high:.1%})"
    )
    fits = "as they should." if low <= alpha <= high else f"and not the {alpha:.0%} that p promises."
    row = {"share": alarms / studies, "low": low, "high": high, "alpha": alpha, "studies": studies}
    return pd.DataFrame([row | {"sentence": f"{told}, {fits}"}])


def against_random(
    scores: pd.DataFrame | xr.Dataset,
    random: Sequence[str],
    methods: Sequence[str] | None = None,
    *,
    item: str = "item",
    cluster: str | None = "cluster",
    **settings: Any,
) -> pd.DataFrame:
    """The random-policy control: each method against the mean of random choices at the same budget.

    random: columns of scores of a policy that chooses at random, one a seed; methods: the columns that are compared;
    None: all others; settings: those of `paired`.

    Returns the rows of `paired` with the baseline "random choice", `beats_random` and `seeds`. The seeds are averaged
    item by item: the interval is about other items, with these seeds.

    Raises InterpError as `paired` does, and without a column of random choices.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from interp.studies import statistics
        >>> rng = np.random.default_rng(0)
        >>> scores = pd.DataFrame({"item": range(50)} | {name: rng.normal(size=50) for name in ("seed 0", "seed 1")})
        >>> scores["method"] = scores["seed 0"] + 1
        >>> statistics.against_random(scores, ["seed 0", "seed 1"], cluster=None)["beats_random"].tolist()
        [True]
    """
    if not random:
        raise InterpError("the random-policy control needs the scores of at least one random choice.")
    given = items_of(scores, None if methods is None else [*random, *methods], item, cluster)
    random_scores = items_of(scores, list(random), item, cluster).scores
    table = given.scores.drop(columns=list(random), errors="ignore").assign(
        item=np.arange(len(given.scores)), cluster=given.cluster, **{RANDOM: random_scores.mean(axis=1, skipna=False)}
    )
    found = paired(table, RANDOM, **{"family": "against random choice", **settings})
    up = found["difference"] > 0 if settings.get("better", "higher") == "higher" else found["difference"] < 0
    beats = (found["p_holm"] < 1 - found["confidence"]) & up
    seeds = f" Random choice is the mean of {len(random)} seed{'s' * (len(random) != 1)}."
    return found.assign(beats_random=beats, seeds=len(random), sentence=found["sentence"] + seeds)


RANDOM = "random choice"
