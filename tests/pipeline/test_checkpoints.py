"""Every shipped checkpoint is the model that its record describes: no silent change can pass."""

import pytest
import torch

from ttlib import checkpoint, model
from ttlib.pipeline import experiments, packing, store
from ttlib.studies import jobs

FOLDERS = sorted(path for path in store.SHIPPED.glob("*") if path.is_dir())
SHIPPED = [path for path in FOLDERS if "experiment" in store.about(path)]
pytestmark = pytest.mark.skipif(not SHIPPED, reason=f"no checkpoint is shipped in {store.SHIPPED}")


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda folder: folder.name)
def shipped(request):
    loaded = checkpoint.load(request.param, weights=packing.weights(request.param))
    about = loaded.about["experiment"]
    return request.param, loaded, experiments.get(about["name"], about["size"], about["profile"])


def test_the_recorded_loss_is_reproduced(shipped):
    _, loaded, _ = shipped
    ids, weight = store.held_out(loaded)
    with torch.inference_mode():
        parts = zip(ids.split(16), weight.split(16))
        nats = sum(model.loss(loaded.model, *part).item() * part[1][:, 1:].sum().item() for part in parts)
    nats /= weight[:, 1:].sum().item()
    assert nats == pytest.approx(loaded.about["held_out_nats"], abs=1e-4)


def test_key_config_and_number_format_are_those_of_the_experiment_of_its_name(shipped):
    folder, loaded, exp = shipped
    assert folder.name == f"{exp.label}-{exp.size}"
    assert loaded.about["key"] == store.model_key(exp)
    assert loaded.model.config == exp.model and loaded.tokenizer.V == exp.bins.V
    assert all((p == p.bfloat16().float()).all() for p in loaded.model.parameters())
    assert loaded.tokenizer.centres.isfinite().all() and (loaded.tokenizer.width > 0).all()


def test_every_shipped_baseline_is_the_one_that_the_results_ask_for():
    by_folder = {store.checkpoint_folder(fit): fit for fit in jobs.fits("laptop")}
    for folder in set(FOLDERS) - set(SHIPPED):
        assert store.load_or_fit(by_folder[folder])[1]["key"] == store.fit_key(by_folder[folder])
