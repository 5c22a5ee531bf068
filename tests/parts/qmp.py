"""The QMP client that the tests look on with: the demonstration's."""

from panicd.demo.qmp import (
    QmpClient,
    QmpClosedError,
    QmpCommandError,
    connect_qmp,
    qmp_over,
)

__all__ = ["QmpClient", "QmpClosedError", "QmpCommandError", "connect_qmp", "qmp_over"]
