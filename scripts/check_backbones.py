"""Checks what works with each family of timm's models and writes docs/backbones.md.

``python scripts/check_backbones.py`` (a few minutes; what was checked before is not checked again)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sparse_dset.audit.backbones import check_all, format_rows

_TOP = Path(__file__).resolve().parents[1]

_INTRODUCTION = """# Backbones

`model=lite0 model.backbone.name=NAME model.backbone.weights=timm 'model.backbone.frozen=[]'` takes
a model of timm whose stages have strides 4, 8, 16 and 32. One small model of each family, with
random weights, was checked by

```
python scripts/check_backbones.py
```

- **image sizes**: any (multiples of 32; the detector pads to them), or one that fits: others are
  refused with a message that names it. `'model.backbone.options={img_size: [480,640]}'` makes many
  of these models for another size.
- **padded batches**: *together*: convolutions and poolings see zeros in the padding. *each image
  at its own size*: the model would see the padding (attention, statistics of the whole map), which
  is found out by itself; images of one size run together, and in training these share the
  statistics of a batch normalisation. *refused*: not all sizes fit. What is predicted for an
  image never depends on its padding.
- **early decision**: `pruner.stage=s3`, the stages after stride 8 on kept sites only.
- **batch norms folded**: by `fuse()`; the rest stays as it is, and the outputs are the same.

"""


def main() -> None:
    """Checks, prints the table and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=_TOP / "runs" / "backbones" / "results.jsonl")
    parser.add_argument("--page", type=Path, default=_TOP / "docs" / "backbones.md")
    parser.add_argument("--only", nargs="*", default=(), help="families; none: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = format_rows(check_all(arguments.rows, arguments.only))
    print(text)
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(_INTRODUCTION + text, encoding="utf-8")


if __name__ == "__main__":
    main()
