"""The checkout: data, figures and pages lie beside the package, not inside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def missing() -> str | None:
    """Return a sentence for those who installed ttlib without its checkout; None if the checkout is there."""
    if (ROOT / "data" / "policies").is_dir():
        return None
    return (
        f"ttlib was installed without its checkout ({ROOT / 'data'} is missing): the core, ttlib.datasets and "
        "ttlib.baselines work; for experiments, results and pages clone the repository and run `make` there"
    )
