"""Test the ledger of claims: every rule gives each of its verdicts on tables made by hand."""

import re

import numpy as np
import pandas as pd
import pytest

from ttlib.claims import checks, front, ledger, rules, superseded
from ttlib.claims.ledger import LEDGER as PATH
from ttlib.claims.ledger import NOT, SIZES, TREND, Outcome, changed, into_readme, load, outcomes, record
from ttlib.pipeline import places

LEDGER = {claim.id: claim for claim in ledger.load()}


# Tables made by hand, one function for each claim: (good) -> tables.  The claim holds if good is 2, only its trend if
# good is 1, and neither if good is 0.


def rollouts(groups: dict[tuple, float], n: int = 8, **columns) -> pd.DataFrame:
    """Return rollouts of each (dataset, method, variant) with a mean return, and deviations of at most one."""
    deviations = np.linspace(-1, 1, n)
    rows = [{"dataset": dataset, "source": "official", "method": method, "profile": "v1" if method == "tto" else "any",
             "variant": variant, "model_seed": 0, "rollout_seed": seed, "return": mean + e, "score": mean + e}
            for i, ((dataset, method, variant), mean) in enumerate(groups.items())
            for seed, e in enumerate((-1) ** i * deviations)]
    return pd.DataFrame(rows).assign(**{"horizon": 2, "noise": np.nan} | columns)


def curves(panels: dict[str, dict[str, float | list]], half: float = 1.0) -> pd.DataFrame:
    """Return Figure 2 with 100 steps from panel -> model -> log-likelihood, one number or one for each step."""
    rows = []
    for panel, models in panels.items():
        for model, y in models.items():
            frame = pd.DataFrame({"t": np.arange(1, 101), "log_likelihood": y}).assign(seed=0, panel=panel, model=model)
            scoring = "histogram" if model == "simulator" else "mixture"
            low, high = frame.log_likelihood - half, frame.log_likelihood + half
            rows.append(frame.assign(scoring=scoring, low=low, high=high))
    return pd.concat(rows)


def figure_2(panels: dict[str, dict[str, float | list]]) -> dict[str, pd.DataFrame]:
    """Return the curves, and the Transformer's leads over all other models, with intervals of a tenth of a nat."""
    table, rows = curves(panels), []
    for (panel, other), of in table.groupby(["panel", "model"]):
        ours = table[(table.panel == panel) & (table.model == "transformer")]
        lead = ours.log_likelihood.to_numpy() - of.log_likelihood.to_numpy()
        for first, last in [*((t, t) for t in range(1, 101)), (51, 100), (1, 100)]:
            mean = lead[first - 1 : last].mean()
            row = {"panel": panel, "model": "transformer", "other": other, "first": first, "last": last}
            rows.append(row | {"lead": mean, "low": mean - 0.1, "high": mean + 0.1})
    return {"fig2_error_compounding": table, "fig2_leads": pd.DataFrame(rows)}


def ensembles(y) -> dict:
    return {"ensemble_ts1": y, "ensemble_tsinf": np.asarray(y) - 5.0}


def round_trip(good):
    errors = [0.9, 1.0 + 0.01 * (good == 0)]
    return {"round_trip": pd.DataFrame({"bins": "uniform", "largest_error": errors, "steps": 10})}


def cloning(good):
    other = ["1 2", "1 2" if good else "1 3"]
    same = pd.DataFrame({"search": "1 2", "policy": other, "search_log_p": -1.0, "policy_log_p": -1.0})
    return {"cloning_check": same}


def plausible(good):
    poses = []
    for model, fallen in (("reference", 0), ("transformer", (90, 20, 0)[good]), ("ensemble", 50)):
        t = np.arange(101)
        turn = 0.001 * t + (t > 100 - fallen) * (t % 2)  # half a turn at every step once it has fallen
        turned = {"q3": np.cos(turn), "q4": np.sin(turn), "q5": 0.0, "q6": 0.0, "head": 1.4 - (t > 100 - fallen)}
        poses.append(pd.DataFrame({"model": model, "rollout": 0, "t": t} | turned))
    poses = pd.concat(poses)
    heights = poses[["model", "rollout", "t", "head"]].rename(columns={"head": "z"}).assign(body="head")
    return {"fig1_poses": poses.drop(columns="head"), "fig1_humanoid": heights}


def order(good):
    early, late = (20, 20) if good == 2 else (-20, 20) if good == 1 else (20, -20)
    ours = np.where(np.arange(1, 101) > 60, late, early)
    return figure_2({"observed": {"transformer": ours, **ensembles(0.0)}})


def fails(good):
    t = np.arange(1, 101)
    ensemble = -60.0 * (t > (200, 90, 30)[good])
    return {"fig2_error_compounding": curves({"observed": {"simulator": 0.0, **ensembles(ensemble)}})}


def markov(good):
    cut = (10.0, 60.0, 95.0)[good]
    return {"fig2_error_compounding": curves({"observed": {"transformer": 100.0, "markov": cut, **ensembles(0.0)}})}


def masked(good):
    ours = (0.5, 30.0 * (np.arange(100) < 10), 10.0)[good]
    panels = {p: {"transformer": y, "markov": 0.0} for p, y in (("observed", 1.0), ("masked", ours))}
    past = {"panel": ["observed", "observed", "masked", "masked"], "model": "transformer", "past": [1, 4, 1, 4]}
    ahead = pd.DataFrame(past | {"log_density": [50.0, 51.0, 10.0, 20.0]})
    return {"fig2_leads": figure_2(panels)["fig2_leads"], "humanoid_one_step_by_past": ahead}


def discretisation(good):
    lines = {"transformer": 100.0, "markov": 90.0 if good else 10.0, **ensembles(0.0)}
    table = rollouts({("h", "tto", "main"): 100, ("h", "tto", "independent_dimensions"): 50 if good == 2 else 100})
    return {"fig2_error_compounding": curves({"observed": lines}), "ablations_rollouts": table}


def attention(rows: str, values: dict[str, float]) -> dict:
    made = [{"rows": rows, "score": k, "value": v, "layer": 1, "head": 1} for k, v in values.items()]
    return {"attention_scores": pd.DataFrame(made).assign(profile="v1", seed=0, uniform_value=0.1)}


def patterns(good):
    return attention("states", {"markov": 0.9 if good else 0.2, "striated": 0.3 if good == 2 else 0.1})


def actions(good):
    a, s = ((0.1, 0.9), (0.3, 0.5), (0.6, 0.2))[good]
    by_key = {"past_action_key": a / 3, "past_state_key": s / 11}
    return attention("actions", {"past_actions": a, "past_states": s} | by_key)


def table1(*names):
    def make(good):
        # 2: above all published priors; 1: above its own clone only; 0: below it
        returns = {("tto", "main"): (20, 30, 120)[good], ("tto", "sampling"): 500, ("bc", "main"): 25,
                   ("behaviour", "behaviour_policies"): 45, ("random_shooting", "main"): 10}
        return {"table1_rollouts": rollouts({(name, *of): x for name in names for of, x in returns.items()})}

    return make


def short(good):
    tto, clone = ((90, 40), (90, 200), (30, 35))[good]
    name = "halfcheetah-medium-expert-v2"
    return {"table1_rollouts": rollouts({(name, "tto", "main"): tto, (name, "bc", "main"): clone})}


def bins(good):
    name = "halfcheetah-medium-expert"
    groups = {(name, "tto", "main"): (50, 100.4, 200)[good], (name, "tto", "uniform_bins"): 100}
    return {"ablations_rollouts": rollouts(groups)}


def imitation(name):
    def make(good):
        short = rollouts({(name, "tto", "main"): 10}, horizon=0)
        longest = rollouts({(name, "tto", "main"): (200, 800, 1100)[good]}, horizon=4)
        table = pd.concat([short, longest, rollouts({(name, "bc", "main"): 700}, horizon=np.nan)])
        return {"imitation_rollouts": table.assign(demonstrator=1000.0)}

    return make


def goals(good):
    rows = [("goal_transformer", (0.3, 0.8, 0.99)[good]), ("transformer", 0.2), ("straight", 0.4)]
    table = pd.DataFrame(rows, columns=["model", "success"]).assign(split="seen", rooms_crossed=-1)
    return {"four_rooms_success": table.assign(low=table.success - 0.02, high=table.success + 0.02)}


def myopic(good):
    without = (120, 99.8, 20)[good]
    return {"ablations_rollouts": rollouts({("h", "tto", "main"): 100, ("h", "tto", "no_reward_to_go"): without})}


def noisy(good):
    """Return two levels of noise; the rule reads 0.25 alone, and the stronger one costs all of the return."""
    levels = [rollouts({("h", "tto", "noise"): x}, noise=n) for x, n in ((0, 1.0), ((20, 60, 98)[good], 0.25))]
    others = rollouts({("h", "tto", "main"): 100, ("h", "tto", "no_reward_to_go"): 20})
    return {"ablations_rollouts": pd.concat([*levels, others])}


def likely(good):
    noise = np.linspace(-1, 1, 30)
    made = [("tto", "released", (-9.0, -4.9, 0.0)[good]), ("tto", "v1", 50.0), ("random_shooting", "any", -5.0)]
    rows = [pd.DataFrame({"method": m, "profile": p, "log_likelihood": x + s * noise})
            for (m, p, x), s in zip(made, (1, 1, -1))]
    return {"action_likelihood": pd.concat(rows).assign(dataset="h", variant="main", scorer="v1")}


def promises(good):
    datasets = ("a", "b", "c")
    exploited = datasets[: (1, 2, 3)[good]]  # on how many of them
    kinds = [("tto", 1), ("random_shooting", 9)]
    rows = [{"dataset": d, "method": m, "rollout_seed": i, "predicted": hope if d in exploited else 0}
            for d in datasets for m, hope in kinds for i in range(5)]
    values = pd.DataFrame(rows).assign(profile="v1", variant="main", achieved=0.0)
    returns = {(d, m, "main"): 100 / hope for d in datasets for m, hope in kinds}
    return {"planner_values": values, "table1_rollouts": rollouts(returns)}


def timed(good):
    """Return times of three tasks: the Transformer takes a second on one, two or three, else a microsecond."""
    tasks = ("hopper", "walker2d", "halfcheetah")
    rows = [(t, "O", 1.0 if i < (1, 2, 3)[good] else 1e-6) for i, t in enumerate(tasks)]
    rows += [(t, "ensemble", 0.001) for t in tasks]
    table = pd.DataFrame(rows, columns=["task", "model", "seconds_per_decision"])
    return {"bench_planning": table.assign(environments=1)}


def training(good):
    speed = 40.96e9 / (50, 1, 8)[good] / 3600
    return {"bench_training": pd.DataFrame({"model": ["P"], "machine": "NVIDIA X", "tokens_per_second": [speed]})}


KINDS = ("medium", "medium-replay", "medium-expert")
HAND = {
    "round-trip": round_trip, "length-m-is-cloning": cloning, "plausible-humanoid": plausible,
    "order-of-models": order, "ensemble-fails": fails, "markov-is-close": markov, "memory-when-masked": masked,
    "discretisation-explains": discretisation, "attention-patterns": patterns, "actions-attend-to-actions": actions,
    "hopper-walker": table1(*(f"{task}-{kind}-v2" for task in ("hopper", "walker2d") for kind in KINDS)),
    "halfcheetah": table1("halfcheetah-medium-v2", "halfcheetah-medium-replay-v2"),
    "halfcheetah-medium-expert": short, "coarse-bins": bins, "imitation-hopper": imitation("hopper-expert"),
    "imitation-walker": imitation("walker2d-expert"), "goals-without-rewards": goals, "myopic": myopic,
    "inaccurate-values": noisy, "actions-in-distribution": likely, "no-pessimism": promises, "slower": timed,
    "not-real-time": timed, "training-cost": training,
}  # fmt: skip
WITHOUT_TREND = ("round-trip", "length-m-is-cloning")


def judged(claim: ledger.Claim, tables: dict[str, pd.DataFrame], folder, size: str = "laptop") -> ledger.Outcome:
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return ledger.evaluate(claim, size, lambda name, size: folder / f"{name}.csv")


@pytest.mark.parametrize("name", LEDGER)
def test_a_rule_gives_each_verdict(name, tmp_path):
    claim, make = LEDGER[name], HAND[name]
    assert set(make(2)) == set(claim.files)
    outcome = judged(claim, make(2), tmp_path)
    assert outcome.verdict == ledger.REPRODUCED and "nan" not in claim.says(outcome.finding) + outcome.note
    if name not in WITHOUT_TREND:
        assert judged(claim, make(1), tmp_path).verdict == ledger.TREND
    assert judged(claim, make(0), tmp_path, "paper").verdict == ledger.NOT
    assert judged(claim, make(0), tmp_path, "laptop").verdict == (ledger.NOT_HERE if claim.size_matters else ledger.NOT)


@pytest.mark.parametrize("name", LEDGER)
def test_a_missing_result_is_never_reproduced(name, tmp_path):
    """A claim is not tested if a file is missing, or has columns but no rows."""
    claim, tables = LEDGER[name], HAND[name](2)
    assert judged(claim, {}, tmp_path).verdict == ledger.UNTESTED
    for gone in tables:
        assert judged(claim, {k: v for k, v in tables.items() if k != gone}, tmp_path).verdict == ledger.UNTESTED
        outcome = judged(claim, tables | {gone: tables[gone].iloc[:0]}, tmp_path)
        assert outcome.verdict == ledger.UNTESTED and outcome.note
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_value_that_is_no_number_is_not_tested(tmp_path):
    tables = goals(2)
    tables["four_rooms_success"]["success"] = np.nan
    assert judged(LEDGER["goals-without-rewards"], tables, tmp_path).verdict == ledger.UNTESTED


def test_a_file_with_other_columns_is_refused_with_their_names(tmp_path):
    tables = {"four_rooms_success": goals(2)["four_rooms_success"].drop(columns="low")}
    with pytest.raises(ValueError, match=r"goals-without-rewards.*low.*rooms_crossed"):
        judged(LEDGER["goals-without-rewards"], tables, tmp_path)


def test_scores_on_regenerated_data_reproduce_no_published_score(tmp_path):
    for name in ("hopper-walker", "halfcheetah"):
        table = HAND[name](2)["table1_rollouts"].assign(source="regenerated")
        assert judged(LEDGER[name], {"table1_rollouts": table}, tmp_path).verdict == ledger.TREND
    table = short(2)["table1_rollouts"].assign(source="regenerated")
    verdict = judged(LEDGER["halfcheetah-medium-expert"], {"table1_rollouts": table}, tmp_path).verdict
    assert verdict != ledger.REPRODUCED


def test_half_of_the_data_sets_are_too_few(tmp_path):
    table = HAND["hopper-walker"](2)["table1_rollouts"]
    some = table[table.dataset.isin(sorted(table.dataset.unique())[:3])]
    outcome = judged(LEDGER["hopper-walker"], {"table1_rollouts": some}, tmp_path)
    assert outcome.verdict == ledger.UNTESTED and "3 of 6" in outcome.note


@pytest.fixture(scope="module")
def now() -> dict:
    return outcomes(list(LEDGER.values()))


def test_verdicts_are_those_of_the_ledger(now):
    """A committed result that changes a verdict fails here until `make claims` writes it to data/claims.toml."""
    assert not changed(list(LEDGER.values()), now), "look at the new verdicts, then run `make claims`"


def test_readme_has_the_summary_and_the_table_of_now(now, monkeypatch):
    """In mode book a record that does not belong to the present results is refused."""
    monkeypatch.setenv("TTLIB_MODE", "book")
    text, claims = (places.ROOT / "README.md").read_text(), list(LEDGER.values())
    lines = front.summary(claims, now, checks.table(claims, now, "laptop"), "laptop")
    assert text == into_readme(text, claims, now, lines), "run `make claims`"
    assert len(lines) == 10 and all(claim.wording in text and claim.title in text for claim in claims)


def test_each_row_has_a_history_and_a_changed_row_names_the_verdict_of_its_first_rule(now):
    text = ledger.table(list(LEDGER.values()), now, "")
    for claim in LEDGER.values():
        first, *later = claim.history
        assert all(change.reason and change.commit and change.date >= first.date for change in later)
        outcome = now[claim.id, "laptop"]
        assert (outcome.first in ledger.VERDICTS) == bool(later), claim.id
        if later and outcome.first != outcome.verdict:
            assert f"{outcome.verdict} (first rule: {outcome.first})" in text


def test_the_first_rule_of_memory_wants_disjoint_curves():
    """A lead of 1.5 nats is clear of an interval of a tenth of a nat, but not of two curves' intervals of one nat."""
    limits = LEDGER["memory-when-masked"].history[0].limits
    for lead, holds in ((1.5, False), (2.5, True)):
        table = curves({p: {"transformer": y, "markov": 0.0} for p, y in (("observed", 1.0), ("masked", lead))})
        found = superseded.memory_by_ends_of_intervals({"fig2_error_compounding": table}, limits)
        assert found.trend and found.holds == holds and np.isclose(found.low, lead - 2)


def test_the_first_rules_of_imitation_and_speed_read_other_rows():
    limits = {"paper": 1.04, "below": 0.1, "half": 0.5}
    found = superseded.imitation_by_first_search(imitation("hopper-expert")(2), limits, "hopper-expert")
    assert np.isclose(found.value, 0.01) and not found.holds
    table = timed(2)["bench_planning"].assign(setting="fast")
    short = table.assign(setting="table 1", seconds_per_decision=table.seconds_per_decision / 1e6)
    tables = {"bench_planning": pd.concat([table, short[short.model != "ensemble"]])}
    assert rules.RULES["not-real-time"](tables, {}).holds
    assert not superseded.RULES["not-real-time-in-every-search"](tables, {}).trend


def test_other_choices_turn_a_verdict_where_they_cross_its_threshold(tmp_path):
    claim = LEDGER["goals-without-rewards"]
    rows = checks.sensitivity(claim, "laptop", goals(1)).set_index("check")
    assert rows.turns.to_dict() == {"`success` halved to 0.45": True, "`success` doubled to 1.8": False}
    assert rows.verdict.iloc[0] == ledger.REPRODUCED
    with rules.summed_up(average=np.median):
        assert rules.average(pd.Series([0, 0, 9])) == 0
    assert rules.average(pd.Series([0, 0, 9])) == 3


def test_repetitions_keep_means_and_share_the_luck_of_a_training():
    rng = np.random.default_rng(0)
    table = rollouts({("h", "tto", "main"): 100.0, ("h", "tto", "noise"): 50.0}, n=2000)
    again = checks.repeated(table, rng, between=0.0).groupby("variant")["score"].agg(["mean", "std"])
    assert np.allclose(again["mean"], [100, 50], atol=0.1)
    assert np.allclose(again["std"], table.score[:2000].std(), atol=0.05)
    shifted = checks.repeated(table, rng, between=100.0).groupby("variant")[["score", "return"]].mean()
    assert np.isclose(shifted.score.diff().iloc[1], -50, atol=0.2) and abs(shifted.score.iloc[0] - 100) > 1
    assert np.allclose(shifted["return"], shifted.score)  # in this table they are the same number


def test_power_is_one_where_an_effect_is_far_larger_than_its_spread():
    claim = LEDGER["myopic"]
    large, none = (checks.power(claim, "laptop", myopic(good), times=8).same for good in (2, 1))
    assert (large == 1).all() and (none < 1).all()


def test_three_rollouts_of_one_training_are_said_to_be_that():
    table = rollouts({("halfcheetah-medium-expert", m, "main"): 50.0 for m in ("tto", "bc")}, n=3)
    words = checks.design(LEDGER["halfcheetah-medium-expert"], {"table1_rollouts": table})
    assert words["trainings"].startswith("one training") and words["rollouts"].startswith("3 rollouts")
    assert words["datasets"] == "one dataset" and "too few to call it an interval" in words["brackets"]
    many = pd.concat([table.assign(model_seed=k) for k in range(3)] * 4)
    words = checks.design(LEDGER["halfcheetah-medium-expert"], {"table1_rollouts": many})
    assert words["brackets"] == "a 90% bootstrap interval over 12 rollouts of 3 trainings"


def test_the_page_of_the_ledger_has_each_row_and_no_script(now, monkeypatch):
    monkeypatch.setenv("TTLIB_MODE", "book")
    claims = list(LEDGER.values())
    text = front.page(claims, now, checks.table(claims, now, "laptop"), "laptop")
    assert text.count("<summary>") == text.count("</details>") == len(claims) == text.count('role="img"')
    assert "{{" not in text and "<script" not in text and " on" + "click" not in text and "nan" not in text
    for claim in claims:
        assert f'id="claim-{claim.id}"' in text


def test_a_changed_verdict_is_told_and_written(tmp_path):
    """Only the line `expected` of that claim changes in the file."""
    ledger, path = list(LEDGER.values()), tmp_path / "claims.toml"
    path.write_text(PATH.read_text())
    found = {(c.id, size): Outcome(c.expected[size], None, "") for c in ledger for size in SIZES}
    assert not changed(ledger, found)
    other = TREND if LEDGER["slower"].expected["paper"] != TREND else NOT
    found["slower", "paper"] = Outcome(other, None, "")
    assert [line.split(":")[0] for line in changed(ledger, found)] == ["slower, size paper"]
    record(ledger, found, path)
    pairs = zip(PATH.read_text().splitlines(), path.read_text().splitlines(), strict=True)
    line = f'expected = {{ laptop = "{LEDGER["slower"].expected["laptop"]}", paper = "{other}" }}'
    assert [new for old, new in pairs if new != old] == [line]
    assert not changed(load(path), found)


@pytest.mark.parametrize("old, new, said", [
    (r'^settle = "Run a test on one.*$', "", "round-trip.*settle"),
    (r"^sentence = .*$", 'sentence = ""', "round-trip.*sentence"),
    (r"^sentence = .*$", 'sentence = "The error is {error}."', "round-trip: sentence names 'error'.*value"),
    (r'^id = "slower"$', 'id = "slow"', "slow.*round-trip"),
    (r"^limits = \{ half_bins.*$", "limits = {}", "round-trip.*half_bins"),
    (r"^known = true$", "", "round-trip: .*history.*known"),
    (r'^rule = "order.*$', 'rule = "gone"', "order-of-models.*'gone'.*first rule's verdict"),
    (r"^picture = .*$", "picture = { low = 0, high = 1 }", "round-trip: picture.*paper or limit"),
    (r"^expected = .*$", 'expected = { laptop = "holds", paper = "not tested" }', "round-trip.*holds.*trend only"),
])
def test_a_wrong_row_is_refused_by_name(tmp_path, old, new, said):
    text, count = re.subn(old, new, PATH.read_text(), count=1, flags=re.MULTILINE)
    assert count
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        ledger.load(tmp_path / "claims.toml")


def test_several_settings_of_a_variant_are_refused():
    with pytest.raises(ValueError, match="several settings of 'noise' on h"):
        rules.ablation_pairs(noisy(2)["ablations_rollouts"], "noise")


def test_a_rule_without_a_row_is_refused(tmp_path):
    rows = PATH.read_text().split("[[claim]]")
    (tmp_path / "claims.toml").write_text("[[claim]]".join(rows[:-1]))
    with pytest.raises(ValueError, match="training-cost"):
        ledger.load(tmp_path / "claims.toml")


def test_scores_of_the_paper_in_the_ledger_are_those_of_the_published_table():
    """The ledger quotes the published means, and the paper's own halfcheetah scores pass the rule for a match."""
    table = pd.read_csv(places.ROOT / "data" / "published_table1.csv")
    ours = table[table.method == "TTO"].set_index("dataset")["mean"]
    prior = table[table.method != "TTO"].groupby("dataset")["mean"].max()
    for name, chosen in (
        ("hopper-walker", ours.index.str.startswith(("hopper", "walker"))),
        ("halfcheetah", ours.index.isin(["halfcheetah-medium", "halfcheetah-medium-replay"])),
    ):
        text, names = LEDGER[name].paper, ours.index[chosen]
        assert text.startswith(f"{ours[names].mean():.0f} ") and f"best prior {prior[names].mean():.0f}" in text
        assert (ours[names] >= LEDGER[name].limits["par"] * prior[names]).all()
    short = "halfcheetah-medium-expert"
    assert ours[short] < LEDGER[short].limits["short"] * prior[short]


def test_differences_are_drawn_in_pairs_and_models_count_as_drawn():
    """A constant difference between paired rollouts has no width, and differences between models widen an interval."""
    rows = rollouts({("h", "tto", "main"): 10.0})
    more = rows.assign(**{"return": rows["return"] + 2})
    low, high = rules.interval(rules.bootstrap_means(more, "return") - rules.bootstrap_means(rows, "return"))
    assert np.isclose(low, 2) and np.isclose(high, 2)
    apart = pd.concat([rows.assign(model_seed=k, **{"return": rows["return"] + 20 * k}) for k in range(3)])
    low, high = rules.interval(rules.bootstrap_means(apart, "return"))
    assert high - low > 20
