"""What pip calls: setuptools, or one sentence where setuptools or torch is missing."""

from tools import needs

needs.require("python", "setuptools")

from setuptools.build_meta import *  # noqa: E402, F403
