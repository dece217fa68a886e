from __future__ import annotations

import warnings

import pytest

from sparse_dset.config import compose_config
from sparse_dset.engine.plan import check_plan

SCRATCH = ["data=synthetic", "data.root=x"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epochs=abc"], "train.epochs must be a whole number of at least 1, got 'abc'"),
        (["optim.lr=-1"], "optim.lr must be a number above 0, got -1"),
        (["pruner.selector=bacth"], "pruner.selector must be one of"),
        (["losses.cass.band=-1"], "losses.cass.band must be a number of at least 0"),
        (["model.encoder.position=foo"], "got 'foo'"),
        (["model.decoder.num_queries=1.5"], "model.decoder.num_queries must be a whole number"),
        (["+model.decoder.label_noise_ratio=7"], "label_noise_ratio must be .* at most 1"),
        (["model.encoder.blocks=-1"], "model.encoder.blocks must be a whole number of at least 0"),
        (["model.encoder.num_heads=0"], "num_heads must be a whole number of at least 1"),
        (["+losses.cass.alpha=2"], "losses.cass.alpha must be a number of at least 0 and at most"),
        (["peer=timm"], "peer must be hugging_face or null"),
        (["pruner.score_by=norm"], "nothing to train"),
        (["pruner.selector=threshold", "train.pruning.ratio=random"], "pruner.selector=batch"),
        (["pruner.selector=mass", "train.pruning.ratio=random"], "pruner.selector=batch"),
        (
            ["train.freeze_statistics=true", "train.pruning.warmup_epochs=0"],
            "give train.pruning.warmup_epochs > 0, weights to start from",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_plan(compose_config("train", [*SCRATCH, *overrides]))


@pytest.mark.parametrize(
    ("epochs", "warmup", "message"),
    [(4, 10, "not at all"), (15, 10, "50 % of the way"), (20, 10, None), (1, 0, None)],
)
def test_it_tells_where_pruning_does_not_set_in(epochs, warmup, message):
    settings = [f"train.epochs={epochs}", f"train.pruning.warmup_epochs={warmup}"]
    plain = compose_config("train", [*SCRATCH, "pruner.keep_ratio=0.3", *settings])
    if message is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_plan(plain)
    else:
        with pytest.warns(UserWarning, match=message):
            check_plan(plain)
        plain["train"]["execution"] = "dense"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_plan(plain)
