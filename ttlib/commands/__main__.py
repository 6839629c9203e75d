"""python -m ttlib.commands data | estimate | check | table1 | ship | claims | curve: what make asks for."""

import argparse
import hashlib
import os
import sys

import torch

from ttlib import files
from ttlib.claims import checks, front
from ttlib.claims.ledger import SIZES, changed, into_readme, load, outcomes, record
from ttlib.pipeline import experiments, places, provenance, results, rollouts, store, sweep
from ttlib.studies import jobs, offline_rl, spot_check


def make_data(size: str) -> None:
    """Make or fetch every dataset, and print a line about each."""
    for config in experiments.datasets(size):
        episodes = store.dataset(config)
        print(
            f"{config.name}: {len(episodes):,} episodes, {len(episodes.states):,} steps, "
            f"mean return {episodes.returns.mean():.0f}, standard deviation {episodes.returns.std():.0f}"
        )


PAGES_AND_BOOK = {"smoke": 240.0, "laptop": 240.0, "paper": 600.0}  # seconds of two cores, the spot check included


def estimate(size: str) -> None:
    """Print what is still to be computed, and how long it takes on this machine, before any of it is begun."""
    rate = provenance.gflops()
    print(f"this machine multiplies fp32 matrices at {rate:.0f} GFLOP/s; size {size}, mode {places.mode()}")
    seconds = PAGES_AND_BOOK[size]
    if places.mode() != "book":
        seconds += estimate_sweep(size, rate) + estimate_results(size, rate)
    print(f"about {seconds / 60:.0f} minutes in all", flush=True)


def estimate_sweep(size: str, rate: float) -> float:
    """Print a line for each model that is missing, and one for all rollouts -> the seconds that they take."""
    models = [exp for exp in experiments.needed(size) if not store.checkpoint_folder(exp)]
    for exp in models:
        tokens = exp.train.updates * exp.train.batch * exp.model.max_tokens / 1e6
        minutes = sweep.seconds(exp, rate) / 60
        print(f"  {exp.label:32} train on {tokens:5.1f} million tokens: about {minutes:.1f} minutes")
    todo = [job for job in jobs.unrecorded(size) if isinstance(job, rollouts.RolloutSet) and not sweep.files_there(job)]
    workers, work = torch.get_num_threads(), [*models, *todo]
    takes = sweep.makespan(work, {job: sweep.seconds(job, rate / workers) for job in work}, workers)
    every, minutes = sum(map(len, jobs.tables(size).values())), f": about {takes / 60:.0f} minutes" if todo else ""
    print(f"  {len(todo)} of {every} sets of rollouts are to be made{minutes}")
    return takes


def estimate_results(size: str, rate: float) -> float:
    """Print a line for each other result that is to be computed -> the seconds that they take, by their .json."""
    seconds, known, rolled_out = 0.0, current_inputs(size), jobs.tables(size)
    for path, about in results.every(size):
        there = results.table_file(about["name"], size, about["config"], about["inputs"], about["stage"]).exists()
        right = all(key in known.get(name, {key}) for name, key in about["inputs"].items())
        taken = results.takes_records(size) and path.parent == places.records(size) and right
        if there or taken or about["name"] in rolled_out:
            continue
        took = about["wall_seconds"] * about["gflops_fp32"] / rate
        seconds += took
        if took > 30:
            print(f"  {about['name']:32} compute: about {took / 60:.1f} minutes")
    return seconds


def current_inputs(size: str) -> dict[str, set[str]]:
    """Return the keys of all datasets, of the models that are there, and of baselines: by weights and by recipe."""
    fits = jobs.fits(size)
    made = [item for item in (*experiments.needed(size), *fits) if store.checkpoint_folder(item)]
    known = {name: {key} for name, key in store.inputs([*experiments.datasets(size), *made]).items()}
    for fit in fits:
        known.setdefault(fit.label, set()).add(store.fit_key(fit))
    return known


def table1(size: str) -> None:
    """Print Table 1 of what is finished, write it to build/table1-<size>.csv, and name what is missing."""
    table, missing = jobs.table1(size)
    path = places.BUILD / f"table1-{size}.csv"
    files.write_aside(path, lambda aside: table.to_csv(aside, index=False, float_format="%.6g", lineterminator="\n"))
    rows = table.to_dict("records")
    table["what"] = [f"{row['method']} {row['profile']}".removesuffix(" any") for row in rows]
    counts = [f"{row['n']}" + f" of {row['expected']}" * (row["n"] < row["expected"]) for row in rows]
    table["cell"] = [f"{row['mean']:.1f} ± {row['std']:.1f} ({n})" if row["n"] else "-" for row, n in zip(rows, counts)]
    shown = table.pivot(index="dataset", columns="what", values="cell").loc[table.dataset.unique(), table.what.unique()]
    print(f"scores, mean ± standard deviation (rollouts), size {size}\n{shown.to_string()}")
    for line in missing[:20]:
        print(f"missing: {line}")
    if len(missing) > 20:
        print("missing: ...")
    way_out = f": `make SIZE={size} sweep`" if missing else ""
    print(f"{len(missing)} of {len(offline_rl.table1_runs(size))} sets of rollouts are missing{way_out}")
    print(f"the table is in {places.shown(path)}")


def ship(size: str) -> None:
    """Copy models and baselines, fitted if missing, to data/checkpoints, and write the checksums of all in data/."""
    fits = jobs.fits(size)
    for fit in fits:
        store.load_or_fit(fit)
    for item in [*experiments.needed(size), *fits]:
        if store.checkpoint_folder(item) != store.SHIPPED / f"{item.label}-{item.size}":
            print(places.shown(store.ship(item)))
    write_checksums()


def write_checksums() -> None:
    """Write data/SHA256SUMS."""
    data = places.ROOT / "data"
    paths = sorted(p for name in ("checkpoints", "policies") for p in (data / name).rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(data).as_posix()}\n" for p in paths]
    (data / "SHA256SUMS").write_text("".join(lines))


def curve(size: str) -> None:
    """Train the models of the scaling curve, cheap ones first; a killed run continues where it was."""
    for exp in experiments.curve(size):
        store.load_or_train(exp)


def check(size: str, share: float) -> int:
    """Make a share of the recorded rollouts again, and print how many are equal -> the exit status."""
    sentence, wrong = spot_check.check(size, share)
    print("\n".join([*wrong, sentence]), flush=True)
    if wrong:
        print(f"the records do not hold on this machine: `make SIZE={size} recompute` makes all results anew")
    return bool(wrong)


def judge(_: str) -> None:
    """Judge every claim at every size anew; print what changed, and write it to the ledger and to README.md."""
    claims = load()
    found = outcomes(claims)
    readme = places.ROOT / "README.md"
    lines = front.summary(claims, found, checks.table(claims, found, SIZES[0]), SIZES[0])
    text = into_readme(readme.read_text("utf-8"), claims, found, lines)
    print("\n".join(changed(claims, found)) or "no verdict changed")
    record(claims, found)
    files.write_aside(readme, lambda aside: aside.write_text(text, "utf-8"))


COMMANDS = {"data": make_data, "estimate": estimate, "table1": table1, "ship": ship, "claims": judge, "curve": curve}


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=[*COMMANDS, "check"])
    parser.add_argument("--size", choices=places.SIZES, default="laptop")
    parser.add_argument("--mode", choices=places.MODES)
    parser.add_argument("--share", type=float, default=0.05, help="check: the fraction of the rollouts; default: 0.05")
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1:
        parser.error(f"--share {arguments.share:g}; expected a number from 0 to 1")
    if arguments.mode:
        os.environ["TTLIB_MODE"] = arguments.mode
    if arguments.command == "check":
        return check(arguments.size, arguments.share)
    COMMANDS[arguments.command](arguments.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
