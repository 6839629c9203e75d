"""python -m ttlib.commands data | estimate | table1 | ship | claims | curve: what make asks for beside the pages."""

import argparse
import hashlib
import json
import os
import sys

from ttlib import files
from ttlib.claims.ledger import changed, into_readme, load, outcomes, record
from ttlib.pipeline import experiments, keys, places, provenance, store, sweep
from ttlib.studies import long_horizon, offline_rl


def make_data(size: str) -> None:
    for config in experiments.datasets(size):
        found = store.dataset(config)
        print(
            f"{config.name}: {len(found):,} episodes, {len(found.states):,} steps, "
            f"mean return {found.returns.mean():.0f}, deviation {found.returns.std():.0f}"
        )


def estimate(size: str) -> None:
    """What is still to be computed, and how long it takes on this machine, before any of it is begun."""
    seconds = 60.0
    print(
        f"this machine multiplies fp32 matrices at {provenance.gflops():.0f} GFLOP/s; size {size}, mode {places.mode()}"
    )
    for exp in experiments.needed(size) if places.mode() != "book" else []:
        if store.checkpoint_folder(exp):
            print(f"  {exp.label:32} model is there")
            continue
        tokens, takes = (
            exp.train.updates * exp.train.batch * exp.model.max_tokens,
            sweep.seconds(exp, provenance.gflops()),
        )
        seconds += takes
        print(f"  {exp.label:32} train on {tokens / 1e6:5.1f} million tokens: about {takes / 60:.1f} minutes")
    records = sorted(places.folder(size).glob("*.json"))
    if not records:
        print("  results: no record of what they took, so they are not in the estimate")
    for path in records if places.mode() != "book" else []:
        about = json.loads(path.read_text())
        if "recipe" not in about:  # measured by `make bench` alone
            continue
        if places.TABLES.joinpath(f"{about['name']}-{size}-{keys.key(about['recipe'], about['inputs'])}.csv").exists():
            continue
        took = about["wall_seconds"] * about["gflops_fp32"] / provenance.gflops()
        seconds += took
        print(f"  {about['name']:32} compute: about {took / 60:.1f} minutes")
    print(f"about {seconds / 60:.0f} minutes in all", flush=True)


def table1(size: str) -> None:
    """Table 1 of what is finished: printed, written to build/table1-<size>.csv, and what is missing named."""
    table, missing = sweep.table1(size)
    path = places.BUILD / f"table1-{size}.csv"
    files.write_aside(path, lambda aside: table.to_csv(aside, index=False, float_format="%.6g", lineterminator="\n"))
    rows = table.to_dict("records")
    table["what"] = [f"{row['method']} {row['profile']}".removesuffix(" any") for row in rows]
    of = [f"{row['n']}" + f" of {row['expected']}" * (row["n"] < row["expected"]) for row in rows]
    table["cell"] = [f"{row['mean']:.1f} ± {row['std']:.1f} ({n})" if row["n"] else "-" for row, n in zip(rows, of)]
    shown = table.pivot(index="dataset", columns="what", values="cell").loc[table.dataset.unique(), table.what.unique()]
    print(f"scores, mean ± deviation (rollouts), size {size}\n{shown.to_string()}")
    for line in missing[:20]:
        print(f"missing: {line}")
    if len(missing) > 20:
        print("missing: ...")
    way_out = f": `make SIZE={size} sweep`" if missing else ""
    print(f"{len(missing)} of {len(offline_rl.table1_runs(size))} sets of rollouts are missing{way_out}")
    print(f"the table is in {places.shown(path)}")


def ship(size: str) -> None:
    """Models trained here to data/checkpoints (those that are there already stay), and the checksums of all that
    data/ ships."""
    for exp in experiments.needed(size):
        if store.checkpoint_folder(exp) != store.SHIPPED / f"{exp.label}-{exp.size}":
            print(places.shown(store.ship(exp)))
    for panel in experiments.PANELS:
        protocol = experiments.long_horizon(size, panel)
        for seed in protocol.seeds:
            if long_horizon.ensemble_folder(protocol, seed).parent != store.SHIPPED:
                print(places.shown(long_horizon.ship(protocol, seed)))
    data = places.ROOT / "data"
    files = sorted(p for name in ("checkpoints", "policies") for p in (data / name).rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(data).as_posix()}\n" for p in files]
    (data / "SHA256SUMS").write_text("".join(lines))


def curve(size: str) -> None:
    """Train the models of the scaling curve, cheap ones first; a killed run goes on where it was."""
    for exp in experiments.curve(size):
        store.load_or_train(exp)


def judge(_: str) -> None:
    """Judge every claim at every size anew: what changed is printed, and written to the ledger and to README.md."""
    ledger = load()
    found = outcomes(ledger)
    readme = places.ROOT / "README.md"
    text = into_readme(readme.read_text(), ledger, found)
    print("\n".join(changed(ledger, found)) or "no verdict changed")
    record(ledger, found)
    files.write_aside(readme, lambda aside: aside.write_text(text))


def main() -> int:
    commands = {"data": make_data, "estimate": estimate, "table1": table1, "ship": ship, "claims": judge}
    commands["curve"] = curve
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--size", choices=places.SIZES, default="laptop")
    parser.add_argument("--mode", choices=places.MODES)
    arguments = parser.parse_args()
    if arguments.mode:
        os.environ["TTLIB_MODE"] = arguments.mode
    commands[arguments.command](arguments.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
