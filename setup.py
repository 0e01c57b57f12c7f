"""Packages are found, not listed; all else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # adapters/ is installed as vaeaudit_adapters: the name `adapters` belongs to another project on PyPI.
    packages=[*find_packages(include=["vaeaudit", "vaeaudit.*"]), "vaeaudit_adapters"],
    package_dir={"vaeaudit_adapters": "adapters"},
)
