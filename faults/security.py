"""Row 15: rights that are revoked while the pipeline runs, and passwords that change."""

import math
from functools import partial

from faults.fault import Fault, add, fault
from faults.guard import Guard
from faults.run import Run
from streams.up import ROLES

REVOKED_S = 20.0
REFUSED_S = 15.0


def _guard(run: Run) -> Guard:
    assert run.cluster.guard
    return run.cluster.guard


def _revoke(kind: str, run: Run) -> None:
    """Roles end, saying what they may not do; they are started again and again until they may."""
    before = run.pipeline.pids
    _guard(run).revoke(kind)
    run.wait_until(lambda: run.pipeline.pids != before, "a role ends")
    run.rest(REVOKED_S)
    _guard(run).grant(kind)


for _kind in ("TOPIC", "GROUP", "TRANSACTIONAL_ID"):
    _name = f"revoked-{_kind.lower().replace('_', '-')}"
    add(Fault(_name, 15, partial(_revoke, _kind), secured=True, silent_s=(REFUSED_S, math.inf)))


@fault(15, secured=True, silent_s=(REFUSED_S - 2, math.inf))
def password_changed(run: Run) -> None:
    """The brokers take another password from now on, and cut every connection; the roles get it later, one by one."""
    _guard(run).change_password()
    run.cluster.clients(1).reset()
    run.rest(REFUSED_S)
    run.pipeline.settings = run.settings.model_copy(update={"kafka": _guard(run).kafka})
    for role in ROLES:
        run.pipeline.stop_role(role)
        run.pipeline.start_role(role)
