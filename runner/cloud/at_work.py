"""Whether another launch works on the run that this container is to work on. Standard library and modal only."""

from __future__ import annotations

import modal
from modal import exception

from runner.cloud.ledger import Ledger


def other_call(ledger: Ledger, call: str) -> str:
    """The call of another launch that is at work on the run; '' where there is none.

    Two that were started in the same moment both found the run free, and a volume has no lock that another machine sees.
    """
    last = ledger.attempts[-1] if ledger.attempts else None
    if last is None or last.call == call or last.ended is not None or ledger.status is not None:
        return ""
    try:
        modal.FunctionCall.from_id(last.call).get(timeout=0)
    except exception.FunctionTimeoutError:  # its time is over
        return ""
    except TimeoutError:
        return last.call
    except (Exception, exception.InputCancellation):  # how it ended; or it can't be asked
        return ""
    return ""
