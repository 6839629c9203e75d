"""python -m ttlib.commands data | estimate | table1 | ship | claims | curve: what make asks for beside the pages."""

import argparse
import hashlib
import json
import os
import sys

from ttlib import files
from ttlib.claims.ledger import changed, into_readme, load, outcomes, record
from ttlib.pipeline import experiments, keys, places, provenance, store, sweep
from ttlib.studies import jobs, offline_rl


def make_data(size: str) -> None:
    """Make or fetch every dataset, and print a line about each."""
    for config in experiments.datasets(size):
        episodes = store.dataset(config)
        print(
            f"{config.name}: {len(episodes):,} episodes, {len(episodes.states):,} steps, "
            f"mean return {episodes.returns.mean():.0f}, standard deviation {episodes.returns.std():.0f}"
        )


def estimate(size: str) -> None:
    """Print what is still to be computed, and how long it takes on this machine, before any of it is begun."""
    rate = provenance.gflops()
    print(f"this machine multiplies fp32 matrices at {rate:.0f} GFLOP/s; size {size}, mode {places.mode()}")
    seconds = 60.0
    if places.mode() != "book":
        seconds += estimate_models(size, rate) + estimate_results(size, rate)
    print(f"about {seconds / 60:.0f} minutes in all", flush=True)


def estimate_models(size: str, rate: float) -> float:
    """Print a line for each model -> the seconds that training takes."""
    seconds = 0.0
    for exp in experiments.needed(size):
        if store.checkpoint_folder(exp):
            print(f"  {exp.label:32} model is there")
            continue
        tokens = exp.train.updates * exp.train.batch * exp.model.max_tokens / 1e6
        takes = sweep.seconds(exp, rate)
        seconds += takes
        print(f"  {exp.label:32} train on {tokens:5.1f} million tokens: about {takes / 60:.1f} minutes")
    return seconds


def estimate_results(size: str, rate: float) -> float:
    """Print a line for each result that is missing -> the seconds that they take, from published records."""
    seconds, records = 0.0, sorted(places.folder(size).glob("*.json"))
    if not records:
        print("  results: no record says what they took, so they are not in the estimate")
    for path in records:
        about = json.loads(path.read_text())
        if "recipe" not in about:  # only `make bench` measures it
            continue
        key = keys.key(about["recipe"], about.get("stage", 1), about["inputs"])
        if (places.TABLES / f"{about['name']}-{size}-{key}.csv").exists():
            continue
        took = about["wall_seconds"] * about["gflops_fp32"] / rate
        seconds += took
        print(f"  {about['name']:32} compute: about {took / 60:.1f} minutes")
    return seconds


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


def judge(_: str) -> None:
    """Judge every claim at every size anew; print what changed, and write it to the ledger and to README.md."""
    claims = load()
    found = outcomes(claims)
    readme = places.ROOT / "README.md"
    text = into_readme(readme.read_text(), claims, found)
    print("\n".join(changed(claims, found)) or "no verdict changed")
    record(claims, found)
    files.write_aside(readme, lambda aside: aside.write_text(text))


COMMANDS = {"data": make_data, "estimate": estimate, "table1": table1, "ship": ship, "claims": judge, "curve": curve}


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--size", choices=places.SIZES, default="laptop")
    parser.add_argument("--mode", choices=places.MODES)
    arguments = parser.parse_args()
    if arguments.mode:
        os.environ["TTLIB_MODE"] = arguments.mode
    COMMANDS[arguments.command](arguments.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
