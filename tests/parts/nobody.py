"""Tests as another user: for root only, as only root can be somebody else."""

import os

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes user or namespace: needs root")
