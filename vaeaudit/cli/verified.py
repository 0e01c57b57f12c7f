"""What the verification of a report found, in words."""

from vaeaudit.errors import listed
from vaeaudit.gate.verification import Verification
from vaeaudit.layout.inert import one_line


def verified(found: Verification, verbose: bool) -> str:
    """A line for each fault, then what agrees, and what nothing tells; ``verbose`` lists all names."""
    most = len(found.recomputed) + len(found.values) + len(found.written)
    lines = [f"does not agree: {fault}" for fault in found.faults]
    lines.append(f"computed again with their intervals: {len(found.recomputed)} of {most} figures")
    for told, names in (
        ("their values alone", found.values),
        ("told by nothing beside the report", found.written),
        ("files with their hash", found.files),
        ("not there", found.absent),
    ):
        if names:
            lines.append(f"{told}: {len(names)} ({listed(names, most if verbose else 3)})")
    told = "the report agrees with what lies beside it"
    if found.exit_code == 5:
        told = "the report cannot be verified, as the values behind its figures are not there"
    elif faults := len(found.faults):
        told = f"the report does not agree with what lies beside it: {faults} fault{'s' * (faults != 1)}"
    return "".join(f"{one_line(line)}\n" for line in [*lines, told])
