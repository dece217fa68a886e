from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from sparse_dset.config import compose_config
from sparse_dset.engine.checkpoint import LoadReport
from sparse_dset.engine.plan import check_plan, check_statistics
from sparse_dset.engine.train_config import PruningSchedule, TrainConfig

SCRATCH = ["data=synthetic", "data.root=x", "model=nano"]


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
        (["data.val=null", "train.patience=3"], "data.val=null leaves nothing to evaluate on"),
        (["peer=timm"], "peer must be hugging_face or null"),
        (["pruner.score_by=norm"], "nothing to train"),
        (["losses.cass=null"], "nothing trains the scores"),
        (["losses.cass.weight=0"], "nothing trains the scores"),
        (["optim.pruner_factor=0", "pruner.gate=true"], "nothing trains the scores"),
        (["optim.betas=0.9"], r"write optim.betas=\[0.9\]"),
        (["train.pruning.ratio_range=0.5"], r"write train.pruning.ratio_range=\[0.5\]"),
        (["train.pruning=null"], "train.execution=dense"),
        (["train.device=gpu"], "train.device must be auto, cpu or cuda"),
        (["peer=hugging_face", "train.execution=sparse"], "runs dense only"),
        (["weights=/nowhere.pt"], "weights=/nowhere.pt: there is no such file"),
        (["train.freeze_statistics=off"], "train.freeze_statistics must be true or false"),
        (["losses.cass.balanced=no"], "losses.cass.balanced must be true or false, got 'no'"),
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


def test_statistics_that_the_weights_lack_are_not_frozen():
    def report(*missing):
        return LoadReport(loaded=("a",), missing=missing, unexpected=(), mismatched={})

    frozen = TrainConfig("x", freeze_statistics=True, pruning=PruningSchedule(warmup_epochs=0))
    with pytest.raises(ValueError, match=r"1 of its layers.*encoder.norm.running_var first"):
        check_statistics(report("encoder.norm.running_var"), frozen)
    check_statistics(report("backbone.norm.running_var", "decoder.head.weight"), frozen)
    check_statistics(report("encoder.norm.running_var"), replace(frozen, freeze_statistics=False))
    check_statistics(report("encoder.norm.running_var"), TrainConfig("x", freeze_statistics=True))


@pytest.mark.parametrize("overrides", [["weights=x.pt"], ["pruner.gate=true"]])
def test_scores_may_be_given_or_learn_from_the_detection_loss(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").touch()
    check_plan(compose_config("train", [*SCRATCH, "losses.cass=null", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=r18"], "random weights; a detector needs weights="),
        (["model=r50"], r"part of which never learns \(model.backbone.frozen_norm\)"),
        (["model=nano", "model.backbone.weights=null"], r"never learns \(model.backbone.frozen\)"),
    ],
)
def test_it_tells_where_the_backbone_knows_nothing(overrides, message):
    with pytest.warns(UserWarning, match=message):
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
