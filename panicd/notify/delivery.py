"""Why a notification was not delivered; it is tried again."""


class DeliveryError(Exception):
    """A receiver did not take a notification; the message says why."""
