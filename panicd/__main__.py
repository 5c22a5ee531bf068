"""The command ``panicd``, and ``python -m panicd``.

What a command imports is no garbage: the collector is off until all of it is there (``Deferred``).
"""

import gc

gc.disable()

from panicd.cli import main  # noqa: E402 - as just said

if __name__ == "__main__":
    main(prog_name="panicd")
