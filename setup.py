"""Packages sparse_dset; its configurations go inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sparse_dset", "sparse_dset.*"]), "sparse_dset.conf"],
    package_dir={"sparse_dset.conf": "conf"},
    package_data={"sparse_dset.conf": ["*.yaml", "*/*.yaml"]},
)
