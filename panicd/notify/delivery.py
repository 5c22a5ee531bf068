"""Why a notification was not delivered; it is tried again."""


class DeliveryError(Exception):
    """A receiver did not accept a notification; the message says why."""
