"""Rules that the ledger used before the present ones, by the names that data/claims.toml gives them in a history.

Each has the form of the rules in rules.py.  A change of rule keeps the old one here, so that it can still be asked.
"""

from functools import partial

import pandas as pd

from ttlib.claims import rules
from ttlib.claims.rules import Finding, Limits, Tables


def _apart(table: pd.DataFrame, panel: str, other: str) -> pd.DataFrame:
    """Return by step how far the Transformer's curve is above another, between means and between ends of intervals."""
    rows = rules.rows_of(table, panel=panel, scoring="mixture").sort_values("seed", kind="stable")
    curves = rows.drop_duplicates(["model", "t"]).set_index(["model", "t"])[["log_likelihood", "low", "high"]]
    ours, theirs = curves.loc["transformer"].sort_index(), curves.loc[other].sort_index()
    lead = ours.log_likelihood - theirs.log_likelihood
    return pd.DataFrame({"lead": lead, "low": ours.low - theirs.high, "high": ours.high - theirs.low})


def order_by_ends_of_intervals(tables: Tables, limits: Limits) -> Finding:
    table = tables["fig2_error_compounding"]
    leads = [_apart(table, "observed", other) for other in ("ensemble_ts1", "ensemble_tsinf")]
    lead = min(leads, key=lambda lead: lead["lead"].mean())  # the better ensemble
    late, above = lead[lead.index > lead.index.max() / 2].mean(), lead.low > 0
    ahead = above.iloc[-1]
    return Finding(late["lead"], ahead and above.mean() > limits["share"], ahead, low=late.low, high=late.high)


def memory_by_ends_of_intervals(tables: Tables, limits: Limits) -> Finding:
    observed, lead = (_apart(tables["fig2_error_compounding"], panel, "markov") for panel in ("observed", "masked"))
    masked, above = lead.mean(), (lead.low > 0).mean()
    larger = masked["lead"] > max(0, observed["lead"].mean())
    note = f"The intervals of the two curves are disjoint at {above:.0%} of the steps."
    return Finding(masked["lead"], larger and above > limits["share"], larger, note, masked.low, masked.high)


def imitation_by_first_search(tables: Tables, limits: Limits, dataset: str) -> Finding:
    """Judge by the search that stands first in the file, which is the one over a single action."""
    table = tables["imitation_rollouts"]
    searches = table[(table.method == "tto") & (table.dataset.str.removesuffix("-v2") == dataset)]
    first = rules.rows_of(searches).horizon.iloc[0]
    table = table[(table.method != "tto") | (table.horizon == first)]
    return rules.imitation({"imitation_rollouts": table}, limits, dataset)


def time_of_every_search(tables: Tables, limits: Limits, than: str) -> Finding:
    """Judge by the fastest of all searches, also by Table 1's."""
    table = tables["bench_planning"].drop(columns="setting", errors="ignore")
    return rules.slower({"bench_planning": table}, limits, than)


RULES = {
    "order-by-ends-of-intervals": order_by_ends_of_intervals,
    "memory-by-ends-of-intervals": memory_by_ends_of_intervals,
    "imitation-hopper-by-first-search": partial(imitation_by_first_search, dataset="hopper-expert"),
    "imitation-walker-by-first-search": partial(imitation_by_first_search, dataset="walker2d-expert"),
    "slower-in-every-search": partial(time_of_every_search, than="ensemble"),
    "not-real-time-in-every-search": partial(time_of_every_search, than="control step"),
}
