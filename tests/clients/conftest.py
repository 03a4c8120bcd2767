"""The service that the clients ask: that of `tests/service/`."""

from tests.service.conftest import make_service

__all__ = ["make_service"]
