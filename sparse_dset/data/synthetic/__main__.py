"""The command line: ``python -m sparse_dset.data.synthetic --root data/synthetic``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_dset.data.synthetic.dataset import write_dataset


def main() -> None:
    """Writes the data set that the command line asks for."""
    parser = argparse.ArgumentParser(description="Draws the synthetic road scenes.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the set")
    parser.add_argument("--train", type=int, default=320, help="images to train on")
    parser.add_argument("--val", type=int, default=80, help="images to validate on")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(384, 640), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    height, width = args.size
    splits = {"train": args.train, "val": args.val}
    root = write_dataset(args.root, splits, height=height, width=width, seed=args.seed)
    print(root)


if __name__ == "__main__":
    main()
