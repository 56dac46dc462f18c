"""``python -m rnnfast``: what was built, what is loaded, whether it gives torch.nn's numbers."""

import signal
import sys

from rnnfast.installation import describe, self_check

TOLERANCE = 1e-10


def main() -> int:
    """Prints the facts and the self-check; gives the exit status."""
    for name, value in describe().items():
        print(f"{name + ':':14}{value}")
    failed = False
    for mode, difference in self_check().items():
        agrees = difference <= TOLERANCE
        failed = failed or not agrees
        verdict = "agrees with torch.nn" if agrees else "DIFFERS FROM torch.nn"
        print(f"{mode + ':':14}{verdict}, largest difference {difference:.1e} in float64")
    return int(failed)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` ends us, as it ends other programs, without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
