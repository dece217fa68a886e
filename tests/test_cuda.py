"""What people do with a GPU: the same answers as on the CPU, and every script in half precision."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparse_dset import build_detector, load_detector
from sparse_dset.config import package_file
from sparse_dset.data.synthetic import render_scene, write_dataset
from sparse_dset.models.detector import Detector
from tests.models.training import losses_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parents[1]
WEIGHTS = package_file("weights/nano_roads.pt")
EXECUTIONS = ("dense", "dense_scatter", "sparse", "masked")


@pytest.fixture(autouse=True)
def _exact() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module")
def shipped() -> Detector:
    return load_detector(WEIGHTS)


@pytest.fixture(scope="module")
def scene() -> Tensor:
    return torch.from_numpy(render_scene(100_003).image.copy()).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("roads")
    write_dataset(root, {"train": 6, "val": 4})
    return root


def _close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours.float().cpu(), theirs.float().cpu(), rtol=0, atol=atol)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_outputs_are_those_of_the_cpu(
    shipped: Detector, scene: Tensor, execution: str, fused: bool
) -> None:
    images = torch.stack([scene, scene.flip(2)]).float() / 255
    expected = shipped(images, execution=execution, keep_ratio=0.3)
    model = copy.deepcopy(shipped).cuda()
    out = (model.fuse() if fused else model)(images.cuda(), execution=execution, keep_ratio=0.3)
    differing = sum(int((a.cpu() != b).sum()) for a, b in zip(out.kept, expected.kept, strict=True))
    assert differing <= 2  # scores that lie at the threshold to the last digit
    if not differing:
        best = expected.pred_logits.amax(2) > -2
        _close(out.pred_logits[best], expected.pred_logits[best], 2e-3)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_forced_tokens_and_padding(shipped: Detector, scene: Tensor, execution: str) -> None:
    images = torch.stack([scene, scene.flip(2)]).float() / 255
    padding = torch.zeros(2, *images.shape[-2:], dtype=torch.bool)
    padding[1, 200:], padding[1, :, 333:] = True, True
    coarse = torch.rand(2, images.shape[2] // 32, images.shape[3] // 32) < 0.3
    middle = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    kept = [middle.repeat_interleave(2, 1).repeat_interleave(2, 2), middle, coarse]
    kept[0][0] = kept[1][0] = kept[2][0] = False  # an image of which nothing is kept
    expected = shipped(images, execution=execution, padding_mask=padding, kept=kept)
    model = copy.deepcopy(shipped).cuda()
    out = model(
        images.cuda(),
        execution=execution,
        padding_mask=padding.cuda(),
        kept=[mask.cuda() for mask in kept],
    )
    real = expected.query_mask
    assert torch.equal(out.query_mask.cpu(), real)
    _close(
        out.pred_logits.sort(1).values[real.cuda()], expected.pred_logits.sort(1).values[real], 2e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("execution", ["dense", "sparse"])
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_half_precision(
    shipped: Detector, scene: Tensor, execution: str, dtype: torch.dtype, way: str
) -> None:
    images = scene[None].cuda().float() / 255
    model = copy.deepcopy(shipped).cuda()
    expected = model(images, execution=execution, keep_ratio=0.3)
    if way == "weights":
        out = model.to(dtype)(images.to(dtype), execution=execution, keep_ratio=0.3)
    else:
        with torch.autocast("cuda", dtype):
            out = model(images, execution=execution, keep_ratio=0.3)
    assert out.pred_logits.isfinite().all()
    ours, theirs = (o.pred_logits.sigmoid().amax(2).sort(1).values for o in (out, expected))
    assert (ours - theirs).abs().mean() < 0.05


@pytest.mark.parametrize("selector", ["topk", "threshold", "mass", "batch"])
@pytest.mark.parametrize("name", ["nano", "dset_r18"])
def test_a_training_step_has_the_gradients_of_the_cpu(name: str, selector: str) -> None:
    torch.manual_seed(0)
    overrides = [f"pruner.selector={selector}", "model.decoder.num_denoising=0"]
    model = build_detector(name, 3, overrides, pretrained=False).double().train()
    images = torch.rand(2, 3, 96, 160, dtype=torch.float64)
    targets = [
        {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.2]] * 2)},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    other = copy.deepcopy(model).cuda()
    on_card = [{key: value.cuda() for key, value in target.items()} for target in targets]
    for one, seen, objects in ((model, images, targets), (other, images.cuda(), on_card)):
        sum(losses_of(one, seen, objects).values()).backward()
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:  # the losses are computed in float32
            error = float((p.grad - q.grad.cpu()).abs().max())
            # Few rows are kept, and their small variances enlarge the rounding of the losses.
            assert error < 1e-2 * (1 + float(p.grad.abs().max())), key


def test_fusing_does_not_depend_on_the_precision_of_the_card(shipped: Detector) -> None:
    torch.backends.cudnn.allow_tf32 = True
    fused = copy.deepcopy(shipped).cuda().fuse()
    expected = copy.deepcopy(shipped).fuse()
    for (name, ours), theirs in zip(
        fused.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(ours.cpu(), theirs), name


def test_predict_takes_pictures_from_anywhere(shipped: Detector, scene: Tensor) -> None:
    model = copy.deepcopy(shipped).cuda()
    expected = shipped.predict([scene], 0.3)[0]
    for picture in (scene, scene.cuda(), scene.cuda().float() / 255):
        found = model.predict([picture], 0.3)[0]
        assert abs(len(found["boxes"]) - len(expected["boxes"])) <= 1


def _script(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("amp", ["'off'", "bf16", "fp16"])
def test_training_resumes_and_is_measured(roads: Path, tmp_path: Path, amp: str) -> None:
    out = tmp_path / "run"
    common = [
        "experiment=demo", f"data.root={roads}", f"train.output_dir={out}", f"train.amp={amp}",
        "train.batch_size=2", "train.accumulate=2", "train.epochs=2", "optim.warmup_steps=1",
        "train.device=cuda", "train.num_workers=2", "train.progress_bar=false",
    ]  # fmt: skip
    _script("train", *common, "train.max_steps=2")
    _script("train", *common, "resume=true")
    rows = [json.loads(line) for line in (out / "results.jsonl").open()]
    assert len(rows) == 2
    assert rows[-1]["val"]["AP"] is not None
    measured = [f"checkpoint={out / 'last.pt'}", "device=cuda", f"output_dir={tmp_path / 'm'}"]
    _script("evaluate", *measured, f"amp={amp}")


def test_every_script_runs_on_the_card(roads: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pt"
    mine.write_bytes(Path(WEIGHTS).read_bytes())
    common = [f"checkpoint={mine}", "data=synthetic", f"data.root={roads}"]
    few = ["repeats=2", "warmup=1"]
    _script("calibrate", *common, "device=cuda", f"output_dir={tmp_path / 'c'}")
    _script("benchmark", *common, *few, "device=cuda", "images=2", "keep_ratios=[0.3]",
            f"output_dir={tmp_path / 'b'}")  # fmt: skip
    _script("audit", *common, *few, "device=cuda", f"output_dir={tmp_path / 'a'}")
    _script("sweep", *common, *few, "device=cuda", "images=2", "execution=sparse",
            "pruner.keep_ratio=0.3", f"output_dir={tmp_path / 's'}")  # fmt: skip
    picture = next((roads / "images").rglob("*.*"))
    _script("predict", f"checkpoint={mine}", f"source={picture}", "device=cuda",
            f"output_dir={tmp_path / 'p'}")  # fmt: skip
