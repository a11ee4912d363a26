"""The tiny recipe of the trainer's tests."""

from tests.model.conftest import lab

__all__ = ["lab"]
