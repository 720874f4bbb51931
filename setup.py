"""The package is described in pyproject.toml; Apache Beam's `--setup_file` asks for this file."""

from setuptools import setup

setup()
