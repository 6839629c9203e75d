"""python tools/commands.py data | estimate | ship | claims: what make asks for beside the pages."""

import argparse
import hashlib
import json
import os
import sys

from ttlib import claims, experiments, longhorizon, results, stages


def make_data(size: str) -> None:
    for config in experiments.datasets(size):
        found = stages.dataset(config)
        print(
            f"{config.name}: {len(found):,} episodes, {len(found.states):,} steps, "
            f"mean return {found.returns.mean():.0f}, deviation {found.returns.std():.0f}"
        )


def estimate(size: str) -> None:
    """What is still to be computed, and how long it takes on this machine, before any of it is begun."""
    rate, seconds = 0.5 * results.gflops() * 1e9, 60.0
    print(
        f"this machine multiplies fp32 matrices at {results.gflops():.0f} GFLOP/s; size {size}, mode {results.mode()}"
    )
    for exp in experiments.needed(size) if results.mode() != "book" else []:
        if stages.checkpoint_folder(exp):
            print(f"  {exp.label:32} model is there")
            continue
        tokens = exp.train.updates * exp.train.batch * exp.model.max_tokens
        d, L = exp.model.d_model, exp.model.n_layer
        work = 6 * tokens * (12 * L * d * d + 2 * L * d * exp.model.max_tokens / 2 + d * exp.model.V)
        seconds += work / rate
        print(f"  {exp.label:32} train on {tokens / 1e6:5.1f} million tokens: about {work / rate / 60:.1f} minutes")
    records = sorted(results.folder(size).glob("*.json"))
    if not records:
        print("  results: no record of what they took, so they are not in the estimate")
    for record in records if results.mode() != "book" else []:
        about = json.loads(record.read_text())
        if "recipe" not in about:  # measured by `make bench` alone
            continue
        if results.TABLES.joinpath(
            f"{about['name']}-{size}-{results.key(about['recipe'], about['inputs'])}.csv"
        ).exists():
            continue
        took = about["wall_seconds"] * about["gflops_fp32"] / results.gflops()
        seconds += took
        print(f"  {about['name']:32} compute: about {took / 60:.1f} minutes")
    print(f"about {seconds / 60:.0f} minutes in all", flush=True)


def ship(size: str) -> None:
    """Models trained here to data/checkpoints (those that are there already stay), and the checksums of all that
    data/ ships."""
    for exp in experiments.needed(size):
        if stages.checkpoint_folder(exp) != stages.SHIPPED / f"{exp.label}-{exp.size}":
            print(stages.ship(exp).relative_to(results.ROOT))
    for panel in experiments.PANELS:
        protocol = experiments.long_horizon(size, panel)
        for seed in protocol.seeds:
            if longhorizon.ensemble_folder(protocol, seed).parent != stages.SHIPPED:
                print(longhorizon.ship(protocol, seed).relative_to(results.ROOT))
    data = results.ROOT / "data"
    files = sorted(p for name in ("checkpoints", "policies") for p in (data / name).rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(data).as_posix()}\n" for p in files]
    (data / "SHA256SUMS").write_text("".join(lines))


def judge(_: str) -> None:
    """Judge every claim at every size anew: what changed is printed, and written to the ledger and to README.md."""
    ledger = claims.load()
    found = claims.outcomes(ledger)
    readme = results.ROOT / "README.md"
    text = claims.into_readme(readme.read_text(), ledger, found)
    print("\n".join(claims.changed(ledger, found)) or "no verdict changed")
    claims.record(ledger, found)
    results.write_aside(readme, lambda aside: aside.write_text(text))


def main() -> int:
    commands = {"data": make_data, "estimate": estimate, "ship": ship, "claims": judge}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--size", choices=results.SIZES, default="laptop")
    parser.add_argument("--mode", choices=results.MODES)
    arguments = parser.parse_args()
    if arguments.mode:
        os.environ["TTLIB_MODE"] = arguments.mode
    commands[arguments.command](arguments.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
