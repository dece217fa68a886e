"""Packages sparse_dset; the configurations of ``conf`` go inside the package."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = [Path("conf"), *sorted(p for p in Path("conf").iterdir() if p.is_dir())]
CONF = [".".join(("sparse_dset", *folder.parts)) for folder in FOLDERS]

setup(
    packages=[*find_packages(include=["sparse_dset", "sparse_dset.*"]), *CONF],
    package_dir={name: name.removeprefix("sparse_dset.").replace(".", "/") for name in CONF},
    package_data={"sparse_dset": ["weights/*.pt"], **{name: ["*.yaml"] for name in CONF}},
)
